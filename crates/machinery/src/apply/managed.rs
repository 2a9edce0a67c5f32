//! `metadata.managedFields` as a table of managers.

use super::error::{ApplyError, Conflict};
use super::field_set::FieldSet;
use crate::time;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

const ANCIENT: &str = "ancient-changes";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

/// Who a manager is. Appliers are one and the same across versions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    pub(super) manager: String,
    pub(super) operation: Operation,
    /// Empty for appliers.
    pub(super) api_version: String,
    pub(super) subresource: String,
}

impl Id {
    pub(super) fn apply(manager: &str, subresource: &str) -> Id {
        Id {
            manager: manager.to_owned(),
            operation: Operation::Apply,
            api_version: String::new(),
            subresource: subresource.to_owned(),
        }
    }

    pub(super) fn update(manager: &str, api_version: &str, subresource: &str) -> Id {
        Id {
            manager: manager.to_owned(),
            operation: Operation::Update,
            api_version: api_version.to_owned(),
            subresource: subresource.to_owned(),
        }
    }
}

/// What a manager owns, in which version, since when.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub fields: FieldSet,
    pub api_version: String,
    pub time: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct ManagedFields {
    entries: BTreeMap<Id, Entry>,
}

impl ManagedFields {
    /// From `metadata.managedFields`.
    pub fn decode(list: &[Value]) -> Result<ManagedFields, ApplyError> {
        let mut entries = BTreeMap::new();
        for e in list {
            let text = |k: &str| e.get(k).and_then(Value::as_str).unwrap_or("");
            let bad = |m: &str| ApplyError::ManagedFields(m.to_owned());
            match text("fieldsType") {
                "FieldsV1" => {}
                "" => return Err(bad("missing fieldsType in managed fields entry")),
                other => return Err(bad(&format!("invalid fieldsType {other:?}"))),
            }
            let fields = match e.get("fieldsV1") {
                Some(v) if v.is_object() => {
                    FieldSet::from_value(v).map_err(ApplyError::ManagedFields)?
                }
                _ => FieldSet::default(),
            };
            let id = match text("operation") {
                "Apply" => Id::apply(text("manager"), text("subresource")),
                "Update" => Id::update(text("manager"), text("apiVersion"), text("subresource")),
                other => return Err(bad(&format!("invalid operation {other:?}"))),
            };
            let time = Some(text("time"))
                .filter(|t| !t.is_empty())
                .map(str::to_owned);
            entries.insert(
                id,
                Entry {
                    fields,
                    api_version: text("apiVersion").to_owned(),
                    time,
                },
            );
        }
        Ok(ManagedFields { entries })
    }

    pub(super) fn decode_or_empty(list: &[Value]) -> ManagedFields {
        Self::decode(list).unwrap_or_default()
    }

    /// To `metadata.managedFields`: appliers first, then by age.
    pub fn encode(&self) -> Vec<Value> {
        let mut rows: Vec<(&Id, &Entry)> = self.entries.iter().collect();
        let seconds = |e: &Entry| e.time.as_deref().and_then(time::parse_unix).unwrap_or(0);
        rows.sort_by(|(a, x), (b, y)| {
            (
                a.operation,
                seconds(x),
                &a.manager,
                &x.api_version,
                &a.subresource,
            )
                .cmp(&(
                    b.operation,
                    seconds(y),
                    &b.manager,
                    &y.api_version,
                    &b.subresource,
                ))
        });
        rows.into_iter()
            .map(|(id, e)| {
                let mut m = Map::new();
                let mut set = |k: &str, v: &str| {
                    if !v.is_empty() {
                        m.insert(k.to_owned(), Value::from(v));
                    }
                };
                set("manager", &id.manager);
                set(
                    "operation",
                    match id.operation {
                        Operation::Apply => "Apply",
                        Operation::Update => "Update",
                    },
                );
                set("apiVersion", &e.api_version);
                set("time", e.time.as_deref().unwrap_or(""));
                set("fieldsType", "FieldsV1");
                set("subresource", &id.subresource);
                m.insert("fieldsV1".into(), e.fields.to_value());
                Value::Object(m)
            })
            .collect()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Id, &Entry)> {
        self.entries.iter()
    }

