//! Mends what a crash between two writes left: Services whose address or node port nobody claimed,
//! claims whose Service is gone. Tells of what it cannot mend. Specified as upstream's repair
//! loops do it, with their reasons and messages.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use keelson_machinery::status::Status;
use keelson_machinery::{meta, time};
use keelson_store::{Error, Expect, Revision};
use serde_json::Value;

use super::Registry;
use super::resources::ResourceEntry;
use super::service_claim::{
    ADDRESSES, ALLOCATOR, FAMILY, GROUP, MANAGED_BY, PortClaim, is_owner, owner_name, port_key,
    refers_to_service,
};
use super::service_ip::{addresses_of, family_of};
use super::service_port::ports_of;
use super::write::store_error;
use crate::events::{Warning, warn};
use crate::objects::Objects;

/// A claim may be ahead of its Service for this long, seconds; no request lasts longer.
const GRACE_S: i64 = 60;
/// The same where the Service is there and has not (yet) the address.
const CHANGE_GRACE_S: i64 = 5;

/// Claims of node ports that had no Service at the last sweep, and when they were written. Those
/// that have none at the next sweep either are given back.
#[derive(Default)]
pub(crate) struct Suspects(HashMap<u16, Revision>);

impl Registry {
    /// Run at the start and every few minutes.
    pub(crate) async fn repair_services(&self, suspects: &mut Suspects) -> Result<(), Status> {
        self.repair_ports(suspects).await?;
        self.repair_addresses().await
    }

    async fn repair_addresses(&self) -> Result<(), Status> {
        let Some(entry) = self.resources.any_version(GROUP, ADDRESSES) else {
            return Ok(());
        };
        self.caches.wait_current().await?;
        for service in Objects::list(self, "", "services", "") {
            let mut addresses = addresses_of(&service);
            addresses.sort_unstable();
            addresses.dedup();
            for address in addresses {
                self.check_address(&entry, &service, address).await?;
            }
        }
        let now = time::now_unix();
        for claim in Objects::list(self, GROUP, ADDRESSES, "") {
            if claim["metadata"]["labels"][MANAGED_BY] != ALLOCATOR {
                continue;
            }
            let parent = &claim["spec"]["parentRef"];
            let text = |field: &str| parent[field].as_str().unwrap_or_default().to_owned();
            let service = Objects::get(self, "", "services", &text("namespace"), &text("name"));
            if let Some((reason, text)) = orphan(&claim, service.as_deref(), now) {
                let warning = Warning {
                    component: "ipallocator-repair-controller",
                    reason,
                    action: "IPAddressAllocation",
                    text: &text,
                };
                warn(self, &claim, &warning).await;
                self.remove_address(meta::name(&claim)).await?;
            }
        }
        Ok(())
    }

    /// One address of one Service.
    async fn check_address(
        &self,
        entry: &ResourceEntry,
        service: &Value,
        address: IpAddr,
    ) -> Result<(), Status> {
        let family = family_of(address);
        let (namespace, name) = (meta::namespace(service), meta::name(service));
        if !self.services.is_in_a_range(address) {
            let text = format!(
                "Cluster IP [{family}]: {address} is not within any configured Service CIDR; please recreate service"
            );
            self.tell(service, "ClusterIPOutOfRange", &text).await;
            return Ok(());
        }
        let Some(claim) = Objects::get(self, GROUP, ADDRESSES, "", &address.to_string()) else {
            let text = format!("Cluster IP [{family}]: {address} is not allocated; repairing");
            self.tell(service, "ClusterIPNotAllocated", &text).await;
            return self.claim_again(entry, service, address).await;
        };
        let parent = &claim["spec"]["parentRef"];
        let text = |field: &str| parent[field].as_str().unwrap_or_default();
        let other = Objects::get(self, "", "services", text("namespace"), text("name"));
        let is_own = is_owner(&claim, namespace, name);
        if !refers_to_service(&claim) || !is_own && other.is_none() {
            let text = format!(
                "the ClusterIP [{family}]: {address} for Service {namespace}/{name} has a wrong reference; repairing"
            );
            self.tell(service, "ClusterIPNotAllocated", &text).await;
            self.remove_address(meta::name(&claim)).await?;
            return self.claim_again(entry, service, address).await;
        }
        let others = other.as_deref().map(addresses_of).unwrap_or_default();
        if !is_own && others.contains(&address) {
            let text = format!(
                "Cluster IP [{family}]:{address} was assigned to multiple services; please recreate service"
            );
            self.tell(service, "ClusterIPAlreadyAllocated", &text).await;
        }
        let labels = &claim["metadata"]["labels"];
        if labels[FAMILY] != family || labels[MANAGED_BY] != ALLOCATOR {
            self.remove_address(meta::name(&claim)).await?;
            return self.claim_again(entry, service, address).await;
        }
        Ok(())
    }

