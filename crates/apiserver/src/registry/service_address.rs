//! IPAddress objects: each cluster IP is claimed by creating the one of its name before the Service
//! is written, so that two writers, on two servers even, cannot be given the same. Whoever does not
//! get to write gives the claim back; a sweep mends what a crash left.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use futures::future::BoxFuture;
use keelson_machinery::status::Status;
use keelson_machinery::{meta, time};
use keelson_store::{Expect, Revision, SharedStore};
use serde_json::{Value, json};

use super::options::{FieldValidation, WriteOptions};
use super::resources::ResourceEntry;
use super::service_ip::{Reservation, addresses_of, family_of, is_service};
use super::write::{Write, Written, store_error};
use super::{Registry, codec};
use crate::objects::Objects;
use crate::request::{UserInfo, Warnings};

const GROUP: &str = "networking.k8s.io";
const RESOURCE: &str = "ipaddresses";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";
/// Rounds of choosing anew because another server was faster.
const ATTEMPTS: usize = 16;
/// A claim may be ahead of its Service for this long, seconds.
const GRACE_S: i64 = 60;

/// What a Service was given, until its write is over.
pub(crate) struct Allocation {
    _reservation: Reservation,
    claims: Claims,
}

impl Allocation {
    /// The Service has been written.
    pub(crate) fn keep(mut self) {
        self.claims.keys.clear();
    }
}

/// IPAddresses created for a Service that is not written yet.
struct Claims {
    store: SharedStore,
    keys: Vec<(String, Revision)>,
}

impl Drop for Claims {
    fn drop(&mut self) {
        if self.keys.is_empty() {
            return;
        }
        let (store, keys) = (Arc::clone(&self.store), std::mem::take(&mut self.keys));
        tokio::spawn(async move {
            for (key, revision) in keys {
                // The sweep finds what cannot be given back now.
                if let Err(error) = store.delete(&key, Expect::Revision(revision)).await {
                    tracing::debug!(%key, %error, "an address was not given back");
                }
            }
        });
    }
}

impl Registry {
    /// Completes a Service that is about to be written; other kinds pass untouched.
    pub(super) async fn allocate(
        &self,
        write: &Write<'_>,
        object: Value,
        old: Option<&Value>,
    ) -> Result<(Value, Option<Allocation>), Status> {
        if !is_service(write.entry) {
            return Ok((object, None));
        }
        for _ in 0..ATTEMPTS {
            let mut filled = object.clone();
            let shared = !write.admission;
            let reserved = self.services.reserve(write.entry, &mut filled, old, shared);
            let Some(reservation) = reserved? else {
                return Ok((filled, None));
            };
            let mut claims = Claims {
                store: Arc::clone(&self.store),
                keys: Vec::new(),
            };
            if write.options.dry_run
                || self
                    .claim(&mut claims, &filled, reservation.addresses(), shared)
                    .await?
            {
                let allocation = Allocation {
                    _reservation: reservation,
                    claims,
                };
                return Ok((filled, Some(allocation)));
            }
            // The claim of the one who was faster is in the cache when this returns.
            self.caches.wait_current().await?;
        }
        Err(Status::internal(
            "failed to allocate a serviceIP: range is full",
        ))
    }

    /// Whether all addresses could be had.
    async fn claim(
        &self,
        claims: &mut Claims,
        service: &Value,
        addresses: impl Iterator<Item = IpAddr>,
        shared: bool,
    ) -> Result<bool, Status> {
        let Some(entry) = self.resources.any_version(GROUP, RESOURCE) else {
            return Ok(true);
        };
        let addresses: Vec<IpAddr> = addresses.collect();
        for address in addresses {
            match self.create_address(&entry, service, address).await {
                Ok(written) => {
                    let object = codec::parse(&written.bytes)?;
                    let revision = meta::resource_version(&object).parse().unwrap_or(0);
                    let key = self.key(&entry, "", &address.to_string());
                    claims.keys.push((key, revision));
                }
                Err(status) if status.is_already_exists() => {
                    let claimed = address.to_string();
                    let claim = Objects::read(self, GROUP, RESOURCE, "", &claimed);
                    let (namespace, name) = (meta::namespace(service), meta::name(service));
                    let own = claim
                        .await?
                        .is_some_and(|claim| is_owner(&claim, namespace, name));
                    if !(shared && own) {
                        return Ok(false);
                    }
                }
                Err(status) => return Err(status),
            }
        }
        Ok(true)
    }

