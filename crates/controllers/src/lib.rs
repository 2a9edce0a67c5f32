//! Kubernetes' controllers. Each is one file that gathers from shared informers, plans with a pure
//! function and applies through the API; [`CONTROLLERS`] is the table of all.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod certificates;
mod children;
mod clock;
mod cluster;
mod discovery;
mod network;
mod node;
mod owner;
mod pod;
mod storage;
mod workload;

pub use certificates::{Authority as SigningAuthority, AuthorityError as SigningAuthorityError};

use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;
use keelson_client::{Client, Controller, ControllerContext, Informers, run_controller};

/// What the controllers must know of the cluster.
#[derive(Clone, Debug)]
pub struct Config {
    /// PEM of the certificate authority that signs the API server's certificate, for the
    /// `kube-root-ca.crt` ConfigMap of every namespace.
    pub root_ca: String,
    /// Signs certificate requests; absent leaves them to others.
    pub signing_ca: Option<SigningAuthority>,
    /// Where node pod ranges are cut from, one per address family; empty leaves them to others.
    pub cluster_cidrs: Vec<ipnet::IpNet>,
    /// Prefix length of a node's range for IPv4 and IPv6.
    pub node_mask: (u8, u8),
    /// Finished pods beyond this number are deleted, oldest first; 0 keeps all.
    pub terminated_pod_threshold: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root_ca: String::new(),
            signing_ca: None,
            cluster_cidrs: Vec::new(),
            node_mask: (24, 64),
            terminated_pod_threshold: 12_500,
        }
    }
}

/// One row per controller.
pub struct Row {
    pub name: &'static str,
    /// The service account in `kube-system` whose role it runs under.
    pub service_account: &'static str,
    /// The objects it writes, as `resource.group`; the architecture graph and the RBAC test read it.
    pub writes: &'static [&'static str],
    pub build: fn(&ControllerContext, &Config) -> Arc<dyn Controller>,
}

macro_rules! row {
    ($name:literal, $account:literal, [$($writes:literal),*], $build:expr) => {
        Row { name: $name, service_account: $account, writes: &[$($writes),*], build: $build }
    };
}