    async fn claim_again(
        &self,
        entry: &ResourceEntry,
        service: &Value,
        address: IpAddr,
    ) -> Result<(), Status> {
        match self.create_address(entry, service, address).await {
            Err(status) if !status.is_already_exists() => Err(status),
            _ => Ok(()),
        }
    }

    async fn remove_address(&self, name: &str) -> Result<(), Status> {
        match Objects::delete(self, GROUP, ADDRESSES, "", name).await {
            Err(status) if !status.is_not_found() => Err(status),
            _ => Ok(()),
        }
    }

    async fn tell(&self, service: &Value, reason: &str, text: &str) {
        let warning = Warning {
            component: "ipallocator-repair-controller",
            reason,
            action: "ClusterIPAllocation",
            text,
        };
        warn(self, service, &warning).await;
    }

    async fn repair_ports(&self, suspects: &mut Suspects) -> Result<(), Status> {
        // The claims first: a Service written after this has claimed its ports before, but they
        // may be missing in what was read, and are then looked up again.
        let claims = self.port_claims().await?;
        self.caches.wait_current().await?;
        let mut services = Objects::list(self, "", "services", "");
        services.sort_by_key(|service| owner_name(service));
        let mut owners: HashMap<u16, String> = HashMap::new();
        let known: HashMap<u16, &PortClaim> = claims.iter().map(|c| (c.port, c)).collect();
        let mut holders: HashMap<u16, Vec<String>> = HashMap::new();
        for service in &services {
            for port in ports_of(service) {
                holders.entry(port).or_default().push(owner_name(service));
            }
        }
        for service in &services {
            for port in ports_of(service) {
                self.check_port(service, port, &mut owners, &known, &holders)
                    .await?;
            }
        }
        let mut left = HashMap::new();
        for claim in claims {
            let holders = holders.get(&claim.port).map(Vec::as_slice);
            if holders.is_some_and(|holders| holders.contains(&claim.owner)) {
                continue;
            }
            if suspects.0.get(&claim.port) != Some(&claim.revision) {
                left.insert(claim.port, claim.revision);
                continue;
            }
            let (port, owner) = (claim.port, &claim.owner);
            tracing::info!(port, owner, "a node port without its Service is given back");
            let key = port_key(claim.port);
            match self
                .store
                .delete(&key, Expect::Revision(claim.revision))
                .await
            {
                Ok(_) | Err(Error::Conflict(_)) => {}
                Err(error) => return Err(store_error(error)),
            }
        }
        suspects.0 = left;
        Ok(())
    }

    /// One port of one Service. `owners` are the Services looked at before that have the port.
    async fn check_port(
        &self,
        service: &Arc<Value>,
        port: u16,
        owners: &mut HashMap<u16, String>,
        known: &HashMap<u16, &PortClaim>,
        holders: &HashMap<u16, Vec<String>>,
    ) -> Result<(), Status> {
        let owner = owner_name(service);
        let range = &self.services.config().node_ports;
        if !range.contains(&port) {
            let (first, last) = (range.start(), range.end());
            let text = format!(
                "Port {port} is not within the port range {first}-{last}; please recreate service"
            );
            self.tell_of_port(service, "PortOutOfRange", &text).await;
            return Ok(());
        }
        if owners.insert(port, owner.clone()).is_some() {
            let text =
                format!("Port {port} was assigned to multiple services; please recreate service");
            self.tell_of_port(service, "PortAlreadyAllocated", &text)
                .await;
            return Ok(());
        }
        let expect = match known.get(&port) {
            // Nobody has it whom it was claimed for.
            Some(claim) if !holders[&port].contains(&claim.owner) => {
                Expect::Revision(claim.revision)
            }
            Some(_) => return Ok(()),
            None => Expect::Absent,
        };
        match self.put_port(service, port, expect).await {
            Ok(_) if expect == Expect::Absent => {
                let text = format!("Port {port} is not allocated; repairing");
                self.tell_of_port(service, "PortNotAllocated", &text).await;
                Ok(())
            }
            Ok(_) | Err(Error::Conflict(_)) => Ok(()),
            Err(error) => Err(store_error(error)),
        }
    }

