//! The ConfigMaps and Secrets that pods of this node refer to: one narrow watch per object, shared
//! by its pods, ended with the last of them. A change pokes those pods.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use keelson_client::{Client, Informer, InformerOptions, Informers, Object};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::pod;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    ConfigMap,
    Secret,
}

type Key = (Kind, String, String);

enum Watch {
    ConfigMap(Informer<ConfigMap>),
    Secret(Informer<Secret>),
}

struct Entry {
    watch: Watch,
    users: BTreeSet<String>,
    stop: CancellationToken,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) struct Objects {
    client: Client,
    shutdown: CancellationToken,
    entries: Arc<Mutex<HashMap<Key, Entry>>>,
    changed: mpsc::UnboundedSender<Key>,
}

impl Objects {
    /// `poke` is called with a pod's uid when something it refers to has changed. Must be called
    /// within a tokio runtime.
    pub(crate) fn new(
        client: Client,
        shutdown: CancellationToken,
        poke: Arc<dyn Fn(&str) + Send + Sync>,
    ) -> Self {
        let (changed, mut changes) = mpsc::unbounded_channel::<Key>();
        let entries: Arc<Mutex<HashMap<Key, Entry>>> = Arc::default();
        let watched = entries.clone();
        // Informers call back under their own lock, which `register` takes under ours: the users are
        // looked up here instead, under no lock of an informer.
        tokio::spawn(async move {
            while let Some(key) = changes.recv().await {
                let users: Vec<String> = watched
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get(&key)
                    .map(|entry| entry.users.iter().cloned().collect())
                    .unwrap_or_default();
                for uid in users {
                    poke(&uid);
                }
            }
        });
        Self {
            client,
            shutdown,
            entries,
            changed,
        }
    }

    /// Watches exactly what this pod refers to.
    pub(crate) fn register(&self, pod: &Pod) {
        let uid = pod::uid(pod);
        let namespace = pod::namespace(pod);
        let wanted: BTreeSet<(Kind, String)> = references(pod);
        let mut entries = self.lock();
        entries.retain(|(kind, entry_namespace, name), entry| {
            let keep = entry_namespace == namespace && wanted.contains(&(*kind, name.clone()));
            if !keep {
                entry.users.remove(uid);
            }
            !entry.users.is_empty()
        });
        for (kind, name) in wanted {
            let key = (kind, namespace.to_owned(), name);
            let entry = entries
                .entry(key.clone())
                .or_insert_with(|| self.watch(&key));
            entry.users.insert(uid.to_owned());
        }
    }

    pub(crate) fn unregister(&self, uid: &str) {
        self.lock().retain(|_, entry| {
            entry.users.remove(uid);
            !entry.users.is_empty()
        });
    }

    /// `None` when it does not exist. Objects that no pod registered are read directly.
    pub(crate) async fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<ConfigMap>>, String> {
        let informer = match self
            .lock()
            .get(&(Kind::ConfigMap, namespace.to_owned(), name.to_owned()))
            .map(|e| &e.watch)
        {
            Some(Watch::ConfigMap(informer)) => Some(informer.clone()),
            _ => None,
        };
        self.read(informer, namespace, name).await
    }

    pub(crate) async fn secret(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Secret>>, String> {
        let informer = match self
            .lock()
            .get(&(Kind::Secret, namespace.to_owned(), name.to_owned()))
            .map(|e| &e.watch)
        {
            Some(Watch::Secret(informer)) => Some(informer.clone()),
            _ => None,
        };
        self.read(informer, namespace, name).await
    }

    async fn read<K: Object>(
        &self,
        informer: Option<Informer<K>>,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<K>>, String> {
        if let Some(object) = informer.and_then(|informer| informer.get(namespace, name)) {
            return Ok(Some(object));
        }
        // The watch may have just begun, or lag behind a pod created right after its objects.
        self.client
            .try_get::<K>(namespace, name)
            .await
            .map(|found| found.map(Arc::new))
            .map_err(|error| error.to_string())
    }

    fn watch(&self, key: &Key) -> Entry {
        let (kind, namespace, name) = key;
        let stop = self.shutdown.child_token();
        let informers = Informers::new(self.client.clone(), stop.clone());
        let options = InformerOptions {
            namespace: namespace.clone(),
            field_selector: format!("metadata.name={name}"),
            ..InformerOptions::default()
        };
        let watch = match kind {
            Kind::ConfigMap => Watch::ConfigMap(self.follow(&informers, options, key)),
            Kind::Secret => Watch::Secret(self.follow(&informers, options, key)),
        };
        Entry {
            watch,
            users: BTreeSet::new(),
            stop,
        }
    }

    fn follow<K: Object>(
        &self,
        informers: &Informers,
        options: InformerOptions,
        key: &Key,
    ) -> Informer<K> {
        let informer = informers.informer_with::<K>(options);
        let (changed, key) = (self.changed.clone(), key.clone());
        informer.subscribe(move |_| {
            // The receiver lives as long as the process.
            let _ = changed.send(key.clone());
        });
        informer
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every ConfigMap and Secret that a pod's containers, volumes and pull secrets name.
pub(crate) fn references(pod: &Pod) -> BTreeSet<(Kind, String)> {
    let mut found = BTreeSet::new();
    for (_, container) in pod::all_containers(pod) {
        let (config_maps, secrets) = pod::env::references(&container);
        found.extend(config_maps.into_iter().map(|name| (Kind::ConfigMap, name)));
        found.extend(secrets.into_iter().map(|name| (Kind::Secret, name)));
    }
    for secret in pod::spec(pod)
        .image_pull_secrets
        .as_deref()
        .unwrap_or_default()
    {
        found.insert((Kind::Secret, secret.name.clone()));
    }
    for volume in pod::spec(pod).volumes.as_deref().unwrap_or_default() {
        if let Some(source) = &volume.config_map {
            found.insert((Kind::ConfigMap, source.name.clone()));
        }
        if let Some(name) = volume
            .secret
            .as_ref()
            .and_then(|source| source.secret_name.clone())
        {
            found.insert((Kind::Secret, name));
        }
        for source in volume
            .projected
            .iter()
            .filter_map(|projected| projected.sources.as_deref())
            .flatten()
        {
            found.extend(
                source
                    .config_map
                    .iter()
                    .map(|s| (Kind::ConfigMap, s.name.clone())),
            );
            found.extend(source.secret.iter().map(|s| (Kind::Secret, s.name.clone())));
        }
    }
    found.retain(|(_, name)| !name.is_empty());
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn references_are_found_everywhere() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [{"name": "a", "configMap": {"name": "m1"}}, {"name": "b", "secret": {"secretName": "s1"}},
                {"name": "c", "projected": {"sources": [{"configMap": {"name": "m2"}}, {"secret": {"name": "s2"}}]}}],
            "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "s3"}}]}],
            "containers": [{"name": "c", "env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "m3", "key": "k"}}}]}]}}))
        .unwrap();
        let names: Vec<String> = references(&pod)
            .into_iter()
            .map(|(kind, name)| format!("{kind:?}/{name}"))
            .collect();
        assert_eq!(
            names,
            [
                "ConfigMap/m1",
                "ConfigMap/m2",
                "ConfigMap/m3",
                "Secret/pull",
                "Secret/s1",
                "Secret/s2",
                "Secret/s3"
            ]
        );
    }
}
