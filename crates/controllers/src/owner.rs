//! Which children belong to a controller object: the controller reference decides, the selector
//! adopts orphans and releases what no longer matches.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use crate::pod;

/// The object that claims children, reduced to what claiming needs.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub api_version: &'static str,
    pub kind: &'static str,
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub deleting: bool,
    /// Put on children with the reference and taken off with it.
    pub finalizer: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Already ours and still matching.
    Keep,
    /// An orphan that matches: take it.
    Adopt,
    /// Ours by reference, but the labels have moved away: let go of it.
    Release,
    /// None of our business.
    Ignore,
}

impl Owner {
    pub(crate) fn new(api_version: &'static str, kind: &'static str, meta: &ObjectMeta) -> Self {
        Self {
            api_version,
            kind,
            name: pod::name(meta).to_owned(),
            namespace: pod::namespace(meta).to_owned(),
            uid: pod::uid(meta).to_owned(),
            deleting: meta.deletion_timestamp.is_some(),
            finalizer: None,
        }
    }

    pub(crate) fn with_finalizer(self, finalizer: &'static str) -> Self {
        Self {
            finalizer: Some(finalizer),
            ..self
        }
    }

    pub(crate) fn reference(&self) -> OwnerReference {
        OwnerReference {
            api_version: self.api_version.to_owned(),
            kind: self.kind.to_owned(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }

    pub(crate) fn owns(&self, child: &ObjectMeta) -> bool {
        controller_of(child).is_some_and(|r| r.uid == self.uid)
    }

    pub(crate) fn claim(&self, child: &ObjectMeta, selected: bool) -> Claim {
        if pod::namespace(child) != self.namespace {
            return Claim::Ignore;
        }
        match controller_of(child) {
            Some(reference) if reference.uid != self.uid => Claim::Ignore,
            Some(_) if selected => Claim::Keep,
            Some(_) if self.deleting => Claim::Ignore,
            Some(_) => Claim::Release,
            None if self.deleting || !selected || child.deletion_timestamp.is_some() => {
                Claim::Ignore
            }
            None => Claim::Adopt,
        }
    }

    /// The patch that adopts `child`; the uid in it makes the server refuse a namesake.
    pub(crate) fn adopt_patch(&self, child: &ObjectMeta) -> Value {
        let mut patch =
            json!({"metadata": {"uid": child.uid, "ownerReferences": [self.reference()]}});
        if let Some(finalizer) = self.finalizer {
            patch["metadata"]["finalizers"] = json!([finalizer]);
        }
        patch
    }

    pub(crate) fn release_patch(&self, child: &ObjectMeta) -> Value {
        let mut patch = json!({"metadata": {
            "uid": child.uid,
            "ownerReferences": [{"$patch": "delete", "uid": self.uid}],
        }});
        if let Some(finalizer) = self.finalizer {
            patch["metadata"]["$deleteFromPrimitiveList/finalizers"] = json!([finalizer]);
        }
        patch
    }
}

pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .as_ref()?
        .iter()
        .find(|r| r.controller == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claim_table() {
        let owner = |deleting| Owner {
            api_version: "apps/v1",
            kind: "ReplicaSet",
            name: "rs".into(),
            namespace: "ns".into(),
            uid: "u1".into(),
            deleting,
            finalizer: None,
        };
        let child = |uid: Option<&str>| -> ObjectMeta {
            let refs = uid.map(|u| {
                json!([{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"x","uid":u,"controller":true}])
            });
            serde_json::from_value(json!({"namespace":"ns","ownerReferences":refs})).unwrap()
        };
        let cases = [
            (Some("u1"), true, false, Claim::Keep),
            (Some("u1"), false, false, Claim::Release),
            (Some("u1"), false, true, Claim::Ignore),
            (Some("u2"), true, false, Claim::Ignore),
            (None, true, false, Claim::Adopt),
            (None, true, true, Claim::Ignore),
            (None, false, false, Claim::Ignore),
        ];
        for (uid, selected, deleting, wanted) in cases {
            assert_eq!(
                owner(deleting).claim(&child(uid), selected),
                wanted,
                "{uid:?} {selected} {deleting}"
            );
        }
    }

    #[test]
    fn a_finalizer_comes_and_goes_with_the_reference() {
        let meta = ObjectMeta {
            uid: Some("u1".into()),
            ..ObjectMeta::default()
        };
        let owner = Owner::new("batch/v1", "Job", &meta).with_finalizer("x/y");
        let child = ObjectMeta::default();
        assert_eq!(
            owner.adopt_patch(&child)["metadata"]["finalizers"],
            json!(["x/y"])
        );
        assert_eq!(
            owner.release_patch(&child)["metadata"]["$deleteFromPrimitiveList/finalizers"],
            json!(["x/y"])
        );
    }
}
