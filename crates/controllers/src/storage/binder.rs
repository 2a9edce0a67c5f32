//! Binds claims to volumes that an administrator has made. Making volumes on demand is left to
//! external provisioners, which watch claims themselves.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use keelson_client::{
    Controller, ControllerContext, Informer, Key, Outcome, ReconcileError, Watches,
};

use super::protection::{claim_users, index_by_claim};
use super::volume_match::{best, class_of_claim, refers_to, suits};
use crate::pod;

const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

pub(crate) struct PersistentVolumeBinder {
    context: ControllerContext,
    volumes: Informer<PersistentVolume>,
    claims: Informer<PersistentVolumeClaim>,
    classes: Informer<StorageClass>,
    pods: Informer<Pod>,
}

impl PersistentVolumeBinder {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        let this = Self {
            context: context.clone(),
            volumes: context.informer(),
            claims: context.informer(),
            classes: context.informer(),
            pods: context.informer(),
        };
        index_by_claim(&this.pods);
        this
    }

    async fn volume_phase(
        &self,
        volume: &PersistentVolume,
        phase: &str,
        message: Option<&str>,
    ) -> Result<(), ReconcileError> {
        let mut next = volume.clone();
        let status = next.status.get_or_insert_default();
        if status.phase.as_deref() == Some(phase) && status.message.as_deref() == message {
            return Ok(());
        }
        status.phase = Some(phase.to_owned());
        status.message = message.map(str::to_owned);
        match self.context.client.update_status(&next).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn claim_phase(
        &self,
        claim: &PersistentVolumeClaim,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<(), ReconcileError> {
        let mut next = claim.clone();
        let status = next.status.get_or_insert_default();
        status.phase = Some(phase.to_owned());
        match volume.and_then(|v| v.spec.as_ref()) {
            Some(spec) => {
                status.access_modes.clone_from(&spec.access_modes);
                status.capacity.clone_from(&spec.capacity);
            }
            None if phase == "Pending" => {
                status.access_modes = None;
                status.capacity = None;
            }
            None => {}
        }
        if next.status == claim.status {
            return Ok(());
        }
        match self.context.client.update_status(&next).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn sync_volume(&self, volume: &PersistentVolume) -> Result<Outcome, ReconcileError> {
        let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else {
            self.volume_phase(volume, "Available", None).await?;
            return Ok(Outcome::Done);
        };
        let uid = reference.uid.as_deref().unwrap_or_default();
        if uid.is_empty() {
            self.volume_phase(volume, "Available", None).await?;
            return Ok(Outcome::Done);
        }
        let (namespace, name) = (
            reference.namespace.as_deref().unwrap_or_default(),
            reference.name.as_deref().unwrap_or_default(),
        );
        let claim = match self.claims.get(namespace, name) {
            Some(claim) => Some(PersistentVolumeClaim::clone(&claim)),
            // A volume is released for good: that is decided on the newest state only.
            None => {
                self.context
                    .client
                    .try_get::<PersistentVolumeClaim>(namespace, name)
                    .await?
            }
        };
        match claim.filter(|c| c.metadata.uid.as_deref() == Some(uid)) {
            Some(claim) => {
                let chosen = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref());
                if chosen == volume.metadata.name.as_deref() {
                    self.volume_phase(volume, "Bound", None).await?;
                }
                Ok(Outcome::Done)
            }
            None => self.release(volume).await,
        }
    }

    async fn release(&self, volume: &PersistentVolume) -> Result<Outcome, ReconcileError> {
        let policy = volume
            .spec
            .as_ref()
            .and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
        let external = pod::annotation(&volume.metadata, PROVISIONED_BY).is_some();
        let failed = volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Failed");
        match policy {
            Some("Delete" | "Recycle") if !external => {
                let message = "no volume plugin matched";
                if !failed {
                    self.context
                        .events
                        .warning(volume, "VolumeFailedDelete", message);
                }
                self.volume_phase(volume, "Failed", Some(message)).await?;
            }
            _ => self.volume_phase(volume, "Released", None).await?,
        }
        Ok(Outcome::Done)
    }

    async fn sync_claim(&self, claim: &PersistentVolumeClaim) -> Result<Outcome, ReconcileError> {
        let chosen = claim
            .spec
            .as_ref()
            .and_then(|s| s.volume_name.as_deref())
            .filter(|n| !n.is_empty());
        if pod::annotation(&claim.metadata, BIND_COMPLETED).is_some() {
            return self.sync_bound(claim, chosen).await;
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        let volume = match chosen {
            Some(name) => {
                let Some(volume) = self.volumes.get("", name) else {
                    self.claim_phase(claim, "Pending", None).await?;
                    return Ok(Outcome::Done);
                };
                let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.clone());
                let free = reference.is_none_or(|r| refers_to(&r, claim));
                if !free || !suits(&volume, claim) {
                    let message = format!(
                        "volume {name:?} already bound to a different claim or does not satisfy this one."
                    );
                    self.context.events.warning(claim, "FailedBinding", message);
                    self.claim_phase(claim, "Pending", None).await?;
                    return Ok(Outcome::Done);
                }
                Some(volume)
            }
            None if self.waits_for_consumer(claim) => {
                let message = "waiting for first consumer to be created before binding";
                self.context
                    .events
                    .normal(claim, "WaitForFirstConsumer", message);
                None
            }
            None => {
                let found = best(claim, &self.volumes.list()).cloned();
                if found.is_none() {
                    return self.without_volume(claim).await;
                }
                found
            }
        };
        match volume {
            Some(volume) => self.bind(claim, &volume).await,
            None => {
                self.claim_phase(claim, "Pending", None).await?;
                Ok(Outcome::Done)
            }
        }
    }

    fn waits_for_consumer(&self, claim: &PersistentVolumeClaim) -> bool {
        let class = self.classes.get("", class_of_claim(claim));
        let waits =
            class.is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
        waits
            && pod::annotation(&claim.metadata, SELECTED_NODE).is_none()
            && claim_users(&self.pods, &claim.metadata).is_empty()
    }

    async fn without_volume(
        &self,
        claim: &PersistentVolumeClaim,
    ) -> Result<Outcome, ReconcileError> {
        let class = class_of_claim(claim);
        match self.classes.get("", class) {
            Some(class) if class.provisioner != "kubernetes.io/no-provisioner" => {
                let provisioner = class.provisioner.clone();
                let mut current = claim.clone();
                if pod::annotation(&claim.metadata, PROVISIONER) != Some(&provisioner) {
                    current
                        .metadata
                        .annotations
                        .get_or_insert_with(BTreeMap::new)
                        .insert(PROVISIONER.to_owned(), provisioner.clone());
                    current = self.context.client.update(&current).await?;
                }
                let message = format!(
                    "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator."
                );
                self.context
                    .events
                    .normal(claim, "ExternalProvisioning", message);
                self.claim_phase(&current, "Pending", None).await?;
            }
            Some(_) => {
                let message = "no persistent volumes available for this claim and the storage class provisions none";
                self.context.events.normal(claim, "FailedBinding", message);
                self.claim_phase(claim, "Pending", None).await?;
            }
            None if class.is_empty() => {
                let message =
                    "no persistent volumes available for this claim and no storage class is set";
                self.context.events.normal(claim, "FailedBinding", message);
                self.claim_phase(claim, "Pending", None).await?;
            }
            None => {
                let message = format!("storageclass.storage.k8s.io {class:?} not found");
                self.context
                    .events
                    .warning(claim, "ProvisioningFailed", message);
                self.claim_phase(claim, "Pending", None).await?;
            }
        }
        Ok(Outcome::Done)
    }

    /// Four writes, in this order, each of which can be repeated: the volume's reference makes the
    /// choice, everything else follows from it.
    async fn bind(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<Outcome, ReconcileError> {
        let mut bound = volume.clone();
        let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
        if reference.and_then(|r| r.uid.as_ref()) != claim.metadata.uid.as_ref() {
            if reference.is_none() {
                mark(&mut bound.metadata.annotations, BOUND_BY_CONTROLLER);
            }
            bound.spec.get_or_insert_default().claim_ref = Some(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("PersistentVolumeClaim".into()),
                name: claim.metadata.name.clone(),
                namespace: claim.metadata.namespace.clone(),
                uid: claim.metadata.uid.clone(),
                resource_version: claim.metadata.resource_version.clone(),
                field_path: None,
            });
            bound = self.context.client.update(&bound).await?;
        }
        let mut next = claim.clone();
        let spec = next.spec.get_or_insert_default();
        if spec.volume_name.as_deref().unwrap_or_default().is_empty() {
            spec.volume_name.clone_from(&volume.metadata.name);
            mark(&mut next.metadata.annotations, BOUND_BY_CONTROLLER);
        }
        mark(&mut next.metadata.annotations, BIND_COMPLETED);
        let next = self.context.client.update(&next).await?;
        self.volume_phase(&bound, "Bound", None).await?;
        self.claim_phase(&next, "Bound", Some(volume)).await?;
        Ok(Outcome::Done)
    }

    async fn sync_bound(
        &self,
        claim: &PersistentVolumeClaim,
        chosen: Option<&str>,
    ) -> Result<Outcome, ReconcileError> {
        let volume: Option<Arc<PersistentVolume>> =
            chosen.and_then(|name| self.volumes.get("", name));
        let lost = match &volume {
            None => Some("Bound claim has lost its PersistentVolume. Data on the volume is lost!"),
            Some(volume) => {
                let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
                match reference {
                    None => return self.bind(claim, volume).await,
                    Some(reference) if refers_to(reference, claim) => None,
                    Some(_) => Some(
                        "Two claims are bound to the same volume, this one is bound incorrectly",
                    ),
                }
            }
        };
        match lost {
            None => self.claim_phase(claim, "Bound", volume.as_deref()).await?,
            Some(message) => {
                let known = claim.status.as_ref().and_then(|s| s.phase.as_deref());
                if known != Some("Lost") {
                    self.context.events.warning(claim, "ClaimLost", message);
                }
                self.claim_phase(claim, "Lost", None).await?;
            }
        }
        Ok(Outcome::Done)
    }
}

fn mark(annotations: &mut Option<BTreeMap<String, String>>, key: &str) {
    annotations
        .get_or_insert_with(BTreeMap::new)
        .insert(key.to_owned(), "yes".to_owned());
}

#[async_trait]
impl Controller for PersistentVolumeBinder {
    fn name(&self) -> &'static str {
        "persistentvolume-binder-controller"
    }

    /// One, so that no volume is promised twice.
    fn workers(&self) -> usize {
        1
    }

    fn watch(&self, watches: &mut Watches) {
        watches.primary(&self.volumes);
        watches.primary(&self.claims);
        // A new volume may be what waiting claims wait for.
        let claims = self.claims.clone();
        watches.mapped(&self.volumes, move |change| {
            let reference = change
                .object()
                .spec
                .as_ref()
                .and_then(|s| s.claim_ref.as_ref());
            match reference {
                Some(r) => vec![Key::new(
                    r.namespace.clone().unwrap_or_default(),
                    r.name.clone().unwrap_or_default(),
                )],
                None => claims
                    .list()
                    .iter()
                    .filter(|c| pod::annotation(&c.metadata, BIND_COMPLETED).is_none())
                    .map(|c| Key::of(&c.metadata))
                    .collect(),
            }
        });
        // A claim that goes releases its volume.
        watches.mapped(&self.claims, |change| {
            let volume = change
                .object()
                .spec
                .as_ref()
                .and_then(|s| s.volume_name.clone());
            volume
                .filter(|v| !v.is_empty())
                .map(|v| Key::new("", v))
                .into_iter()
                .collect()
        });
        // The first pod that uses a claim may be what its class waits for.
        watches.mapped(&self.pods, |change| {
            if change.old().is_some() {
                return Vec::new();
            }
            super::protection::claim_keys(change.object())
        });
        let claims = self.claims.clone();
        watches.mapped(&self.classes, move |_| {
            let unbound =
                |c: &PersistentVolumeClaim| pod::annotation(&c.metadata, BIND_COMPLETED).is_none();
            claims
                .list()
                .iter()
                .filter(|c| unbound(c))
                .map(|c| Key::of(&c.metadata))
                .collect()
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        if key.namespace.is_empty() {
            return match self.volumes.get("", &key.name) {
                Some(volume) => self.sync_volume(&volume).await,
                None => Ok(Outcome::Done),
            };
        }
        match self.claims.get(&key.namespace, &key.name) {
            Some(claim) => self.sync_claim(&claim).await,
            None => Ok(Outcome::Done),
        }
    }
}
