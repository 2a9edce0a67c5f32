//! CSIStorageCapacity.

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use crate::check::At;
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
    columns: &[Column::of("Created At", "date")],
    cells: |obj, _| vec![obj.at("metadata.creationTimestamp").clone()],
    allow_unconditional_update: false,
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    At::new(obj, "nodeTopology").label_selector(&mut e);
    At::new(obj, "storageClassName").conforms(&mut e, validation::is_dns1123_subdomain);
    let capacity = At::new(obj, "capacity");
    if let Some(q) = capacity.quantity().filter(|q| q.is_negative()) {
        let detail = crate::check::NON_NEGATIVE;
        e.push(FieldError::invalid(&capacity.path, q.to_string(), detail));
    }
    e
}
