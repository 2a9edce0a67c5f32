//! ResourcePoolStatusRequest.

use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::validation;
use serde_json::Value;

use super::{GROUP, convert};
use crate::cell::{self, NONE};
use crate::check::{self, At};
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};

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
    validate,
    validate_update: |new, old, ctx| {
        let mut e = ErrorList::new();
        if ctx.subresource == "status" {
            validate_status(new, old, &mut e);
        } else if !check::same(new.at("spec"), old.at("spec")) {
            e.push(FieldError::invalid(
                &Path::new("spec"),
                Value::Null,
                check::IMMUTABLE,
            ));
        }
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

fn validate(obj: &Value) -> ErrorList {
    const MOST: i64 = 1000;
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    driver(&spec.at("driver"), &mut e);
    let (pool, limit) = (spec.at("poolName"), spec.at("limit"));
    if pool.exists() {
        pool_segments(&pool, &mut e);
    }
    if limit.num() > MOST {
        e.push(limit.invalid(format!("must be less than or equal to {MOST}")));
    }
    at_least(&limit, 1, &mut e);
    e
}

fn at_least(at: &At, least: i64, e: &mut ErrorList) {
    if at.num() < least {
        e.push(at.invalid(format!("must be greater than or equal to {least}")));
    }
}

/// A name of a driver, of which case does not matter here.
fn driver(at: &At, e: &mut ErrorList) {
    const FORM: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
    at.required_conforms(e, |name| {
        if validation::is_dns1123_subdomain(&name.to_lowercase()).is_empty() {
            return Vec::new();
        }
        vec![validation::regex_error(
            "an RFC 1123 subdomain must consist of alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            FORM,
            &["Example.com"],
        )]
    });
}

/// Subdomains separated by slashes, in the words of the checks that are declared upstream.
fn pool_segments(name: &At, e: &mut ErrorList) {
    const MOST: usize = 253;
    if name.len() > MOST {
        e.push(FieldError::too_long(&name.path, MOST));
    }
    for (index, part) in name.text().split('/').enumerate() {
        if part.is_empty() {
            e.push(name.invalid_text(&format!("segment {index}: must not be empty")));
            continue;
        }
        for message in validation::is_dns1123_subdomain(part) {
            let detail = format!("segment {index}: {message}");
            e.push(FieldError::invalid(&name.path, part, detail));
        }
    }
}

fn validate_status(new: &Value, old: &Value, e: &mut ErrorList) {
    const MOST_POOLS: usize = 1000;
    const MOST_CONDITIONS: usize = 10;
    let status = At::new(new, "status");
    if old.has("status") {
        if !check::same(status.value, old.at("status")) {
            e.push(status.invalid(check::IMMUTABLE));
        }
        return;
    }
    if !status.exists() {
        return;
    }
    let (count, pools) = (status.at("poolCount"), status.at("pools"));
    if count.exists() {
        at_least(&count, 0, e);
    } else {
        e.push(count.required(""));
    }
    if pools.len() > MOST_POOLS {
        e.push(FieldError::too_many(&pools.path, pools.len(), MOST_POOLS));
    } else {
        pools.each().for_each(|one| pool(&one, e));
    }
    let conditions = status.at("conditions");
    if conditions.len() > MOST_CONDITIONS {
        e.push(FieldError::too_many(
            &conditions.path,
            conditions.len(),
            MOST_CONDITIONS,
        ));
    }
    check::conditions(&conditions, e);
}

fn pool(pool: &At, e: &mut ErrorList) {
    const MOST: usize = 256;
    driver(&pool.at("driver"), e);
    let (name, generation) = (pool.at("poolName"), pool.at("generation"));
    if name.is_empty() {
        e.push(name.required(""));
    } else {
        pool_segments(&name, e);
    }
    match generation.num() {
        0 => e.push(generation.required("")),
        _ => at_least(&generation, 0, e),
    }
    for (field, least) in [
        ("resourceSliceCount", 1),
        ("totalDevices", 0),
        ("allocatedDevices", 0),
        ("availableDevices", 0),
        ("unavailableDevices", 0),
    ] {
        let at = pool.at(field);
        if at.exists() {
            at_least(&at, least, e);
        }
    }
    let (node, problem) = (pool.at("nodeName"), pool.at("validationError"));
    if node.exists() {
        node.conforms(e, validation::is_dns1123_subdomain);
    }
    if problem.text().len() > MOST {
        e.push(FieldError::too_long(&problem.path, MOST));
    }
}
