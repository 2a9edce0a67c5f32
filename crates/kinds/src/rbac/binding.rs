//! RoleBinding and ClusterRoleBinding.

use keelson_machinery::field::{ErrorList, FieldError};
use serde_json::Value;

use super::GROUP;
use crate::cell;
use crate::check::{At, name_is_path_segment, same};
use crate::core::pod::volumes::is_object_name;
use crate::kind::{Column, Kind};
use crate::tree::{Tree, TreeMut};

const COLUMNS: &[Column] = &[
    Column::text("Role"),
    Column::AGE,
    Column::wide("Users"),
    Column::wide("Groups"),
    Column::wide("ServiceAccounts"),
];

pub(crate) static ROLE_BINDING: Kind = Kind {
    group: GROUP,
    resource: "rolebindings",
    default,
    validate: |obj| validate(obj, true),
    validate_update: |new, old, _| update(new, old, true),
    columns: COLUMNS,
    cells,
    validate_name: name_is_path_segment,
    allow_create_on_update: true,
    ..Kind::GENERIC
};

pub(crate) static CLUSTER_ROLE_BINDING: Kind = Kind {
    group: GROUP,
    resource: "clusterrolebindings",
    default,
    validate: |obj| validate(obj, false),
    validate_update: |new, old, _| update(new, old, false),
    columns: COLUMNS,
    cells,
    validate_name: name_is_path_segment,
    allow_create_on_update: true,
    ..Kind::GENERIC
};

fn default(obj: &mut Value) {
    if obj.at("roleRef").is_object() {
        obj.fill_text("roleRef.apiGroup", GROUP);
    }
    for subject in obj.list_mut("subjects") {
        if matches!(subject.text("kind"), "User" | "Group") {
            subject.fill_text("apiGroup", GROUP);
        }
    }
}

fn validate(obj: &Value, namespaced: bool) -> ErrorList {
    let mut e = ErrorList::new();
    let role = At::new(obj, "roleRef");
    role.at("apiGroup").strictly_one_of(&mut e, &[GROUP]);
    let kinds: &[&str] = if namespaced {
        &["Role", "ClusterRole"]
    } else {
        &["ClusterRole"]
    };
    role.at("kind").strictly_one_of(&mut e, kinds);
    role.at("name")
        .required_conforms(&mut e, |n| name_is_path_segment(n, false));
    for subject in At::new(obj, "subjects").each() {
        self::subject(&subject, namespaced, &mut e);
    }
    e
}

fn subject(subject: &At, namespaced: bool, e: &mut ErrorList) {
    let (name, group, namespace) = (
        subject.at("name"),
        subject.at("apiGroup"),
        subject.at("namespace"),
    );
    name.require(e);
    match subject.at("kind").text() {
        "ServiceAccount" => {
            name.optional_conforms(e, is_object_name);
            if !group.is_empty() {
                e.push(group.not_supported(&[""]));
            }
            if !namespaced {
                namespace.require(e);
            }
        }
        "User" | "Group" => group.strictly_one_of(e, &[GROUP]),
        kind => {
            let path = subject.path.child("kind");
            e.push(FieldError::not_supported(
                &path,
                kind,
                &["ServiceAccount", "User", "Group"],
            ));
        }
    }
}

fn update(new: &Value, old: &Value, namespaced: bool) -> ErrorList {
    let mut e = validate(new, namespaced);
    if !same(new.at("roleRef"), old.at("roleRef")) {
        e.push(At::new(new, "roleRef").invalid("cannot change roleRef"));
    }
    e
}

fn cells(obj: &Value, now: i64) -> Vec<Value> {
    let of = |kind: &str| -> Value {
        let named = obj
            .list("subjects")
            .iter()
            .filter(|s| s.text("kind") == kind)
            .map(|s| match (kind, s.text("namespace")) {
                ("ServiceAccount", namespace) => format!("{namespace}/{}", s.text("name")),
                _ => s.text("name").to_owned(),
            });
        named.collect::<Vec<_>>().join(", ").into()
    };
    vec![
        format!("{}/{}", obj.text("roleRef.kind"), obj.text("roleRef.name")).into(),
        cell::age(obj, now),
        of("User"),
        of("Group"),
        of("ServiceAccount"),
    ]
}
