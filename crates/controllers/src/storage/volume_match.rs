//! Which PersistentVolume suits a claim. Pure.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use keelson_machinery::quantity::Quantity;
use keelson_semantics::label_selector;

use crate::pod;

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

fn bytes(quantity: Option<&ApiQuantity>) -> i64 {
    quantity
        .and_then(|q| Quantity::parse(&q.0).ok())
        .map_or(0, |q| q.value())
}

pub(crate) fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    pod::annotation(&claim.metadata, CLASS_ANNOTATION)
        .or_else(|| claim.spec.as_ref()?.storage_class_name.as_deref())
        .unwrap_or_default()
}

fn class_of_volume(volume: &PersistentVolume) -> &str {
    pod::annotation(&volume.metadata, CLASS_ANNOTATION)
        .or_else(|| volume.spec.as_ref()?.storage_class_name.as_deref())
        .unwrap_or_default()
}

/// Whether the reference names this very claim; a reference without uid was written by hand.
pub(crate) fn refers_to(reference: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    let uid = reference.uid.as_deref().unwrap_or_default();
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && (uid.is_empty() || Some(uid) == claim.metadata.uid.as_deref())
}

/// Whether the volume can serve the claim at all, taken or not.
pub(crate) fn suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(have), Some(want)) = (&volume.spec, &claim.spec) else {
        return false;
    };
    let mode = |m: &Option<String>| m.clone().unwrap_or_else(|| "Filesystem".to_owned());
    let requested = want
        .resources
        .as_ref()
        .and_then(|r| r.requests.as_ref())
        .and_then(|r| r.get("storage"));
    let offered = have.capacity.as_ref().and_then(|c| c.get("storage"));
    let modes = have.access_modes.as_deref().unwrap_or_default();
    bytes(offered) >= bytes(requested)
        && mode(&have.volume_mode) == mode(&want.volume_mode)
        && class_of_volume(volume) == class_of_claim(claim)
        && want
            .access_modes
            .iter()
            .flatten()
            .all(|m| modes.contains(m))
        && want
            .volume_attributes_class_name
            .as_deref()
            .unwrap_or_default()
            == have
                .volume_attributes_class_name
                .as_deref()
                .unwrap_or_default()
        && want
            .selector
            .as_ref()
            .is_none_or(|s| label_selector::matches(s, volume.metadata.labels.as_ref()))
}

/// The volume reserved for the claim, else the smallest free one that suits.
pub(crate) fn best<'a>(
    claim: &PersistentVolumeClaim,
    volumes: &'a [Arc<PersistentVolume>],
) -> Option<&'a Arc<PersistentVolume>> {
    let usable = || {
        volumes
            .iter()
            .filter(|v| v.metadata.deletion_timestamp.is_none())
    };
    let reference = |v: &PersistentVolume| v.spec.as_ref().and_then(|s| s.claim_ref.clone());
    let reserved = usable().find(|v| reference(v).is_some_and(|r| refers_to(&r, claim)));
    if reserved.is_some() {
        return reserved
            .filter(|v| suits(v, claim) || reference(v).is_some_and(|r| r.uid.is_some()));
    }
    usable()
        .filter(|v| reference(v).is_none() && suits(v, claim))
        .filter(|v| {
            v.status
                .as_ref()
                .and_then(|s| s.phase.as_deref())
                .is_none_or(|p| p == "Available" || p == "Pending")
        })
        .min_by_key(|v| {
            let capacity = v
                .spec
                .as_ref()
                .and_then(|s| s.capacity.as_ref())
                .and_then(|c| c.get("storage"));
            (bytes(capacity), v.metadata.name.clone())
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn volume(name: &str, size: &str, extra: Value) -> Arc<PersistentVolume> {
        let mut value = json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"]}});
        value["spec"]
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn claim(extra: Value) -> PersistentVolumeClaim {
        let mut value = json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}});
        value["spec"]
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        serde_json::from_value(value).unwrap()
    }

    fn chosen(claim: &PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>]) -> Option<String> {
        best(claim, volumes).and_then(|v| v.metadata.name.clone())
    }

    #[test]
    fn the_smallest_that_fits_or_the_one_reserved() {
        let volumes = [
            volume("small", "1Gi", json!({})),
            volume("large", "9Gi", json!({})),
            volume("fit", "3Gi", json!({})),
        ];
        assert_eq!(chosen(&claim(json!({})), &volumes).as_deref(), Some("fit"));
        let reserved = volume(
            "mine",
            "5Gi",
            json!({"claimRef": {"namespace": "n", "name": "c"}}),
        );
        assert_eq!(
            chosen(&claim(json!({})), &[volumes[2].clone(), reserved]).as_deref(),
            Some("mine")
        );
        let taken = volume(
            "theirs",
            "5Gi",
            json!({"claimRef": {"namespace": "n", "name": "other", "uid": "x"}}),
        );
        assert_eq!(chosen(&claim(json!({})), &[taken]), None);
    }

    #[test]
    fn class_mode_and_access_must_agree() {
        for extra in [
            json!({"storageClassName": "fast"}),
            json!({"volumeMode": "Block"}),
            json!({"accessModes": ["ReadWriteMany"]}),
            json!({"selector": {"matchLabels": {"a": "b"}}}),
        ] {
            assert_eq!(
                chosen(&claim(extra.clone()), &[volume("v", "5Gi", json!({}))]),
                None,
                "{extra}"
            );
        }
    }
}
