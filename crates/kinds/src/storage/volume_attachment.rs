//! VolumeAttachment.

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use crate::cell;
use crate::check::{At, range};
use crate::core::pod::volumes::csi_driver_name;
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};
use crate::workload;

pub(crate) static VOLUME_ATTACHMENT: Kind = Kind {
    group: "storage.k8s.io",
    resource: "volumeattachments",
    prepare_create: |obj| {
        rules::clear_status(obj);
        obj.put("status.attached", false);
    },
    validate,
    prepare_update: rules::isolate_status_and_metadata,
    validate_update: |new, old, _| {
        let mut e = validate(new);
        workload::immutable(new, old, "spec", &mut e);
        e
    },
    columns: &[
        Column {
            name: "Attacher",
            kind: "string",
            format: "name",
            priority: 0,
        },
        Column::text("PV"),
        Column::text("Node"),
        Column::of("Attached", "boolean"),
        Column::AGE,
    ],
    cells: |obj, now| {
        vec![
            obj.text("spec.attacher").into(),
            obj.text("spec.source.persistentVolumeName").into(),
            obj.text("spec.nodeName").into(),
            obj.flag("status.attached").into(),
            cell::age(obj, now),
        ]
    },
    allow_unconditional_update: false,
    reset_fields: Kind::STATUS_KEEPS_METADATA,
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    csi_driver_name(&spec.at("attacher"), &mut e);
    let source = spec.at("source");
    let (name, inline) = (
        source.at("persistentVolumeName"),
        source.at("inlineVolumeSpec"),
    );
    match (name.exists(), inline.exists()) {
        (false, false) => e.push(source.required(ONE)),
        (true, true) => e.push(source.forbidden(ONE)),
        (true, false) if name.is_empty() => {
            e.push(name.required("must specify non empty persistentVolumeName"))
        }
        (true, false) => {}
        (false, true) => {
            if !inline.has("csi") {
                e.push(
                    inline
                        .at("csi")
                        .required("has to be specified in the context of inline volumes"),
                );
            }
            for field in ["claimRef", "capacity", "storageClassName"] {
                if !inline.at(field).is_empty() {
                    e.push(
                        inline
                            .at(field)
                            .forbidden("may not be specified in the context of inline volumes"),
                    );
                }
            }
        }
    }
    spec.at("nodeName")
        .conforms(&mut e, validation::is_dns1123_subdomain);
    let status = At::new(obj, "status");
    let metadata = status.at("attachmentMetadata");
    if metadata
        .entries()
        .map(|(k, v)| k.len() + v.text().len())
        .sum::<usize>()
        > 256 * 1024
    {
        e.push(FieldError::too_long(&metadata.path, 256 * 1024));
    }
    for field in ["attachError", "detachError"] {
        let message = status.at(field).at("message");
        if message.len() > 1024 {
            e.push(FieldError::too_long(&message.path, 256 * 1024));
        }
        let code = status.at(field).at("errorCode");
        if code.num() < 0 {
            e.push(code.invalid(range(0, i64::from(i32::MAX))));
        }
    }
    if name.exists() {
        name.conforms(&mut e, validation::is_dns1123_subdomain);
    }
    e
}
