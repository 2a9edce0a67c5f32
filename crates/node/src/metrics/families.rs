//! The families: upstream's names, types, labels and buckets.

use super::{Family, Kind};

const DEFAULT_BUCKETS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
const START_BUCKETS: &[f64] = &[
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0,
    300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
const STATUS_BUCKETS: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 45.0, 60.0];
/// Five milliseconds, and each two and a half times the one before.
const RUNTIME_BUCKETS: &[f64] = &[
    0.005,
    0.0125,
    0.03125,
    0.078125,
    0.1953125,
    0.48828125,
    1.220703125,
    3.0517578125,
    7.62939453125,
    19.073486328125,
    47.6837158203125,
    119.20928955078125,
    298.0232238769531,
    745.0580596923828,
];

macro_rules! families {
    ($($constant:ident $name:literal $kind:expr, $labels:expr, $help:literal;)*) => {
        $(pub(crate) static $constant: Family = Family {
            name: $name,
            help: $help,
            kind: $kind,
            labels: &$labels,
        };)*
    };
}

families! {
    POD_WORKER_DURATION "kubelet_pod_worker_duration_seconds" Kind::Histogram(DEFAULT_BUCKETS), ["operation_type"],
        "Time that one look at a pod and the decision took, by what the pod was to do.";
    POD_WORKER_START_DURATION "kubelet_pod_worker_start_duration_seconds" Kind::Histogram(DEFAULT_BUCKETS), [],
        "Time from a pod's first sight to its worker.";
    POD_START_DURATION "kubelet_pod_start_duration_seconds" Kind::Histogram(START_BUCKETS), [],
        "Time from a pod's first sight on this node until it ran.";
    POD_START_TOTAL_DURATION "kubelet_pod_start_total_duration_seconds" Kind::Histogram(START_BUCKETS), [],
        "Time from a pod's creation until it ran, with pulls and init containers.";
    POD_STATUS_SYNC_DURATION "kubelet_pod_status_sync_duration_seconds" Kind::Histogram(STATUS_BUCKETS), [],
        "Time that writing a pod's changed status to the API took.";
    PLEG_RELIST_DURATION "kubelet_pleg_relist_duration_seconds" Kind::Histogram(DEFAULT_BUCKETS), [],
        "Time that reading all sandboxes and containers from the runtime took.";
    RUNTIME_OPERATIONS "kubelet_runtime_operations_total" Kind::Counter, ["operation_type"],
        "Operations of the container runtime.";
    RUNTIME_OPERATIONS_ERRORS "kubelet_runtime_operations_errors_total" Kind::Counter, ["operation_type"],
        "Operations of the container runtime that failed.";
    RUNTIME_OPERATIONS_DURATION "kubelet_runtime_operations_duration_seconds" Kind::Histogram(RUNTIME_BUCKETS), ["operation_type"],
        "Time that operations of the container runtime took.";
    RUN_POD_SANDBOX_DURATION "kubelet_run_podsandbox_duration_seconds" Kind::Histogram(DEFAULT_BUCKETS), ["runtime_handler"],
        "Time that starting a sandbox took.";
    RUN_POD_SANDBOX_ERRORS "kubelet_run_podsandbox_errors_total" Kind::Counter, ["runtime_handler"],
        "Sandboxes that did not start.";
    CGROUP_MANAGER_DURATION "kubelet_cgroup_manager_duration_seconds" Kind::Histogram(DEFAULT_BUCKETS), ["operation_type"],
        "Time that operations on cgroups took.";
    STARTED_PODS "kubelet_started_pods_total" Kind::Counter, [],
        "Pods whose sandbox was started.";
    STARTED_PODS_ERRORS "kubelet_started_pods_errors_total" Kind::Counter, [],
        "Pods whose sandbox did not start.";
    STARTED_CONTAINERS "kubelet_started_containers_total" Kind::Counter, ["container_type"],
        "Starts of containers, by what they are to their pod.";
    STARTED_CONTAINERS_ERRORS "kubelet_started_containers_errors_total" Kind::Counter, ["container_type", "code"],
        "Starts of containers that failed, with the reason.";
    TERMINATED_CONTAINERS "kubelet_terminated_containers_total" Kind::Counter, ["container_type", "exit_code", "reason"],
        "Ends of containers.";
    HTTP_REQUESTS "kubelet_http_requests_total" Kind::Counter, ["method", "path", "server_type", "long_running"],
        "Requests to this server.";
    HTTP_REQUESTS_DURATION "kubelet_http_requests_duration_seconds" Kind::Histogram(DEFAULT_BUCKETS), ["method", "path", "server_type", "long_running"],
        "Time until a request's answer began.";
    HTTP_INFLIGHT_REQUESTS "kubelet_http_inflight_requests" Kind::Gauge, ["method", "path", "server_type", "long_running"],
        "Requests that are being answered.";
    NODE_NAME "kubelet_node_name" Kind::Gauge, ["node"],
        "The node's name; always 1.";
    RUNNING_PODS "kubelet_running_pods" Kind::Gauge, [],
        "Pods with a sandbox that runs.";
    RUNNING_CONTAINERS "kubelet_running_containers" Kind::Gauge, ["container_state"],
        "Containers that the runtime has, by state.";
    DESIRED_PODS "kubelet_desired_pods" Kind::Gauge, ["static"],
        "Pods that this node is told to run.";
    ACTIVE_PODS "kubelet_active_pods" Kind::Gauge, ["static"],
        "Pods that hold resources of this node.";
    MANAGED_EPHEMERAL_CONTAINERS "kubelet_managed_ephemeral_containers" Kind::Gauge, [],
        "Ephemeral containers of this node's pods.";
    CGROUP_VERSION "kubelet_cgroup_version" Kind::Gauge, [],
        "The version of the machine's cgroups.";
    PLEG_LAST_SEEN "kubelet_pleg_last_seen_seconds" Kind::Gauge, [],
        "When the runtime's events were last known to be followed, in seconds since 1970.";
    SERVER_CERTIFICATE_TTL "kubelet_certificate_manager_server_ttl_seconds" Kind::Gauge, [],
        "Seconds until the serving certificate expires; negative afterwards.";
    SERVER_RENEW_ERRORS "kubelet_server_expiration_renew_errors" Kind::Counter, [],
        "Renewals of the serving certificate that failed.";
    VOLUME_CAPACITY "kubelet_volume_stats_capacity_bytes" Kind::Gauge, ["namespace", "persistentvolumeclaim"],
        "Size of a claim's volume.";
    VOLUME_AVAILABLE "kubelet_volume_stats_available_bytes" Kind::Gauge, ["namespace", "persistentvolumeclaim"],
        "Bytes that are free in a claim's volume.";
    VOLUME_USED "kubelet_volume_stats_used_bytes" Kind::Gauge, ["namespace", "persistentvolumeclaim"],
        "Bytes that are taken in a claim's volume.";
    VOLUME_INODES "kubelet_volume_stats_inodes" Kind::Gauge, ["namespace", "persistentvolumeclaim"],
        "Inodes of a claim's volume.";
    VOLUME_INODES_FREE "kubelet_volume_stats_inodes_free" Kind::Gauge, ["namespace", "persistentvolumeclaim"],
        "Inodes that are free in a claim's volume.";
    VOLUME_INODES_USED "kubelet_volume_stats_inodes_used" Kind::Gauge, ["namespace", "persistentvolumeclaim"],
        "Inodes that are taken in a claim's volume.";
    BUILD_INFO "kubernetes_build_info" Kind::Gauge, ["git_version", "major", "minor", "platform"],
        "The release; always 1.";
    HEALTHCHECK "kubernetes_healthcheck" Kind::Gauge, ["name", "type"],
        "Whether a health check passes.";
    HEALTHCHECKS "kubernetes_healthchecks_total" Kind::Counter, ["name", "status", "type"],
        "Health checks that were made.";
    PROCESS_CPU "process_cpu_seconds_total" Kind::Counter, [],
        "CPU time of this process.";
    PROCESS_RESIDENT "process_resident_memory_bytes" Kind::Gauge, [],
        "Resident memory of this process.";
    PROCESS_VIRTUAL "process_virtual_memory_bytes" Kind::Gauge, [],
        "Virtual memory of this process.";
    PROCESS_OPEN_FDS "process_open_fds" Kind::Gauge, [],
        "File descriptors that this process has open.";
    PROCESS_MAX_FDS "process_max_fds" Kind::Gauge, [],
        "File descriptors that this process may open.";
    PROCESS_START "process_start_time_seconds" Kind::Gauge, [],
        "When this process started, in seconds since 1970.";
}

/// What is counted as it happens; the others are looked up when somebody asks.
pub(crate) static COUNTED: &[&Family] = &[
    &POD_WORKER_DURATION,
    &POD_WORKER_START_DURATION,
    &POD_START_DURATION,
    &POD_START_TOTAL_DURATION,
    &POD_STATUS_SYNC_DURATION,
    &PLEG_RELIST_DURATION,
    &RUNTIME_OPERATIONS,
    &RUNTIME_OPERATIONS_ERRORS,
    &RUNTIME_OPERATIONS_DURATION,
    &RUN_POD_SANDBOX_DURATION,
    &RUN_POD_SANDBOX_ERRORS,
    &CGROUP_MANAGER_DURATION,
    &STARTED_PODS,
    &STARTED_PODS_ERRORS,
    &STARTED_CONTAINERS,
    &STARTED_CONTAINERS_ERRORS,
    &TERMINATED_CONTAINERS,
    &HTTP_REQUESTS,
    &HTTP_REQUESTS_DURATION,
    &HTTP_INFLIGHT_REQUESTS,
];