    /// Boxed, since creating an object may lead here again.
    fn create_address<'a>(
        &'a self,
        entry: &'a ResourceEntry,
        service: &'a Value,
        address: IpAddr,
    ) -> BoxFuture<'a, Result<Written, Status>> {
        Box::pin(async move {
            let options = WriteOptions {
                kind: "CreateOptions",
                dry_run: false,
                field_manager: "kube-apiserver".to_owned(),
                field_validation: FieldValidation::Ignore,
                force: None,
            };
            let write = Write {
                entry,
                namespace: "",
                name: "",
                subresource: "",
                rules_path: "",
                user: Arc::new(UserInfo::admin("system:apiserver")),
                warnings: Warnings::default(),
                annotations: Default::default(),
                options: &options,
                admission: false,
            };
            self.create(&write, address_object(service, address)).await
        })
    }

    /// Gives back what a Service had and has no more; `kept` is its new state, if there is one.
    pub(super) async fn release_addresses(
        &self,
        old: &Value,
        kept: Option<&Value>,
    ) -> Result<(), Status> {
        let Some(entry) = self.resources.any_version(GROUP, RESOURCE) else {
            return Ok(());
        };
        let kept: HashSet<IpAddr> = kept
            .map(addresses_of)
            .unwrap_or_default()
            .into_iter()
            .collect();
        let gone: HashSet<IpAddr> = addresses_of(old).into_iter().collect();
        for address in gone.difference(&kept) {
            let key = self.key(&entry, "", &address.to_string());
            let Some(found) = self.store.get(&key, 0).await.map_err(store_error)? else {
                continue;
            };
            let owner = codec::parse(&found.value)?;
            if is_owner(&owner, meta::namespace(old), meta::name(old)) {
                let expect = Expect::Revision(found.mod_revision);
                if let Ok((revision, _)) = self.store.delete(&key, expect).await {
                    self.caches.wait(revision).await?;
                }
            }
        }
        Ok(())
    }

    /// Mends what a crash between two writes left: Services whose address nobody claimed, claims
    /// whose Service is gone. Run at the start and every few minutes.
    pub async fn repair_addresses(&self) -> Result<(), Status> {
        let Some(entry) = self.resources.any_version(GROUP, RESOURCE) else {
            return Ok(());
        };
        self.caches.wait_current().await?;
        let mut owners: HashMap<IpAddr, Arc<Value>> = HashMap::new();
        for service in Objects::list(self, "", "services", "") {
            for address in addresses_of(&service) {
                if let Some(other) = owners.insert(address, Arc::clone(&service))
                    && meta::uid(&other) != meta::uid(&service)
                {
                    let text = format!(
                        "Cluster IP [{}]: {address} was assigned to multiple services; please recreate service",
                        family_of(address)
                    );
                    self.report(&service, "ClusterIPAlreadyAllocated", &text)
                        .await;
                }
            }
        }
        let claims = Objects::list(self, GROUP, RESOURCE, "");
        let claimed: HashSet<&str> = claims.iter().map(|claim| meta::name(claim)).collect();
        for (address, service) in &owners {
            if claimed.contains(address.to_string().as_str()) {
                continue;
            }
            let text = format!(
                "Cluster IP [{}]: {address} is not allocated; repairing",
                family_of(*address)
            );
            self.report(service, "ClusterIPNotAllocated", &text).await;
            match self.create_address(&entry, service, *address).await {
                Err(status) if !status.is_already_exists() => return Err(status),
                _ => {}
            }
        }
        let now = time::now_unix();
        for claim in claims.iter().filter(|claim| is_ours(claim)) {
            let name = meta::name(claim);
            let held = name
                .parse()
                .ok()
                .and_then(|address: IpAddr| owners.get(&address))
                .is_some_and(|s| is_owner(claim, meta::namespace(s), meta::name(s)));
            let age_s = meta::creation_timestamp(claim)
                .and_then(time::parse_unix)
                .map_or(0, |at| now - at);
            if !held && age_s > GRACE_S {
                tracing::info!(
                    address = name,
                    "an address without its Service is given back"
                );
                Objects::delete(self, GROUP, RESOURCE, "", name).await?;
            }
        }
        Ok(())
    }

    async fn report(&self, service: &Value, reason: &str, text: &str) {
        tracing::warn!(service = meta::name(service), reason, text);
        let now = time::now();
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {
                "name": format!("{}.{:016x}", meta::name(service), rand::random::<u64>()),
                "namespace": meta::namespace(service),
            },
            "involvedObject": {
                "apiVersion": "v1", "kind": "Service", "name": meta::name(service),
                "namespace": meta::namespace(service), "uid": meta::uid(service),
            },
            "type": "Warning", "reason": reason, "message": text, "count": 1,
            "firstTimestamp": now, "lastTimestamp": now,
            "source": {"component": "ipallocator-repair-controller"},
            "reportingComponent": "ipallocator-repair-controller",
        });
        let namespace = meta::namespace(service);
        if let Err(error) = Objects::create(self, "", "events", namespace, event).await {
            tracing::warn!(%error, "an event was not written");
        }
    }
}

fn address_object(service: &Value, address: IpAddr) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {
            "name": address.to_string(),
            "labels": {FAMILY: family_of(address), MANAGED_BY: ALLOCATOR},
        },
        "spec": {"parentRef": {
            "resource": "services",
            "namespace": meta::namespace(service),
            "name": meta::name(service),
        }},
    })
}

pub(super) fn is_owner(claim: &Value, namespace: &str, name: &str) -> bool {
    let parent = &claim["spec"]["parentRef"];
    parent["group"].as_str().unwrap_or_default().is_empty()
        && parent["resource"] == "services"
        && parent["namespace"] == namespace
        && parent["name"] == name
}

fn is_ours(claim: &Value) -> bool {
    claim["metadata"]["labels"][MANAGED_BY] == ALLOCATOR
}
