//! Storage objects stay as long as they are used, and claims grow only where their class lets
//! them.

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::Value;

use super::{AdmissionPlugin, Attributes, Cluster, Operation, quantity_of};

/// Volumes, claims and the classes of their attributes stay as long as they are used.
pub(super) struct StorageObjectInUseProtection;

#[async_trait]
impl AdmissionPlugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn admit(&self, attrs: &mut Attributes, _cluster: &Cluster) -> Result<(), Status> {
        let finalizer = if attrs.is("", "persistentvolumes") {
            "kubernetes.io/pv-protection"
        } else if attrs.is("", "persistentvolumeclaims") {
            "kubernetes.io/pvc-protection"
        } else if attrs.is("storage.k8s.io", "volumeattributesclasses") {
            "kubernetes.io/vac-protection"
        } else {
            return Ok(());
        };
        let Some(object) = attrs.object.as_mut() else {
            return Ok(());
        };
        let mut all: Vec<String> = meta::finalizers(object)
            .into_iter()
            .map(ToOwned::to_owned)
            .collect();
        if !all.iter().any(|f| f == finalizer) {
            all.push(finalizer.to_owned());
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            meta::set_finalizers(object, &all);
        }
        Ok(())
    }
}

/// A bound claim grows when its storage class says that volumes may.
pub(super) struct PersistentVolumeClaimResize;

#[async_trait]
impl AdmissionPlugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    async fn validate(&self, attrs: &Attributes, cluster: &Cluster) -> Result<(), Status> {
        if !attrs.is("", "persistentvolumeclaims") {
            return Ok(());
        }
        let (Some(claim), Some(old)) = (attrs.object.as_ref(), attrs.old_object.as_deref()) else {
            return Ok(());
        };
        let size = |claim: &Value| quantity_of(&claim["spec"]["resources"]["requests"]["storage"]);
        let grows = match (size(claim), size(old)) {
            (Some(now), Some(before)) => now > before,
            (Some(now), None) => !now.is_zero(),
            (None, _) => false,
        };
        if !grows {
            return Ok(());
        }
        if old["status"]["phase"] != "Bound" {
            return Err(attrs.forbidden("Only bound persistent volume claims can be expanded"));
        }
        let class = class_of(claim);
        let growable = !class.is_empty()
            && class == class_of(old)
            && cluster
                .objects
                .get("storage.k8s.io", "storageclasses", "", class)
                .is_some_and(|class| class["allowVolumeExpansion"] == true);
        if growable {
            return Ok(());
        }
        Err(attrs.forbidden(
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
        ))
    }
}

fn class_of(claim: &Value) -> &str {
    meta::annotation(claim, "volume.beta.kubernetes.io/storage-class")
        .or_else(|| claim["spec"]["storageClassName"].as_str())
        .unwrap_or_default()
}
