//! The registry as the server's own parts see it: caches to read, writes past admission.

use std::sync::Arc;

use async_trait::async_trait;
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::Value;

use super::change::Change;
use super::options::{DeleteOptions, FieldValidation, WriteOptions};
use super::resources::ResourceEntry;
use super::write::Write;
use super::{Registry, codec};
use crate::objects::Objects;
use crate::request::{Annotations, UserInfo, Warnings};

/// The manager of fields that the server itself sets.
const MANAGER: &str = "kube-apiserver";

impl Registry {
    fn stored(&self, group: &str, resource: &str) -> Result<Arc<ResourceEntry>, Status> {
        self.resources
            .any_version(group, resource)
            .ok_or_else(Status::path_not_found)
    }
}

fn internal_options() -> WriteOptions {
    WriteOptions {
        given: Vec::new(),
        dry_run: false,
        field_manager: MANAGER.to_owned(),
        field_validation: FieldValidation::Ignore,
        force: None,
    }
}

fn internal<'a>(
    entry: &'a ResourceEntry,
    namespace: &'a str,
    name: &'a str,
    options: &'a WriteOptions,
) -> Write<'a> {
    Write {
        entry,
        namespace,
        name,
        subresource: "",
        rules_path: "",
        user: Arc::new(UserInfo::admin("system:apiserver")),
        warnings: Warnings::default(),
        annotations: Annotations::default(),
        options,
        admission: false,
    }
}

#[async_trait]
impl Objects for Registry {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let cache = self.caches.get(group, resource)?;
        let object = cache.get(namespace, name)?;
        Some(cache.decode(&object))
    }

    fn list(&self, group: &str, resource: &str, namespace: &str) -> Vec<Arc<Value>> {
        let Some(cache) = self.caches.get(group, resource) else {
            return Vec::new();
        };
        cache
            .list(namespace)
            .iter()
            .map(|object| cache.decode(object))
            .collect()
    }

    fn count(&self, group: &str, resource: &str, namespace: &str) -> usize {
        let cache = self.caches.get(group, resource);
        cache.map_or(0, |cache| cache.count(namespace))
    }

    async fn read(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, Status> {
        let entry = self.stored(group, resource)?;
        match Registry::get(self, &entry, namespace, name).await {
            Ok(kv) => codec::parse(&kv.value).map(Some),
            Err(status) if status.is_not_found() => Ok(None),
            Err(status) => Err(status),
        }
    }

    async fn create(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        object: Value,
    ) -> Result<Value, Status> {
        let entry = self.stored(group, resource)?;
        let mut object = object;
        codec::finish_object(&entry, &mut object)?;
        entry.to_storage(&mut object)?;
        let options = internal_options();
        let written =
            Registry::create(self, &internal(&entry, namespace, "", &options), object).await?;
        codec::parse(&written.bytes)
    }

    async fn update(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        object: Value,
    ) -> Result<Value, Status> {
        let entry = self.stored(group, resource)?;
        let mut object = object;
        codec::finish_object(&entry, &mut object)?;
        entry.to_storage(&mut object)?;
        let name = meta::name(&object).to_owned();
        let options = internal_options();
        let status = object.get("status").cloned();
        let write = internal(&entry, namespace, &name, &options);
        let written = Registry::update(self, &write, &Change::Replace(object)).await?;
        let Some(status) = status.filter(|_| entry.subresource("status").is_some()) else {
            return codec::parse(&written.bytes);
        };
        // The second step holds on to what the first one left, or a write between them is lost.
        let seen = codec::parse(&written.bytes)?;
        let version = meta::resource_version(&seen).to_owned();
        let with_status = move |old: &Value| {
            let mut new = old.clone();
            meta::set_resource_version(&mut new, &version);
            new["status"] = status.clone();
            Ok(new)
        };
        let write = Write {
            subresource: "status",
            rules_path: "status",
            ..internal(&entry, namespace, &name, &options)
        };
        let written = Registry::update(self, &write, &Change::Transform(&with_status)).await?;
        codec::parse(&written.bytes)
    }

    async fn delete(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<(), Status> {
        let entry = self.stored(group, resource)?;
        let options = internal_options();
        Registry::delete(
            self,
            &internal(&entry, namespace, name, &options),
            &DeleteOptions::default(),
        )
        .await
        .map(|_| ())
    }

    fn changes(&self, group: &str, resource: &str) -> tokio::sync::watch::Receiver<u64> {
        match self.caches.get(group, resource) {
            Some(cache) => cache.subscribe(),
            // Nothing can change; the receiver sees a closed channel.
            None => tokio::sync::watch::channel(0).1,
        }
    }

    fn resource(&self, group: &str, version: &str, resource: &str) -> Option<Arc<ResourceEntry>> {
        self.resources.lookup(group, version, resource)
    }

    fn resource_of_kind(
        &self,
        group: &str,
        version: &str,
        kind: &str,
    ) -> Option<Arc<ResourceEntry>> {
        self.resources.of_kind(group, version, kind)
    }

    fn forms(&self, group: &str, resource: &str) -> Vec<Arc<ResourceEntry>> {
        self.resources.forms(group, resource)
    }

    fn is_served(&self, group: &str, version: &str, resource: &str) -> bool {
        self.resources.lookup(group, version, resource).is_some()
    }
}
