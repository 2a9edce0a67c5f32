//! StorageVersionMigration (`storagemigration.k8s.io`).

use keelson_machinery::field::ErrorList;

use crate::check::At;
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::Tree;
use crate::workload;

pub(crate) static STORAGE_VERSION_MIGRATION: Kind = Kind {
    group: "storagemigration.k8s.io",
    resource: "storageversionmigrations",
    storage_version: "v1beta1",
    prepare_create: rules::clear_status,
    prepare_update: rules::isolate_status_and_metadata,
    validate: |obj| {
        let mut e = ErrorList::new();
        At::new(obj, "spec")
            .at("resource")
            .at("resource")
            .require(&mut e);
        e
    },
    validate_update: |new, old, ctx| {
        let mut e = ErrorList::new();
        if ctx.subresource.is_empty() {
            workload::immutable(new, old, "spec", &mut e);
        }
        e
    },
    columns: &[Column::text("Resource"), Column::text("Status")],
    cells: |obj, _| {
        let resource = obj.at("spec.resource");
        let text = match resource.text("group") {
            "" => resource.text("resource").to_owned(),
            group => format!("{}.{group}", resource.text("resource")),
        };
        let status = obj
            .list("status.conditions")
            .iter()
            .filter(|c| c.text("status") == "True")
            .map(|c| c.text("type"))
            .rfind(|t| matches!(*t, "Running" | "Failed" | "Succeeded"));
        vec![text.into(), status.unwrap_or("Unknown").into()]
    },
    allow_unconditional_update: false,
    reset_fields: Kind::STATUS_KEEPS_METADATA,
    ..Kind::GENERIC
};
