//! StorageVersion (`internal.apiserver.k8s.io`).

use crate::cell::{self, UNSET};
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::Tree;

pub(crate) static STORAGE_VERSION: Kind = Kind {
    group: "internal.apiserver.k8s.io",
    resource: "storageversions",
    storage_version: "v1alpha1",
    prepare_create: rules::clear_status,
    prepare_update: rules::isolate_status_and_metadata,
    columns: &[
        Column::text("CommonEncodingVersion"),
        Column::text("StorageVersions"),
        Column::AGE,
    ],
    cells: |obj, now| {
        let servers = obj.list("status.storageVersions");
        let all: Vec<_> = servers
            .iter()
            .take(3)
            .map(|s| format!("{}={}", s.text("apiServerID"), s.text("encodingVersion")))
            .collect();
        let mut text = all.join(",");
        if servers.len() > 3 {
            text.push_str(&format!(" + {} more...", servers.len() - 3));
        } else if text.is_empty() {
            UNSET.clone_into(&mut text);
        }
        vec![
            obj.at("status.commonEncodingVersion")
                .as_str()
                .unwrap_or(UNSET)
                .into(),
            text.into(),
            cell::age(obj, now),
        ]
    },
    allow_unconditional_update: false,
    reset_fields: Kind::STATUS_KEEPS_METADATA,
    ..Kind::GENERIC
};
