//! CSIStorageCapacity.

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use crate::cell::UNSET;
use crate::check::{At, quantity};
use crate::kind::{Column, Kind};
use crate::tree::Tree;
use crate::workload;

pub(crate) static CSI_STORAGE_CAPACITY: Kind = Kind {
    group: "storage.k8s.io",
    resource: "csistoragecapacities",
    validate,
    validate_update: |new, old, _| {
        let mut e = validate(new);
        workload::immutable(new, old, "nodeTopology", &mut e);
        workload::immutable(new, old, "storageClassName", &mut e);
        e
    },
    columns: &[Column::text("StorageClassName"), Column::text("Capacity")],
    cells: |obj, _| {
        let capacity = quantity(obj.at("capacity")).map_or(UNSET.to_owned(), |q| q.to_string());
        vec![obj.text("storageClassName").into(), capacity.into()]
    },
    allow_unconditional_update: false,
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    At::new(obj, "nodeTopology").label_selector(&mut e);
    At::new(obj, "storageClassName").conforms(&mut e, validation::is_dns1123_subdomain);
    for field in ["capacity", "maximumVolumeSize"] {
        let at = At::new(obj, field);
        if let Some(q) = at.quantity().filter(|q| q.is_negative()) {
            e.push(FieldError::invalid(
                &at.path,
                q.to_string(),
                crate::check::NON_NEGATIVE,
            ));
        }
    }
    e
}
