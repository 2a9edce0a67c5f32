//! What a Service is given is claimed in the store before the Service is written, so that two
//! writers, on two servers even, cannot be given the same: a cluster IP by creating the IPAddress
//! of its name, a node port by a key of its number. Whoever does not get to write gives the claims
//! back; a sweep ([`super::service_repair`]) mends what a crash left.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use futures::future::{BoxFuture, join, join_all};
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use keelson_store::{self as store, Error, Expect, Revision, SharedStore};
use serde_json::{Value, json};

use super::options::{FieldValidation, WriteOptions};
use super::resources::ResourceEntry;
use super::service_ip::{Reservation, Taken, addresses_of, family_of, is_service};
use super::service_port::ports_of;
use super::write::{Write, Written, store_error};
use super::{Registry, codec};
use crate::objects::Objects;
use crate::request::{UserInfo, Warnings};

pub(super) const GROUP: &str = "networking.k8s.io";
pub(super) const ADDRESSES: &str = "ipaddresses";
pub(super) const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
pub(super) const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
pub(super) const ALLOCATOR: &str = "ipallocator.k8s.io";
const PORTS_START: &str = "/servicenodeports/";
const PORTS_END: &str = "/servicenodeports0";
/// Rounds of choosing anew because another server was faster.
const ATTEMPTS: usize = 16;

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

/// Claims of a Service that is not written yet.
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
                    tracing::debug!(%key, %error, "a claim was not given back");
                }
            }
        });
    }
}

/// A node port that is somebody's.
pub(super) struct PortClaim {
    pub(super) port: u16,
    /// `namespace/name` of the Service.
    pub(super) owner: String,
    pub(super) revision: Revision,
}

/// What became of one claim.
enum Outcome {
    Ours(String, Revision),
    /// The Service has it already, through a server that started together with this one.
    Shared,
    Lost,
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
        let shared = !write.admission;
        let mut taken = HashSet::new();
        for _ in 0..ATTEMPTS {
            if self.services.may_need_ports(&object, old) {
                let claims = self.port_claims().await?;
                taken = claims.iter().map(|claim| claim.port).collect();
            }
            let mut filled = object.clone();
            let reservation = self.services.reserve(&mut filled, old, shared, &taken)?;
            let mut claims = Claims {
                store: Arc::clone(&self.store),
                keys: Vec::new(),
            };
            if write.options.dry_run
                || self
                    .claim(&mut claims, &filled, reservation.taken(), shared)
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
        Err(Status::internal(format!(
            "failed to allocate a serviceIP for Service {:?}: range is full",
            meta::name(&object)
        )))
    }

    /// Whether everything could be had.
    async fn claim(
        &self,
        claims: &mut Claims,
        service: &Value,
        wanted: &Taken,
        shared: bool,
    ) -> Result<bool, Status> {
        let addresses = wanted.addresses.iter();
        let addresses = addresses.map(|address| self.claim_address(service, *address, shared));
        let ports = wanted.ports.iter();
        let ports = ports.map(|port| self.claim_port(service, *port));
        let (addresses, ports) = join(join_all(addresses), join_all(ports)).await;
        let mut all = Ok(true);
        for outcome in addresses.into_iter().chain(ports) {
            match outcome {
                Ok(Outcome::Ours(key, revision)) => claims.keys.push((key, revision)),
                Ok(Outcome::Shared) => {}
                Ok(Outcome::Lost) => all = all.map(|_| false),
                Err(status) => all = Err(status),
            }
        }
        all
    }

    async fn claim_address(
        &self,
        service: &Value,
        address: IpAddr,
        shared: bool,
    ) -> Result<Outcome, Status> {
        let Some(entry) = self.resources.any_version(GROUP, ADDRESSES) else {
            return Ok(Outcome::Shared);
        };
        match self.create_address(&entry, service, address).await {
            Ok(written) => {
                let object = codec::parse(&written.bytes)?;
                let revision = meta::resource_version(&object).parse().unwrap_or(0);
                let key = self.key(&entry, "", &address.to_string());
                Ok(Outcome::Ours(key, revision))
            }
            Err(status) if status.is_already_exists() => {
                let claimed = address.to_string();
                let claim = Objects::read(self, GROUP, ADDRESSES, "", &claimed);
                let (namespace, name) = (meta::namespace(service), meta::name(service));
                let own = claim
                    .await?
                    .is_some_and(|claim| is_owner(&claim, namespace, name));
                Ok(if shared && own {
                    Outcome::Shared
                } else {
                    Outcome::Lost
                })
            }
            Err(status) => Err(status),
        }
    }

