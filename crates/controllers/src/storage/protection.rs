//! Claims and volumes in use are not removed under the feet of their users: a finalizer holds them.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::{
    Client, Controller, ControllerContext, Informer, Key, Object, Outcome, ReconcileError, Watches,
};

use crate::pod;

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";
const CLASS_FINALIZER: &str = "kubernetes.io/vac-protection";

/// The claims that a pod uses, its ephemeral volumes' too.
pub(crate) fn claim_keys(p: &Pod) -> Vec<Key> {
    let namespace = pod::namespace(&p.metadata);
    p.spec
        .iter()
        .flat_map(|s| s.volumes.iter().flatten())
        .filter_map(|v| {
            if let Some(claim) = &v.persistent_volume_claim {
                return Some(Key::new(namespace, &*claim.claim_name));
            }
            v.ephemeral
                .as_ref()
                .map(|_| Key::new(namespace, format!("{}-{}", pod::name(&p.metadata), v.name)))
        })
        .collect()
}

/// Pods by `namespace/claim`.
pub(crate) fn index_by_claim(pods: &Informer<Pod>) {
    pods.add_index("claim", |p| {
        claim_keys(p).iter().map(Key::to_string).collect()
    });
}

pub(crate) fn claim_users(pods: &Informer<Pod>, claim: &ObjectMeta) -> Vec<Arc<Pod>> {
    pods.by_index("claim", &Key::of(claim).to_string())
}

fn has(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|f| f == finalizer)
}

/// Sets or clears the finalizer by what the object's state asks for.
async fn settle<K: Object>(
    client: &Client,
    object: &K,
    finalizer: &str,
    in_use: bool,
) -> Result<Outcome, ReconcileError> {
    let meta = object.metadata();
    let deleting = meta.deletion_timestamp.is_some();
    let mut next = object.clone();
    let finalizers = next.metadata_mut().finalizers.get_or_insert_default();
    if deleting && has(meta, finalizer) && !in_use {
        finalizers.retain(|f| f != finalizer);
    } else if !deleting && !has(meta, finalizer) {
        finalizers.push(finalizer.to_owned());
    } else {
        return Ok(Outcome::Done);
    }
    match client.update(&next).await {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(Outcome::Done),
    }
}

pub(crate) struct ClaimProtectionController {
    client: Client,
    claims: Informer<PersistentVolumeClaim>,
    pods: Informer<Pod>,
}

impl ClaimProtectionController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        let this = Self {
            client: context.client.clone(),
            claims: context.informer(),
            pods: context.informer(),
        };
        index_by_claim(&this.pods);
        this
    }
}

#[async_trait]
impl Controller for ClaimProtectionController {
    fn name(&self) -> &'static str {
        "persistentvolumeclaim-protection-controller"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.primary(&self.claims);
        let claims = self.claims.clone();
        watches.mapped(&self.pods, move |change| {
            // Only a claim that is being deleted waits for its pods.
            let waits = |key: &Key| {
                claims
                    .get(&key.namespace, &key.name)
                    .is_some_and(|c| c.metadata.deletion_timestamp.is_some())
            };
            claim_keys(change.object())
                .into_iter()
                .filter(waits)
                .collect()
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let Some(claim) = self.claims.get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        // Only a scheduled pod can have the volume mounted.
        let in_use = claim_users(&self.pods, &claim.metadata)
            .iter()
            .any(|p| pod::node_name(p).is_some() && !pod::is_terminal(p));
        settle(&self.client, &*claim, CLAIM_FINALIZER, in_use).await
    }
}

pub(crate) struct VolumeProtectionController {
    client: Client,
    volumes: Informer<PersistentVolume>,
}

impl VolumeProtectionController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        Self {
            client: context.client.clone(),
            volumes: context.informer(),
        }
    }
}

#[async_trait]
impl Controller for VolumeProtectionController {
    fn name(&self) -> &'static str {
        "persistentvolume-protection-controller"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.primary(&self.volumes);
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let Some(volume) = self.volumes.get("", &key.name) else {
            return Ok(Outcome::Done);
        };
        let in_use = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        settle(&self.client, &*volume, VOLUME_FINALIZER, in_use).await
    }
}

/// Classes of volume attributes are kept while a claim has one, had one or is on the way to one, or
/// a volume has it.
pub(crate) struct AttributesClassProtectionController {
    client: Client,
    classes: Informer<VolumeAttributesClass>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
}

/// The classes that a claim names.
fn classes_of_claim(claim: &PersistentVolumeClaim) -> Vec<String> {
    let wanted = claim
        .spec
        .as_ref()
        .and_then(|s| s.volume_attributes_class_name.clone());
    let status = claim.status.as_ref();
    let current = status.and_then(|s| s.current_volume_attributes_class_name.clone());
    let target = status
        .and_then(|s| s.modify_volume_status.as_ref())
        .and_then(|s| s.target_volume_attributes_class_name.clone());
    [wanted, current, target].into_iter().flatten().collect()
}

fn class_of_volume(volume: &PersistentVolume) -> Option<String> {
    volume.spec.as_ref()?.volume_attributes_class_name.clone()
}

impl AttributesClassProtectionController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        let this = Self {
            client: context.client.clone(),
            classes: context.informer(),
            claims: context.informer(),
            volumes: context.informer(),
        };
        this.claims.add_index("attributes class", classes_of_claim);
        this.volumes.add_index("attributes class", |volume| {
            class_of_volume(volume).into_iter().collect()
        });
        this
    }
}

#[async_trait]
impl Controller for AttributesClassProtectionController {
    fn name(&self) -> &'static str {
        "volumeattributesclass-protection-controller"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.primary(&self.classes);
        let key = |name: String| Key::new("", name);
        // Who leaves a class lets it go: the classes before the change count as well.
        watches.mapped(&self.claims, move |change| {
            let both = change.old().into_iter().chain([change.object()]);
            both.flat_map(|claim| classes_of_claim(claim))
                .map(key)
                .collect()
        });
        watches.mapped(&self.volumes, move |change| {
            let both = change.old().into_iter().chain([change.object()]);
            both.filter_map(|v| class_of_volume(v)).map(key).collect()
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let Some(class) = self.classes.get("", &key.name) else {
            return Ok(Outcome::Done);
        };
        let in_use = !self
            .claims
            .by_index("attributes class", &key.name)
            .is_empty()
            || !self
                .volumes
                .by_index("attributes class", &key.name)
                .is_empty();
        settle(&self.client, &*class, CLASS_FINALIZER, in_use).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_of_a_pod() {
        let p: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": [], "volumes": [
                {"name": "a", "persistentVolumeClaim": {"claimName": "c"}},
                {"name": "b", "ephemeral": {}},
                {"name": "d", "emptyDir": {}},
            ]},
        }))
        .unwrap();
        let keys: Vec<_> = claim_keys(&p).iter().map(Key::to_string).collect();
        assert_eq!(keys, ["n/c", "n/p-b"]);
    }
}
