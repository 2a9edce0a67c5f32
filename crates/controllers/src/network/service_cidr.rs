//! ServiceCIDRs: ready for use while they are there, and kept, by a finalizer, until no address
//! given to a Service would be left without a range.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use keelson_client::{
    Client, Controller, ControllerContext, EventRecorder, Informer, Key, Outcome, Patch,
    ReconcileError, Watches,
};
use serde_json::json;

use crate::{clock, pod};

const NAME: &str = "service-cidr-controller";
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";
/// How long a range that is free to go stays, seconds: an API server that has not heard of the
/// deletion may still give out an address of it.
const GRACE_S: i64 = 10;
const IN_USE: &str = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";

pub(crate) struct ServiceCidrController {
    client: Client,
    events: EventRecorder,
    ranges: Informer<ServiceCIDR>,
    addresses: Informer<IPAddress>,
}

impl ServiceCidrController {
    pub(crate) fn new(context: &ControllerContext) -> Self {
        Self {
            client: context.client.clone(),
            events: context.events.clone(),
            ranges: context.informer(),
            addresses: context.informer(),
        }
    }

    async fn finalizer(&self, name: &str, change: &str) -> Result<Outcome, ReconcileError> {
        let patch = Patch::Strategic(json!({"metadata": {change: [FINALIZER]}}));
        let patched = self.client.patch::<ServiceCIDR>("", name, &patch, None);
        match patched.await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(Outcome::Done),
        }
    }

    async fn condition(&self, range: &ServiceCIDR, wanted: Ready) -> Result<(), ReconcileError> {
        if is_told(range, &wanted) {
            return Ok(());
        }
        let now = clock::stamp(clock::now());
        let patch = Patch::Apply {
            manager: NAME.to_owned(),
            force: true,
            value: json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
                "metadata": {"name": range.metadata.name},
                "status": {"conditions": [{
                    "type": "Ready", "status": wanted.status, "reason": wanted.reason,
                    "message": wanted.message, "lastTransitionTime": now,
                }]},
            }),
        };
        let name = pod::name(&range.metadata);
        let patched = self
            .client
            .patch::<ServiceCIDR>("", name, &patch, Some("status"));
        match patched.await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Ready {
    status: &'static str,
    reason: &'static str,
    message: &'static str,
}

const READY: Ready = Ready {
    status: "True",
    reason: "",
    message: "Kubernetes Service CIDR is ready",
};
const TERMINATING: Ready = Ready {
    status: "False",
    reason: "Terminating",
    message: IN_USE,
};

