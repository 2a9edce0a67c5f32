//! DeviceClass.

use keelson_cel::Version;
use keelson_machinery::field::{ErrorList, FieldError};
use serde_json::Value;

use super::{GROUP, convert};
use crate::check::At;
use crate::core::resources;
use crate::expressions::device;
use crate::kind::Kind;
use crate::rules;
use crate::tree::TreeMut;

pub(crate) static DEVICE_CLASS: Kind = Kind {
    group: GROUP,
    resource: "deviceclasses",
    prepare_create: |obj| obj.put("metadata.generation", 1),
    prepare_update: rules::with_generation,
    validate,
    validate_update: |new, _, _| validate(new),
    convert: convert::convert,
    ..Kind::GENERIC
};

/// Conditions on devices.
pub(super) fn selectors(list: &At, e: &mut ErrorList) {
    if list.len() > 32 {
        e.push(FieldError::too_many(&list.path, list.len(), 32));
    }
    for selector in list.each() {
        let cel = selector.at("cel");
        if !cel.exists() {
            e.push(cel.required(""));
            continue;
        }
        let expression = cel.at("expression");
        if expression.len() > 10 * 1024 {
            e.push(FieldError::too_long(&expression.path, 10 * 1024));
            continue;
        }
        match device::compile(expression.text(), Version::NEW_EXPRESSIONS) {
            Ok(_) => {}
            Err(device::Problem::Invalid(detail)) => e.push(expression.invalid_text(&detail)),
            Err(device::Problem::TooComplex) => {
                e.push(expression.forbidden("too complex, exceeds cost limit"));
            }
        }
    }
}

/// Driver-specific settings: a driver's name and an object it understands.
pub(super) fn opaque(config: &At, e: &mut ErrorList) {
    let opaque = config.at("opaque");
    if !opaque.exists() {
        return e.push(opaque.required(""));
    }
    crate::core::pod::volumes::csi_driver_name(&opaque.at("driver"), e);
    let parameters = opaque.at("parameters");
    if !parameters.exists() {
        e.push(parameters.required(""));
    } else if !parameters.value.is_object() {
        e.push(FieldError::invalid(
            &parameters.path,
            "<value omitted>",
            "parameters must be a valid JSON object",
        ));
    }
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    selectors(&spec.at("selectors"), &mut e);
    let config = spec.at("config");
    if config.len() > 32 {
        e.push(FieldError::too_many(&config.path, config.len(), 32));
    }
    config.each().for_each(|c| opaque(&c, &mut e));
    let extended = spec.at("extendedResourceName");
    if extended.exists() && !resources::is_extended(extended.text()) {
        e.push(extended.invalid("must be a valid extended resource name"));
    }
    e
}
