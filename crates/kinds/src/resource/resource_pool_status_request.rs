//! ResourcePoolStatusRequest.

use keelson_machinery::field::ErrorList;
use serde_json::Value;

use super::{GROUP, convert};
use crate::cell::{self, NONE};
use crate::check::At;
use crate::core::pod::volumes::csi_driver_name;
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};
use crate::workload;

pub(crate) static RESOURCE_POOL_STATUS_REQUEST: Kind = Kind {
    group: GROUP,
    resource: "resourcepoolstatusrequests",
    storage_version: "v1alpha3",
    default: |obj| {
        if obj.has("spec") {
            obj.fill("spec.limit", 100);
        }
    },
    prepare_create: |obj| obj.remove("status"),
    prepare_update: rules::isolate_status_and_metadata,
    validate: |obj| {
        let mut e = ErrorList::new();
        let spec = At::new(obj, "spec");
        csi_driver_name(&spec.at("driver"), &mut e);
        let limit = spec.at("limit");
        if !(1..=1000).contains(&limit.num()) {
            e.push(limit.invalid(crate::check::range(1, 1000)));
        }
        e
    },
    validate_update: |new, old, _| {
        let mut e = ErrorList::new();
        workload::immutable(new, old, "spec", &mut e);
        e
    },
    columns: &[
        Column::text("Driver"),
        Column::text("Total"),
        Column::text("Available"),
        Column::text("Allocated"),
        Column::text("Unavailable"),
        Column::text("Errors"),
        Column::integer("Pools"),
        Column::text("Status"),
        Column::text("Completed"),
    ],
    cells,
    convert: convert::convert,
    allow_unconditional_update: false,
    reset_fields: Kind::STATUS_KEEPS_METADATA,
    ..Kind::GENERIC
};

fn cells(obj: &Value, now: i64) -> Vec<Value> {
    let ended = obj
        .list("status.conditions")
        .iter()
        .find(|c| matches!(c.text("type"), "Complete" | "Failed") && c.text("status") == "True");
    let state = ended.map_or("Pending", |c| c.text("type"));
    let pools = obj.list("status.pools");
    let count = obj.num("status.poolCount");
    let known = obj.has("status") && state != "Failed";
    let sum = |field: &str| -> Value {
        if known {
            pools
                .iter()
                .map(|p| p.num(field))
                .sum::<i64>()
                .to_string()
                .into()
        } else {
            "-".into()
        }
    };
    let errors = pools.iter().filter(|p| p.has("validationError")).count();
    let shown = if state == "Complete" && count > pools.len() as i64 {
        format!("Complete ({}/{count} pools)", pools.len())
    } else {
        state.to_owned()
    };
    let completed = ended
        .filter(|_| state == "Complete")
        .map_or(NONE.to_owned(), |c| {
            cell::since(c.text("lastTransitionTime"), now)
        });
    vec![
        obj.text("spec.driver").into(),
        sum("totalDevices"),
        sum("availableDevices"),
        sum("allocatedDevices"),
        sum("unavailableDevices"),
        if known {
            errors.to_string().into()
        } else {
            "-".into()
        },
        count.into(),
        shown.into(),
        completed.into(),
    ]
}