fn is_told(range: &ServiceCIDR, wanted: &Ready) -> bool {
    let conditions = range.status.as_ref().and_then(|s| s.conditions.as_ref());
    let mut ready = conditions
        .into_iter()
        .flatten()
        .filter(|condition| condition.type_ == "Ready");
    ready.next().is_some_and(|condition| {
        condition.status == wanted.status
            && condition.reason == wanted.reason
            && condition.message == wanted.message
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Deletion {
    /// Addresses would be left without a range.
    Held,
    Waits(Duration),
    Free,
}

fn prefixes(range: &ServiceCIDR) -> impl Iterator<Item = IpNet> {
    let cidrs = range
        .spec
        .iter()
        .flat_map(|spec| spec.cidrs.iter().flatten());
    cidrs.filter_map(|cidr| cidr.parse().ok())
}

/// Whether Services can be given the address out of the prefix.
fn serves(prefix: &IpNet, address: IpAddr) -> bool {
    prefix.contains(&address)
        && address != prefix.network()
        && (address.is_ipv6() || address != prefix.broadcast())
}

fn allocated(address: &IPAddress) -> Option<IpAddr> {
    let labels = address.metadata.labels.as_ref()?;
    (labels.get(MANAGED_BY)? == ALLOCATOR).then_some(())?;
    pod::name(&address.metadata).parse().ok()
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// What becomes of a range that was deleted. Pure.
fn plan(
    range: &ServiceCIDR,
    deleted: Timestamp,
    now: Timestamp,
    all: &[Arc<ServiceCIDR>],
    addresses: &[Arc<IPAddress>],
) -> Deletion {
    let others: Vec<IpNet> = all
        .iter()
        .filter(|other| other.metadata.name != range.metadata.name)
        .flat_map(|other| prefixes(other))
        .collect();
    let own: Vec<IpNet> = prefixes(range).collect();
    let covered = own
        .iter()
        .all(|prefix| others.iter().any(|other| other.contains(prefix)));
    let is_orphaned = |address: IpAddr| {
        own.iter().any(|prefix| serves(prefix, address))
            && !others.iter().any(|other| serves(other, address))
    };
    if !covered
        && addresses
            .iter()
            .filter_map(|a| allocated(a))
            .any(is_orphaned)
    {
        return Deletion::Held;
    }
    match clock::until(now, clock::after(deleted, GRACE_S)) {
        Some(left) => Deletion::Waits(left),
        None => Deletion::Free,
    }
}

#[async_trait]
impl Controller for ServiceCidrController {
    fn name(&self) -> &'static str {
        NAME
    }

    fn watch(&self, watches: &mut Watches) {
        let ranges = self.ranges.clone();
        watches.mapped(&self.ranges, move |change| {
            // A new range may set one free that is to go.
            let own: Vec<IpNet> = prefixes(change.object()).collect();
            let mut keys = waiting(&ranges, |prefix| own.iter().any(|own| overlap(own, prefix)));
            keys.push(Key::of(&change.object().metadata));
            keys
        });
        let ranges = self.ranges.clone();
        watches.mapped(&self.addresses, move |change| {
            let Some(address) = allocated(change.object()) else {
                return Vec::new();
            };
            waiting(&ranges, |prefix| serves(prefix, address))
        });
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, ReconcileError> {
        let Some(range) = self.ranges.get("", &key.name) else {
            return Ok(Outcome::Done);
        };
        let held = range.metadata.finalizers.iter().flatten();
        let mut held = held.filter(|finalizer| *finalizer == FINALIZER);
        let is_held = held.next().is_some();
        if let Some(deleted) = &range.metadata.deletion_timestamp {
            let (all, addresses) = (self.ranges.list(), self.addresses.list());
            return match plan(&range, deleted.0, clock::now(), &all, &addresses) {
                Deletion::Held => {
                    self.condition(&range, TERMINATING).await?;
                    Ok(Outcome::Done)
                }
                Deletion::Waits(left) => Ok(Outcome::RequeueAfter(left)),
                Deletion::Free if is_held => {
                    let removal = "$deleteFromPrimitiveList/finalizers";
                    self.finalizer(&key.name, removal).await
                }
                Deletion::Free => Ok(Outcome::Done),
            };
        }
        if !is_held {
            self.finalizer(&key.name, "finalizers").await?;
        }
        if let Err(error) = self.condition(&range, READY).await {
            let message = "The ServiceCIDR Status can not be set to Ready=True";
            self.events
                .warning(&*range, "KubernetesServiceCIDRError", message);
            return Err(error);
        }
        Ok(Outcome::Done)
    }
}

/// The ranges that are to go and have such a prefix: only they depend on others.
fn waiting(ranges: &Informer<ServiceCIDR>, has: impl Fn(&IpNet) -> bool) -> Vec<Key> {
    let all = ranges.list();
    let deleted = all
        .iter()
        .filter(|range| range.metadata.deletion_timestamp.is_some());
    deleted
        .filter(|range| prefixes(range).any(|prefix| has(&prefix)))
        .map(|range| Key::of(&range.metadata))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(name: &str, cidrs: &[&str]) -> Arc<ServiceCIDR> {
        let object = json!({"metadata": {"name": name}, "spec": {"cidrs": cidrs}});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn address(name: &str, managed_by: &str) -> Arc<IPAddress> {
        let object = json!({"metadata": {"name": name, "labels": {MANAGED_BY: managed_by}}});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn planned(
        ranges: &[Arc<ServiceCIDR>],
        addresses: &[Arc<IPAddress>],
        after_s: i64,
    ) -> Deletion {
        let deleted = Timestamp::from_second(1000).unwrap();
        let now = clock::after(deleted, after_s);
        plan(&ranges[0], deleted, now, ranges, addresses)
    }

    #[test]
    fn a_range_goes_when_no_address_is_left_without_one() {
        let old = range("old", &["10.0.0.0/24", "fd00::/112"]);
        let ours = |name| address(name, ALLOCATOR);
        let alone = [old.clone()];
        assert_eq!(planned(&alone, &[], 11), Deletion::Free);
        assert_eq!(
            planned(&alone, &[], 4),
            Deletion::Waits(Duration::from_secs(6))
        );
        assert_eq!(planned(&alone, &[ours("10.0.0.5")], 11), Deletion::Held);
        assert_eq!(planned(&alone, &[ours("fd00::5")], 11), Deletion::Held);
        // Neither an address of others nor one that no Service is given out of it.
        let foreign = [
            address("10.0.0.5", "else"),
            ours("10.0.0.0"),
            ours("10.0.0.255"),
            ours("10.0.1.1"),
        ];
        assert_eq!(planned(&alone, &foreign, 11), Deletion::Free);
        // Each family needs another home, or each address.
        let v4 = range("wide", &["10.0.0.0/16"]);
        let both = range("both", &["10.0.0.0/24", "fd00::/64"]);
        let addresses = [ours("10.0.0.5"), ours("fd00::5")];
        assert_eq!(
            planned(&[old.clone(), v4.clone()], &addresses, 11),
            Deletion::Held
        );
        assert_eq!(
            planned(&[old.clone(), v4], &addresses[..1], 11),
            Deletion::Free
        );
        assert_eq!(planned(&[old, both], &addresses, 11), Deletion::Free);
        // The last address of the smaller range is in the middle of the wider one.
        let edge = [
            range("small", &["10.0.0.0/16"]),
            range("part", &["10.0.0.0/24"]),
        ];
        assert_eq!(planned(&edge, &[ours("10.0.0.255")], 11), Deletion::Held);
    }

    #[test]
    fn a_condition_is_written_once() {
        let object = json!({"metadata": {"name": "r"}, "status": {"conditions": [{
            "type": "Ready", "status": "True", "reason": "", "message": READY.message,
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        let range: ServiceCIDR = serde_json::from_value(object).unwrap();
        assert!(is_told(&range, &READY));
        assert!(!is_told(&range, &TERMINATING));
        assert!(!is_told(&ServiceCIDR::default(), &READY));
    }
}
