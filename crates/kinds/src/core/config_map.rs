//! ConfigMap.

use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::validation;
use serde_json::Value;

use crate::cell;
use crate::check::{At, same};
use crate::kind::{Column, Kind};
use crate::tree::Tree;

/// The most that the values of one object may hold, in bytes.
pub(super) const MAX_SIZE: usize = 1024 * 1024;

pub(crate) static CONFIG_MAP: Kind = Kind {
    group: "",
    resource: "configmaps",
    validate,
    validate_update: |new, old, _| {
        let mut e = frozen(new, old, &["data", "binaryData"]);
        e.append(&mut validate(new));
        e
    },
    columns: &[Column::text("Data"), Column::AGE],
    cells: |obj, now| {
        vec![
            (obj.map("data").len() + obj.map("binaryData").len()).into(),
            cell::age(obj, now),
        ]
    },
    ..Kind::GENERIC
};

/// The size of base64 text once decoded.
pub(super) fn decoded_size(text: &str) -> usize {
    let padding = text.bytes().rev().take_while(|b| *b == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let mut size = 0;
    for (key, value) in At::new(obj, "data").entries() {
        e.extend(
            validation::is_config_map_key(key)
                .into_iter()
                .map(|m| FieldError::invalid(&value.path, key, m)),
        );
        if obj.map("binaryData").contains_key(key) {
            e.push(FieldError::invalid(
                &value.path,
                key,
                "duplicate of key present in binaryData",
            ));
        }
        size += value.text().len();
    }
    for (key, value) in At::new(obj, "binaryData").entries() {
        e.extend(
            validation::is_config_map_key(key)
                .into_iter()
                .map(|m| FieldError::invalid(&value.path, key, m)),
        );
        size += decoded_size(value.text());
    }
    if size > MAX_SIZE {
        e.push(FieldError::too_long(&Path::new(""), MAX_SIZE));
    }
    e
}

/// An object marked immutable stays so, with what it holds.
pub(super) fn frozen(new: &Value, old: &Value, fields: &[&str]) -> ErrorList {
    let mut e = ErrorList::new();
    if !old.flag("immutable") {
        return e;
    }
    let detail = "field is immutable when `immutable` is set";
    if !new.flag("immutable") {
        e.push(FieldError::forbidden(&Path::new("immutable"), detail));
    }
    for field in fields {
        if !same(new.at(field), old.at(field)) {
            e.push(FieldError::forbidden(&Path::new(field), detail));
        }
    }
    e
}