    async fn claim_port(&self, service: &Value, port: u16) -> Result<Outcome, Status> {
        match self.put_port(service, port, Expect::Absent).await {
            Ok(kv) => Ok(Outcome::Ours(port_key(port), kv.mod_revision)),
            Err(Error::Conflict(_)) => Ok(Outcome::Lost),
            Err(error) => Err(store_error(error)),
        }
    }

    pub(super) async fn put_port(
        &self,
        service: &Value,
        port: u16,
        expect: Expect,
    ) -> Result<store::KeyValue, Error> {
        let value = store::Value {
            bytes: owner_name(service).into(),
            stamp_at: None,
        };
        self.store.put(&port_key(port), value, expect).await
    }

    /// All claimed node ports, as the store has them now.
    pub(super) async fn port_claims(&self) -> Result<Vec<PortClaim>, Status> {
        let found = self.store.range(PORTS_START, PORTS_END, 0, 0).await;
        let found = found.map_err(store_error)?;
        let claims = found.items.iter().filter_map(|kv| {
            Some(PortClaim {
                port: kv.key.strip_prefix(PORTS_START)?.parse().ok()?,
                owner: String::from_utf8_lossy(&kv.value).into_owned(),
                revision: kv.mod_revision,
            })
        });
        Ok(claims.collect())
    }

    /// Boxed, since creating an object may lead here again.
    pub(super) fn create_address<'a>(
        &'a self,
        entry: &'a ResourceEntry,
        service: &'a Value,
        address: IpAddr,
    ) -> BoxFuture<'a, Result<Written, Status>> {
        Box::pin(async move {
            let options = WriteOptions {
                given: Vec::new(),
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
    pub(super) async fn release(&self, old: &Value, kept: Option<&Value>) -> Result<(), Status> {
        let kept_addresses: HashSet<IpAddr> = kept
            .map(addresses_of)
            .unwrap_or_default()
            .into_iter()
            .collect();
        let addresses: HashSet<IpAddr> = addresses_of(old).into_iter().collect();
        let addresses = addresses.difference(&kept_addresses);
        let addresses = addresses.map(|address| self.release_address(old, *address));
        let kept_ports: HashSet<u16> = kept.map(ports_of).unwrap_or_default().into_iter().collect();
        let ports: HashSet<u16> = ports_of(old).into_iter().collect();
        let ports = ports.difference(&kept_ports);
        let ports = ports.map(|port| self.release_port(old, *port));
        let (addresses, ports) = join(join_all(addresses), join_all(ports)).await;
        addresses.into_iter().chain(ports).collect()
    }

    async fn release_address(&self, old: &Value, address: IpAddr) -> Result<(), Status> {
        let Some(entry) = self.resources.any_version(GROUP, ADDRESSES) else {
            return Ok(());
        };
        let key = self.key(&entry, "", &address.to_string());
        let Some(found) = self.store.get(&key, 0).await.map_err(store_error)? else {
            return Ok(());
        };
        let owner = codec::parse(&found.value)?;
        if is_owner(&owner, meta::namespace(old), meta::name(old)) {
            let expect = Expect::Revision(found.mod_revision);
            if let Ok((revision, _)) = self.store.delete(&key, expect).await {
                self.caches.wait(revision).await?;
            }
        }
        Ok(())
    }

    async fn release_port(&self, old: &Value, port: u16) -> Result<(), Status> {
        let key = port_key(port);
        let found = self.store.get(&key, 0).await.map_err(store_error)?;
        if let Some(found) = found.filter(|kv| kv.value == owner_name(old).as_bytes()) {
            // Whoever was faster has taken it over.
            let _ = self
                .store
                .delete(&key, Expect::Revision(found.mod_revision))
                .await;
        }
        Ok(())
    }
}

pub(super) fn port_key(port: u16) -> String {
    format!("{PORTS_START}{port}")
}

pub(super) fn owner_name(service: &Value) -> String {
    format!("{}/{}", meta::namespace(service), meta::name(service))
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
    refers_to_service(claim) && parent["namespace"] == namespace && parent["name"] == name
}

pub(super) fn refers_to_service(claim: &Value) -> bool {
    let parent = &claim["spec"]["parentRef"];
    parent["group"].as_str().unwrap_or_default().is_empty() && parent["resource"] == "services"
}
