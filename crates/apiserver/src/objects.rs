//! What the server's own parts (authentication, RBAC, admission, bootstrap, CRDs) may do with
//! stored objects: read the watch caches without waiting, and write past admission.

use std::sync::Arc;

use async_trait::async_trait;
use keelson_machinery::status::Status;
use serde_json::Value;

use crate::registry::ResourceEntry;

/// A resource by group and plural name; the stored version is the registry's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResourceName {
    pub group: &'static str,
    pub resource: &'static str,
}

/// Objects are in their storage version. `namespace` is empty for cluster-scoped kinds.
#[async_trait]
pub trait Objects: Send + Sync {
    /// From the watch cache; may lag the store by an instant.
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>>;

    /// From the watch cache; an empty namespace lists all.
    fn list(&self, group: &str, resource: &str, namespace: &str) -> Vec<Arc<Value>>;

    /// How many there are in the watch cache, without looking at them.
    fn count(&self, group: &str, resource: &str, namespace: &str) -> usize;

    /// From the store: sees every acknowledged write.
    async fn read(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, Status>;

    /// Creates without authorization or admission; defaults and validates.
    async fn create(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        object: Value,
    ) -> Result<Value, Status>;

    /// Replaces spec, metadata and status together when the object's resourceVersion still holds.
    async fn update(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        object: Value,
    ) -> Result<Value, Status>;

    async fn delete(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<(), Status>;

    /// Wakes whenever an object of the resource changes; the receiver may miss steps but never
    /// the last one.
    fn changes(&self, group: &str, resource: &str) -> tokio::sync::watch::Receiver<u64>;

    /// A served resource.
    fn resource(&self, group: &str, version: &str, resource: &str) -> Option<Arc<ResourceEntry>>;

    /// The resource whose objects are of that kind.
    fn resource_of_kind(
        &self,
        group: &str,
        version: &str,
        kind: &str,
    ) -> Option<Arc<ResourceEntry>>;

    /// All served forms of a resource: its versions, in every group that shows the same objects.
    fn forms(&self, group: &str, resource: &str) -> Vec<Arc<ResourceEntry>>;

    /// The served resources.
    fn is_served(&self, group: &str, version: &str, resource: &str) -> bool;
}
