//! Who owns the replicas of a Scale: the managers of the parent's replicas field, and back. The
//! scale subresource has no fields of its own; what is applied to it is kept with the parent.

use super::managed::{Entry, Id};
use super::{FieldSet, ManagedFields, Operation};
use serde_json::Value;

const SCALE: &str = "autoscaling/v1";
const REPLICAS: &str = "spec.replicas";

/// Where the parent has its replicas.
pub struct Parent<'a> {
    /// Of the request: `apps/v1`.
    pub api_version: &'a str,
    /// Dotted, without a leading dot: `spec.replicas`.
    pub replicas: &'a str,
}

impl Parent<'_> {
    /// Entries of foreign groups say nothing about this object.
    fn knows(&self, api_version: &str) -> bool {
        crate::meta::split_api_version(api_version).0
            == crate::meta::split_api_version(self.api_version).0
    }

    fn set(&self) -> FieldSet {
        FieldSet::of(&[self.replicas])
    }
}

/// The managers of the Scale.
pub fn to_scale(parent_fields: &[Value], parent: &Parent<'_>) -> Vec<Value> {
    let path = parent.set();
    let mut scale = ManagedFields::default();
    for (id, entry) in ManagedFields::decode_or_empty(parent_fields.to_vec()).iter() {
        if parent.knows(&entry.api_version) && !entry.fields.set().intersection(&path).is_empty() {
            let id = Id {
                api_version: match id.operation {
                    Operation::Apply => String::new(),
                    Operation::Update => SCALE.to_owned(),
                },
                ..id.clone()
            };
            let fields = FieldSet::of(&[REPLICAS]);
            scale.set(id, fields, SCALE, entry.time.clone());
        }
    }
    scale.encode()
}

/// The parent's managers after the Scale was written. Replicas that a manager of the parent does
/// not own in the Scale any more are taken from it; new owners are not dated, as upstream has it.
pub fn to_parent(parent_fields: &[Value], scale: &[Value], parent: &Parent<'_>) -> Vec<Value> {
    let path = parent.set();
    let replicas = FieldSet::of(&[REPLICAS]);
    let mut owners: Vec<Id> = ManagedFields::decode_or_empty(scale.to_vec())
        .iter()
        .filter(|(_, entry)| !entry.fields.set().intersection(&replicas).is_empty())
        .map(|(id, _)| id.clone())
        .collect();
    let mut out = ManagedFields::default();
    for (id, entry) in ManagedFields::decode_or_empty(parent_fields.to_vec()).iter() {
        if !parent.knows(&entry.api_version) {
            continue;
        }
        let mut fields = entry.fields.set();
        if !fields.intersection(&path).is_empty() {
            match owners.iter().position(|owner| owner == id) {
                Some(at) => {
                    owners.remove(at);
                }
                None => fields.subtract(&path),
            }
        }
        if !fields.is_empty() {
            out.set(id.clone(), fields, &entry.api_version, entry.time.clone());
        }
    }
    for owner in owners {
        let id = match owner.operation {
            Operation::Apply => owner,
            Operation::Update => Id::update(&owner.manager, parent.api_version, &owner.subresource),
        };
        let kept: Option<Entry> = out.get(&id).cloned();
        let (fields, time) = match kept {
            Some(kept) => (kept.fields.set().union(&path), kept.time),
            None => (path.clone(), None),
        };
        out.set(id, fields, parent.api_version, time);
    }
    out.encode()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PARENT: Parent<'static> = Parent {
        api_version: "apps/v1",
        replicas: "spec.replicas",
    };

    fn entry(manager: &str, operation: &str, version: &str, sub: &str, fields: Value) -> Value {
        let mut out = json!({"manager": manager, "operation": operation, "apiVersion": version,
            "fieldsType": "FieldsV1", "fieldsV1": fields});
        if !sub.is_empty() {
            out["subresource"] = sub.into();
        }
        out
    }

    #[test]
    fn whoever_scales_takes_the_replicas_from_who_had_them() {
        let others = json!({"f:spec": {"f:paused": {}}});
        let replicas = json!({"f:spec": {"f:replicas": {}}});
        let both = json!({"f:spec": {"f:paused": {}, "f:replicas": {}}});
        let mut creator = entry("c", "Update", "apps/v1", "", both);
        creator["time"] = "2026-01-01T00:00:00Z".into();
        let scale = to_scale(std::slice::from_ref(&creator), &PARENT);
        assert_eq!(scale.len(), 1);
        assert_eq!(scale[0]["apiVersion"], SCALE);
        assert_eq!(scale[0]["fieldsV1"], replicas);
        let scaler = entry("s", "Apply", SCALE, "scale", replicas.clone());
        let parent = to_parent(&[creator], &[scaler], &PARENT);
        assert_eq!(parent.len(), 2);
        assert_eq!(parent[0], entry("s", "Apply", "apps/v1", "scale", replicas));
        assert_eq!(parent[1]["fieldsV1"], others);
        assert_eq!(parent[1]["time"], "2026-01-01T00:00:00Z");
    }

    #[test]
    fn other_groups_and_absent_replicas_give_the_scale_no_owner() {
        let replicas = json!({"f:spec": {"f:replicas": {}}});
        let other = entry("o", "Update", "extensions/v1beta1", "", replicas);
        let none = entry(
            "n",
            "Apply",
            "apps/v1",
            "",
            json!({"f:spec": {"f:paused": {}}}),
        );
        assert!(to_scale(&[other, none], &PARENT).is_empty());
    }
}
