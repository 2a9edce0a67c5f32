//! IPAddress.

use std::net::IpAddr;

use keelson_machinery::field::ErrorList;
use keelson_machinery::validation;
use serde_json::Value;

use crate::cell::{self, NONE};
use crate::check::{At, name_is_path_segment};
use crate::kind::{Column, Kind};
use crate::tree::Tree;
use crate::workload;

pub(crate) static IP_ADDRESS: Kind = Kind {
    group: "networking.k8s.io",
    resource: "ipaddresses",
    validate,
    validate_update: |new, old, _| {
        let mut e = validate(new);
        workload::immutable(new, old, "spec.parentRef", &mut e);
        e
    },
    columns: &[Column::text("ParentRef")],
    // Upstream's rows have a cell more than there are columns.
    cells: |obj, now| {
        let parent = obj.at("spec.parentRef");
        let mut text = NONE.to_owned();
        if parent.is_object() {
            let resource = parent.text("resource").to_lowercase();
            text = match parent.text("group") {
                "" => resource,
                group => format!("{resource}.{}", group.to_lowercase()),
            };
            for part in ["namespace", "name"] {
                if part == "name" || !parent.text(part).is_empty() {
                    text.push('/');
                    text.push_str(parent.text(part));
                }
            }
        }
        vec![text.into(), cell::age(obj, now)]
    },
    validate_name: |name, _| is_canonical(name),
    ..Kind::GENERIC
};

/// An address has one name.
fn is_canonical(name: &str) -> Vec<String> {
    let messages = validation::is_valid_ip(name);
    match name.parse::<IpAddr>() {
        Ok(address) if messages.is_empty() && address.to_string() != name => {
            vec![format!("must be in canonical form (\"{address}\")")]
        }
        _ => messages,
    }
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let parent = At::new(obj, "spec").at("parentRef");
    if !parent.exists() {
        return vec![parent.required("")];
    }
    parent
        .at("group")
        .optional_conforms(&mut e, validation::is_dns1123_subdomain);
    for field in ["resource", "name"] {
        parent
            .at(field)
            .required_conforms(&mut e, |n| name_is_path_segment(n, false));
    }
    parent
        .at("namespace")
        .optional_conforms(&mut e, |n| name_is_path_segment(n, false));
    e
}