#[rustfmt::skip]
pub static CONTROLLERS: &[Row] = &[
    row!("replicaset-controller", "replicaset-controller", ["replicasets/status.apps", "pods", "events"],
        |c, _| Arc::new(workload::replica_controller::ReplicaController::<ReplicaSet>::new(c))),
    row!("replication-controller", "replication-controller", ["replicationcontrollers/status", "pods", "events"],
        |c, _| Arc::new(workload::replica_controller::ReplicaController::<ReplicationController>::new(c))),
    row!("deployment-controller", "deployment-controller", ["deployments/status.apps", "deployments.apps", "replicasets.apps", "events"],
        |c, _| Arc::new(workload::deployment::DeploymentController::new(c))),
    row!("endpoint-controller", "endpoint-controller", ["endpoints"],
        |c, _| Arc::new(network::endpoints::EndpointsController::new(c))),
    row!("endpointslice-controller", "endpointslice-controller", ["endpointslices.discovery.k8s.io"],
        |c, _| Arc::new(network::endpoint_slice::EndpointSliceController::new(c))),
    row!("endpointslicemirroring-controller", "endpointslicemirroring-controller", ["endpointslices.discovery.k8s.io"],
        |c, _| Arc::new(network::endpoint_slice_mirroring::EndpointSliceMirroringController::new(c))),
    row!("service-cidr-controller", "service-cidrs-controller", ["servicecidrs.networking.k8s.io", "servicecidrs/status.networking.k8s.io", "events"],
        |c, _| Arc::new(network::service_cidr::ServiceCidrController::new(c))),
    row!("namespace-controller", "namespace-controller", ["namespaces/status", "namespaces/finalize", "*"],
        |c, _| Arc::new(cluster::namespace::NamespaceController::new(c))),
    row!("serviceaccount-controller", "service-account-controller", ["serviceaccounts"],
        |c, _| Arc::new(cluster::service_account::ServiceAccountController::new(c))),
    row!("root-ca-certificate-publisher", "root-ca-cert-publisher", ["configmaps"],
        |c, config| Arc::new(cluster::root_ca::RootCaController::new(c, &config.root_ca))),
    row!("clusterrole-aggregation-controller", "clusterrole-aggregation-controller", ["clusterroles.rbac.authorization.k8s.io"],
        |c, _| Arc::new(cluster::cluster_role_aggregation::ClusterRoleAggregationController::new(c))),
    row!("certificatesigningrequest-signing-controller", "certificate-controller", ["certificatesigningrequests/status.certificates.k8s.io"],
        |c, config| Arc::new(certificates::signing::SigningController::new(c, config.signing_ca.as_ref()))),
    row!("certificatesigningrequest-approving-controller", "certificate-controller", ["certificatesigningrequests/approval.certificates.k8s.io"],
        |c, _| Arc::new(certificates::approver::ApprovingController::new(c))),
    row!("certificatesigningrequest-cleaner-controller", "certificate-controller", ["certificatesigningrequests.certificates.k8s.io"],
        |c, _| Arc::new(certificates::cleaner::CleanerController::new(c))),
    row!("garbage-collector-controller", "generic-garbage-collector", ["*"],
        |c, _| Arc::new(cluster::garbage_collector::GarbageCollector::new(c))),
    row!("resourcequota-controller", "resourcequota-controller", ["resourcequotas/status"],
        |c, _| Arc::new(cluster::resource_quota::ResourceQuotaController::new(c))),
    row!("node-controller", "node-controller", ["nodes", "nodes/status", "pods/status", "events"],
        |c, _| Arc::new(node::lifecycle::NodeLifecycleController::new(c))),
    row!("taint-eviction-controller", "node-controller", ["pods", "pods/status", "events"],
        |c, _| Arc::new(node::taint_eviction::TaintEvictionController::new(c))),
    row!("node-ipam-controller", "node-controller", ["nodes", "events"],
        |c, config| Arc::new(node::ipam::NodeIpamController::new(c, config))),
    row!("pod-garbage-collector", "pod-garbage-collector", ["pods", "pods/status"],
        |c, config| Arc::new(node::pod_gc::PodGcController::new(c, config.terminated_pod_threshold))),
    row!("job-controller", "job-controller", ["jobs/status.batch", "pods", "events"],
        |c, _| Arc::new(workload::job::JobController::new(c))),
    row!("cronjob-controller", "cronjob-controller", ["cronjobs/status.batch", "jobs.batch", "events"],
        |c, _| Arc::new(workload::cron_job::CronJobController::new(c))),
    row!("ttl-after-finished-controller", "ttl-after-finished-controller", ["jobs.batch"],
        |c, _| Arc::new(workload::ttl_after_finished::TtlAfterFinishedController::new(c))),
    row!("daemon-set-controller", "daemon-set-controller", ["daemonsets/status.apps", "controllerrevisions.apps", "pods", "events"],
        |c, _| Arc::new(workload::daemon_set::DaemonSetController::new(c))),
    row!("statefulset-controller", "statefulset-controller", ["statefulsets/status.apps", "controllerrevisions.apps", "pods", "persistentvolumeclaims", "events"],
        |c, _| Arc::new(workload::stateful_set::StatefulSetController::new(c))),
    row!("disruption-controller", "disruption-controller", ["poddisruptionbudgets/status.policy", "events"],
        |c, _| Arc::new(workload::disruption::DisruptionController::new(c))),
    row!("persistentvolume-binder-controller", "persistent-volume-binder", ["persistentvolumes", "persistentvolumeclaims", "events"],
        |c, _| Arc::new(storage::binder::PersistentVolumeBinder::new(c))),
    row!("persistentvolumeclaim-protection-controller", "pvc-protection-controller", ["persistentvolumeclaims"],
        |c, _| Arc::new(storage::protection::ClaimProtectionController::new(c))),
    row!("persistentvolume-protection-controller", "pv-protection-controller", ["persistentvolumes"],
        |c, _| Arc::new(storage::protection::VolumeProtectionController::new(c))),
    row!("volumeattributesclass-protection-controller", "volumeattributesclass-protection-controller", ["volumeattributesclasses.storage.k8s.io"],
        |c, _| Arc::new(storage::protection::AttributesClassProtectionController::new(c))),
];

/// The user that runs what no service account has the rights for.
pub const MANAGER: &str = "system:kube-controller-manager";

/// Controllers under [`MANAGER`] itself rather than a service account.
#[rustfmt::skip]
pub static UNDER_MANAGER: &[Row] = &[
    row!("serviceaccount-token-controller", "system:kube-controller-manager", ["secrets", "serviceaccounts/token"],
        |c, config| Arc::new(cluster::service_account_token::ServiceAccountTokenController::new(c, &config.root_ca))),
];

/// Runs every controller until the informers are shut down. `client_for` makes the client of a
/// service account in `kube-system`, and that of [`MANAGER`]; informers are shared and carry their own identity.
pub async fn run_all(informers: Informers, client_for: impl Fn(&str) -> Client, config: &Config) {
    let running: Vec<_> = CONTROLLERS
        .iter()
        .chain(UNDER_MANAGER)
        .map(|row| {
            let context = ControllerContext::new(
                row.name,
                client_for(row.service_account),
                informers.clone(),
            );
            let controller = (row.build)(&context, config);
            tokio::spawn(run_controller(controller, context))
        })
        .collect();
    join_all(running).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn rows_are_unique_and_say_what_they_write() {
        let mut names = HashSet::new();
        for row in CONTROLLERS.iter().chain(UNDER_MANAGER) {
            assert!(names.insert(row.name), "{} stands twice", row.name);
            assert!(!row.writes.is_empty(), "{} writes nothing", row.name);
            assert!(!row.service_account.is_empty());
        }
    }
}
