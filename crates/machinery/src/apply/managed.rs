//! `metadata.managedFields` as a table of managers.

use super::Changes;
use super::error::{ApplyError, Conflict};
use super::field_set::FieldSet;
use super::fields_v1::FieldsV1;
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
    pub fields: FieldsV1,
    pub api_version: String,
    pub time: Option<String>,
}

impl Entry {
    /// When it was last written; entries without a date are the oldest.
    fn seconds(&self) -> i64 {
        self.time.as_deref().and_then(time::parse_unix).unwrap_or(0)
    }
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct ManagedFields {
    entries: BTreeMap<Id, Entry>,
}

impl ManagedFields {
    /// From `metadata.managedFields`.
    pub fn decode(list: Vec<Value>) -> Result<ManagedFields, ApplyError> {
        let mut entries = BTreeMap::new();
        for mut e in list {
            let mut text = |k: &str| match e.get_mut(k).map(Value::take) {
                Some(Value::String(text)) => text,
                _ => String::new(),
            };
            let bad = |m: &str| ApplyError::ManagedFields(m.to_owned());
            match text("fieldsType").as_str() {
                "FieldsV1" => {}
                "" => return Err(bad("missing fieldsType in managed fields entry")),
                other => return Err(bad(&format!("invalid fieldsType {other:?}"))),
            }
            let (manager, subresource) = (text("manager"), text("subresource"));
            let (operation, api_version) = (text("operation"), text("apiVersion"));
            let time = Some(text("time")).filter(|t| !t.is_empty());
            let fields = match e.get_mut("fieldsV1").map(Value::take) {
                Some(v) if v.is_object() => FieldsV1::read(v).map_err(ApplyError::ManagedFields)?,
                _ => FieldsV1::default(),
            };
            let (operation, of_version) = match operation.as_str() {
                "Apply" => (Operation::Apply, String::new()),
                "Update" => (Operation::Update, api_version.clone()),
                other => return Err(bad(&format!("invalid operation {other:?}"))),
            };
            let id = Id {
                manager,
                operation,
                api_version: of_version,
                subresource,
            };
            entries.insert(
                id,
                Entry {
                    fields,
                    api_version,
                    time,
                },
            );
        }
        Ok(ManagedFields { entries })
    }

    pub(super) fn decode_or_empty(list: Vec<Value>) -> ManagedFields {
        Self::decode(list).unwrap_or_default()
    }

    /// To `metadata.managedFields`: appliers first, then by age.
    pub fn encode(self) -> Vec<Value> {
        let mut rows: Vec<(i64, Id, Entry)> = self
            .entries
            .into_iter()
            .map(|(id, e)| (e.seconds(), id, e))
            .collect();
        rows.sort_by(|(s, a, x), (t, b, y)| {
            (a.operation, s, &a.manager, &x.api_version, &a.subresource).cmp(&(
                b.operation,
                t,
                &b.manager,
                &y.api_version,
                &b.subresource,
            ))
        });
        rows.into_iter()
            .map(|(_, id, e)| {
                let mut m = Map::new();
                let mut set = |k: &str, v: String| {
                    if !v.is_empty() {
                        m.insert(k.to_owned(), Value::String(v));
                    }
                };
                let operation = match id.operation {
                    Operation::Apply => "Apply",
                    Operation::Update => "Update",
                };
                set("manager", id.manager);
                set("operation", operation.to_owned());
                set("apiVersion", e.api_version);
                set("time", e.time.unwrap_or_default());
                set("fieldsType", "FieldsV1".to_owned());
                set("subresource", id.subresource);
                m.insert("fieldsV1".into(), e.fields.into_value());
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

    pub(super) fn sets(&self) -> impl Iterator<Item = FieldSet> {
        self.entries.values().map(|e| e.fields.set())
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
                fields: fields.into(),
                api_version: api_version.to_owned(),
                time,
            },
        );
    }

    /// Adds fields to a manager and dates it.
    pub(super) fn add(&mut self, id: Id, fields: FieldSet, api_version: &str, now: &str) {
        let e = self.entries.entry(id).or_insert_with(|| Entry {
            fields: FieldsV1::default(),
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

    /// What changes and someone else owns.
    pub(super) fn conflicts(&self, changes: &Changes, but: &Id) -> Vec<Conflict> {
        let mut out = Vec::new();
        for (id, e) in self.entries.iter().filter(|(id, _)| *id != but) {
            let (changed, _) = changes.in_version(&e.api_version);
            if changed.is_empty() {
                continue;
            }
            for path in e.fields.set().intersection(changed).paths() {
                out.push(Conflict::new(id.clone(), path));
            }
        }
        out
    }

    /// Takes changed and removed fields from everyone but one; managers left with nothing go.
    pub(super) fn take_away(&mut self, changes: &Changes, but: Option<&Id>) {
        for (id, e) in &mut self.entries {
            if Some(id) != but {
                let (changed, removed) = changes.in_version(&e.api_version);
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
            .map(|(id, e)| (e.seconds(), id.clone()))
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
                b.fields.absorb(e.fields.set());
                b.time = e.time;
                count -= 1;
            }
        }
    }
}