    async fn tell_of_port(&self, service: &Value, reason: &str, text: &str) {
        let warning = Warning {
            component: "portallocator-repair-controller",
            reason,
            action: "PortAllocation",
            text,
        };
        warn(self, service, &warning).await;
    }
}

/// Why a claim of the allocator is to go, if it is; `service` is the one it names. Pure.
fn orphan(claim: &Value, service: Option<&Value>, now: i64) -> Option<(&'static str, String)> {
    let name = meta::name(claim);
    let parent = &claim["spec"]["parentRef"];
    let text = |field: &str| parent[field].as_str().unwrap_or_default();
    if !refers_to_service(claim) {
        let reference = format!(
            "&ParentReference{{Group:{},Resource:{},Namespace:{},Name:{},}}",
            text("group"),
            text("resource"),
            text("namespace"),
            text("name")
        );
        let message = format!(
            "IPAddress {name} appears to have been modified, not referencing a Service {reference}: cleaning up"
        );
        return Some(("IPAddressNotAllocated", message));
    }
    let created = meta::creation_timestamp(claim).and_then(time::parse_unix);
    let age_s = created.map_or(0, |at| now - at);
    let (namespace, owner) = (text("namespace"), text("name"));
    let Some(service) = service else {
        let message = format!(
            "IPAddress: {name} for Service {namespace}/{owner} appears to have leaked: cleaning up"
        );
        return (age_s > GRACE_S).then_some(("IPAddressNotAllocated", message));
    };
    let address: Option<IpAddr> = name.parse().ok();
    if address.is_some_and(|address| addresses_of(service).contains(&address)) {
        return None;
    }
    let written = meta::creation_timestamp(service).and_then(time::parse_unix);
    let is_external = service["spec"]["type"] == "ExternalName";
    let may_be_ahead =
        is_external && age_s < GRACE_S || created > written && age_s < CHANGE_GRACE_S;
    let message = format!(
        "IPAddress: {name} for Service {namespace}/{owner} has a wrong reference; cleaning up"
    );
    (!may_be_ahead).then_some(("IPAddressWrongReference", message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn which_claims_are_to_go() {
        let claim = |parent: Value| {
            json!({"metadata": {"name": "10.0.0.5", "creationTimestamp": "2026-01-01T00:00:10Z"},
                "spec": {"parentRef": parent}})
        };
        let parent = json!({"resource": "services", "namespace": "n", "name": "s"});
        let service = |kind: &str, address: &str| {
            json!({"metadata": {"name": "s", "namespace": "n", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"type": kind, "clusterIP": address, "clusterIPs": [address]}})
        };
        let start = time::parse_unix("2026-01-01T00:00:10Z").unwrap();
        let reason = |claim: &Value, service: Option<&Value>, age_s: i64| {
            orphan(claim, service, start + age_s).map(|(reason, _)| reason)
        };
        let ours = claim(parent);
        let (own, other) = (
            service("ClusterIP", "10.0.0.5"),
            service("ClusterIP", "10.0.0.6"),
        );
        let external = service("ExternalName", "");
        assert_eq!(reason(&ours, Some(&own), 1000), None);
        assert_eq!(reason(&ours, None, 60), None);
        assert_eq!(reason(&ours, None, 61), Some("IPAddressNotAllocated"));
        assert_eq!(reason(&ours, Some(&other), 4), None);
        assert_eq!(
            reason(&ours, Some(&other), 5),
            Some("IPAddressWrongReference")
        );
        assert_eq!(reason(&ours, Some(&external), 59), None);
        assert_eq!(
            reason(&ours, Some(&external), 60),
            Some("IPAddressWrongReference")
        );
        let changed =
            claim(json!({"group": "g", "resource": "services", "namespace": "n", "name": "s"}));
        assert_eq!(
            reason(&changed, Some(&own), 0),
            Some("IPAddressNotAllocated")
        );
    }
}
