//! The Lease that says that this API server lives: `apiserver-…` in `kube-system`, renewed every
//! ten seconds. Clients count servers by it, and history moves on where nobody else writes.

use std::sync::Arc;
use std::time::Duration;

use keelson_machinery::status::Status;
use keelson_machinery::{meta, time};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::objects::Objects;

const GROUP: &str = "coordination.k8s.io";
const LEASES: &str = "leases";
const NAMESPACE: &str = "kube-system";
const COMPONENT: &str = "kube-apiserver";
const LABEL: &str = "apiserver.kubernetes.io/identity";

/// Upstream's: a lease lives for an hour and is renewed every ten seconds.
const LIFE: i64 = 3600;
const INTERVAL: Duration = Duration::from_secs(10);
/// Leases of servers that are gone are looked for once in so many renewals.
const SWEEP: u32 = 360;

/// Which lease is this server's, and who it is among those that had it before.
pub(crate) struct Identity {
    name: String,
    holder: String,
    hostname: String,
}

impl Identity {
    pub(crate) fn new(hostname: &str) -> Self {
        let name = lease_name(hostname);
        Self {
            holder: format!("{name}_{}", uuid::Uuid::new_v4()),
            name,
            hostname: hostname.to_owned(),
        }
    }

    /// Renews until `stop`.
    pub(crate) async fn maintain(self, objects: Arc<dyn Objects>, stop: CancellationToken) {
        for round in 0_u32.. {
            if let Err(status) = self.renew(&objects).await
                && !status.is_conflict()
                && !status.is_already_exists()
            {
                tracing::warn!(%status, lease = self.name, "renewing the lease of this server");
            }
            if round % SWEEP == 0 {
                sweep(&objects).await;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    async fn renew(&self, objects: &Arc<dyn Objects>) -> Result<(), Status> {
        match objects.get(GROUP, LEASES, NAMESPACE, &self.name) {
            Some(found) => {
                let renewed = self.renewed(&found);
                let lease = objects.update(GROUP, LEASES, NAMESPACE, renewed);
                lease.await.map(drop)
            }
            None => {
                let lease = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"name": self.name, "namespace": NAMESPACE},
                });
                let lease = self.renewed(&lease);
                let created = objects.create(GROUP, LEASES, NAMESPACE, lease);
                created.await.map(drop)
            }
        }
    }

    fn renewed(&self, lease: &Value) -> Value {
        let mut lease = lease.clone();
        let labels = &mut lease["metadata"]["labels"];
        labels[LABEL] = COMPONENT.into();
        labels["kubernetes.io/hostname"] = self.hostname.as_str().into();
        let spec = &mut lease["spec"];
        spec["leaseDurationSeconds"] = LIFE.into();
        spec["renewTime"] = time::now_micro().into();
        if spec["holderIdentity"] != *self.holder {
            spec["holderIdentity"] = self.holder.as_str().into();
        }
        lease
    }
}

/// Takes out the leases of servers that are gone.
async fn sweep(objects: &Arc<dyn Objects>) {
    let now = time::now_unix();
    for lease in objects.list(GROUP, LEASES, NAMESPACE) {
        let name = meta::name(&lease);
        if is_expired(&lease, now)
            && let Err(status) = objects.delete(GROUP, LEASES, NAMESPACE, name).await
        {
            tracing::warn!(%status, lease = name, "deleting the lease of a server that is gone");
        }
    }
}

/// A lease of an API server that was not renewed in time, or says nothing of its time.
fn is_expired(lease: &Value, now: i64) -> bool {
    if lease["metadata"]["labels"][LABEL] != COMPONENT {
        return false;
    }
    let renewed = lease["spec"]["renewTime"]
        .as_str()
        .and_then(time::parse_unix);
    let life = lease["spec"]["leaseDurationSeconds"].as_i64();
    match (renewed, life) {
        (Some(renewed), Some(life)) => renewed + life < now,
        _ => true,
    }
}

/// Upstream's name of the lease: a hash of host and component, in the letters of base 32.
fn lease_name(hostname: &str) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut hash = Sha256::new();
    for part in [hostname, COMPONENT] {
        hash.update(u16::try_from(part.len()).unwrap_or(u16::MAX).to_be_bytes());
        hash.update(part);
    }
    let hash = hash.finalize();
    let mut name = "apiserver-".to_owned();
    let (mut bits, mut count) = (0_u32, 0);
    for byte in hash[..16].iter().chain(&[0]) {
        bits = bits << 8 | u32::from(*byte);
        count += 8;
        while count >= 5 && name.len() < 36 {
            count -= 5;
            name.push(char::from(LETTERS[(bits >> count) as usize & 31]));
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_named_as_upstream_names_it() {
        let name = lease_name("node");
        assert_eq!(name.len(), 36);
        assert_eq!(name, "apiserver-nz4d7rk4anfwpugpkv4yv5ymby");
        assert_ne!(name, lease_name("other"));
    }

    #[test]
    fn a_renewed_lease_keeps_what_others_wrote_and_is_not_expired() {
        let identity = Identity::new("node");
        let lease = json!({"metadata": {"name": identity.name, "labels": {"a": "b"}}});
        let lease = identity.renewed(&lease);
        assert_eq!(
            lease["metadata"]["labels"],
            json!({"a": "b", LABEL: COMPONENT, "kubernetes.io/hostname": "node"})
        );
        assert_eq!(lease["spec"]["holderIdentity"], identity.holder.as_str());
        let now = time::now_unix();
        assert!(!is_expired(&lease, now));
        assert!(is_expired(&lease, now + LIFE + 2));
        let foreign = json!({"metadata": {"name": "other"}, "spec": {}});
        assert!(!is_expired(&foreign, now));
    }
}