    pub(super) fn get(&self, id: &Id) -> Option<&Entry> {
        self.entries.get(id)
    }

    pub(super) fn fields(&self, id: &Id) -> Option<&FieldSet> {
        self.entries.get(id).map(|e| &e.fields)
    }

    pub(super) fn sets(&self) -> impl Iterator<Item = &FieldSet> {
        self.entries.values().map(|e| &e.fields)
    }

    pub(super) fn set(
        &mut self,
        id: Id,
        fields: FieldSet,
        api_version: &str,
        time: Option<String>,
    ) {
        self.entries.insert(
            id,
            Entry {
                fields,
                api_version: api_version.to_owned(),
                time,
            },
        );
    }

    /// Adds fields to a manager and dates it.
    pub(super) fn add(&mut self, id: Id, fields: FieldSet, api_version: &str, now: &str) {
        let e = self.entries.entry(id).or_insert_with(|| Entry {
            fields: FieldSet::default(),
            api_version: api_version.to_owned(),
            time: None,
        });
        e.fields.absorb(fields);
        e.time = Some(now.to_owned());
    }

    pub(super) fn touch(&mut self, id: &Id, now: &str) {
        if let Some(e) = self.entries.get_mut(id) {
            e.time = Some(now.to_owned());
        }
    }

    pub(super) fn strip(&mut self, id: &Id, fields: &FieldSet) {
        if let Some(e) = self.entries.get_mut(id) {
            e.fields.subtract(fields);
            if e.fields.is_empty() {
                self.entries.remove(id);
            }
        }
    }

    /// Fields of `changed` that someone else owns.
    pub(super) fn conflicts(&self, changed: &FieldSet, but: &Id) -> Vec<Conflict> {
        let mut out = Vec::new();
        for (id, e) in self.entries.iter().filter(|(id, _)| *id != but) {
            for path in e.fields.intersection(changed).paths() {
                out.push(Conflict::new(id.clone(), e.time.clone(), path));
            }
        }
        out
    }

    /// Takes changed and removed fields from everyone but one; managers left with nothing go.
    pub(super) fn take_away(&mut self, changed: &FieldSet, removed: &FieldSet, but: Option<&Id>) {
        for (id, e) in &mut self.entries {
            if Some(id) != but {
                e.fields.subtract(changed);
                e.fields.subtract(removed);
            }
        }
        self.entries.retain(|_, e| !e.fields.is_empty());
    }

    /// Folds the oldest updaters of a version into one when there are too many.
    pub(super) fn cap_updates(&mut self, max: usize) {
        let mut updaters: Vec<(i64, Id)> = self
            .entries
            .iter()
            .filter(|(id, _)| id.operation == Operation::Update)
            .map(|(id, e)| {
                (
                    e.time.as_deref().and_then(time::parse_unix).unwrap_or(0),
                    id.clone(),
                )
            })
            .collect();
        updaters.sort();
        let mut count = updaters.len();
        let mut first: BTreeMap<String, Id> = BTreeMap::new();
        for (_, id) in updaters {
            if count <= max {
                return;
            }
            let bucket = Id::update(ANCIENT, &id.api_version, "");
            let Some(oldest) = first.get(&id.api_version).cloned() else {
                first.insert(id.api_version.clone(), id);
                continue;
            };
            if !self.entries.contains_key(&bucket)
                && let Some(e) = self.entries.remove(&oldest)
            {
                self.entries.insert(bucket.clone(), e);
            }
            if id == bucket {
                continue;
            }
            if let Some(e) = self.entries.remove(&id)
                && let Some(b) = self.entries.get_mut(&bucket)
            {
                b.fields = b.fields.union(&e.fields);
                b.time = e.time;
                count -= 1;
            }
        }
    }
}
