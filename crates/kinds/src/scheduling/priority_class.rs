//! PriorityClass.

use keelson_machinery::field::{ErrorList, FieldError, Path};
use serde_json::Value;

use crate::cell;
use crate::check::At;
use crate::kind::{Column, Kind};
use crate::tree::{Tree, TreeMut};
use crate::workload;

/// Above it are the system's own classes.
const HIGHEST_OF_USERS: i64 = 1_000_000_000;

const SYSTEM: &[(&str, i64)] = &[
    ("system-cluster-critical", 2_000_000_000),
    ("system-node-critical", 2_000_001_000),
];

pub(crate) static PRIORITY_CLASS: Kind = Kind {
    group: "scheduling.k8s.io",
    resource: "priorityclasses",
    default: |obj| obj.fill("preemptionPolicy", "PreemptLowerPriority"),
    prepare_create: |obj| obj.put("metadata.generation", 1),
    validate,
    prepare_update: |new, old, _| crate::rules::raise_generation(new, old, false),
    validate_update: |new, old, _| {
        let mut e = ErrorList::new();
        if new.num("value") != old.num("value") {
            e.push(FieldError::forbidden(
                &Path::new("value"),
                "may not be changed in an update.",
            ));
        }
        workload::immutable(new, old, "preemptionPolicy", &mut e);
        e
    },
    columns: &[
        Column::integer("Value"),
        Column::of("Global-Default", "boolean"),
        Column::AGE,
        Column::text("PreemptionPolicy"),
    ],
    cells: |obj, now| {
        vec![
            obj.num("value").into(),
            obj.flag("globalDefault").into(),
            cell::age(obj, now),
            obj.text("preemptionPolicy").into(),
        ]
    },
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let (name, value) = (obj.text("metadata.name"), obj.num("value"));
    if name.starts_with("system-") {
        let problem = match SYSTEM.iter().find(|(n, _)| *n == name) {
            None => Some(format!("{name} is not a known system priority class")),
            Some((_, v)) if *v != value => {
                Some(format!("value of {name} PriorityClass must be {v}"))
            }
            Some(_) if obj.flag("globalDefault") => Some(format!(
                "globalDefault of {name} PriorityClass must be false"
            )),
            Some(_) => None,
        };
        if let Some(problem) = problem {
            let detail = format!(
                "priority class names with 'system-' prefix are reserved for system use only. error: {problem}"
            );
            e.push(FieldError::forbidden(&Path::new("metadata.name"), detail));
        }
    } else if value > HIGHEST_OF_USERS {
        let detail =
            format!("maximum allowed value of a user defined priority is {HIGHEST_OF_USERS}");
        e.push(FieldError::forbidden(&Path::new("value"), detail));
    }
    let preemption = At::new(obj, "preemptionPolicy");
    if preemption.exists() {
        preemption.required_one_of(&mut e, &["PreemptLowerPriority", "Never"]);
    }
    e
}
