//! `/metrics` and `/metrics/slis`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{Response, StatusCode};
use keelson_ports::FsUsage;

use super::stats::PROMETHEUS;
use super::{Body, Server, full, response};
use crate::metrics::*;
use crate::node_status::KUBELET_VERSION;
use crate::pod;

pub(super) async fn metrics(server: &Server) -> Response<Body> {
    let node = &server.agent.node;
    let mut page = Page::default();
    node.metrics.render(COUNTED, &mut page);
    page.values(&NODE_NAME, [(vec![node.config.node_name.as_str()], 1.0)]);
    page.value(&RUNNING_PODS, node.state.ready_sandboxes() as f64);
    let states = node.state.container_states().into_iter();
    page.values(
        &RUNNING_CONTAINERS,
        states.map(|(state, count)| (vec![state], count as f64)),
    );
    pods(server, &mut page);
    page.value(&CGROUP_VERSION, f64::from(node.cgroups.version()));
    page.value(&PLEG_LAST_SEEN, unix_seconds(node.clock.now()));
    certificate(server, &mut page);
    volumes(server, &mut page).await;
    build_info(&mut page);
    process(&mut page);
    response(StatusCode::OK, PROMETHEUS, full(page.text()))
}

/// Health checks as service level indicators: what they say now, and how often they were asked.
pub(super) fn slis(server: &Server) -> Response<Body> {
    let mut page = Page::default();
    // Whoever reads this was answered.
    page.values(&HEALTHCHECK, [(vec!["ping", "healthz"], 1.0)]);
    server
        .agent
        .node
        .metrics
        .render(&[&HEALTHCHECKS], &mut page);
    response(StatusCode::OK, PROMETHEUS, full(page.text()))
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

fn pods(server: &Server, page: &mut Page) {
    let pods = server.agent.pods();
    // There are no static pods: everything comes from the API.
    page.values(&DESIRED_PODS, [(vec![""], pods.len() as f64)]);
    let active = server.agent.active_pods().len();
    page.values(&ACTIVE_PODS, [(vec![""], active as f64)]);
    let ephemeral: usize = pods
        .iter()
        .map(|pod| pod::ephemeral_containers(pod).len())
        .sum();
    page.value(&MANAGED_EPHEMERAL_CONTAINERS, ephemeral as f64);
}

fn certificate(server: &Server, page: &mut Page) {
    let config = server.agent.node.config.server.as_ref();
    let Some(certificate) = config.and_then(|config| config.certificate.as_ref()) else {
        return;
    };
    if let Some(expires) = certificate.not_after() {
        let left = unix_seconds(expires) - unix_seconds(SystemTime::now());
        page.value(&SERVER_CERTIFICATE_TTL, left.floor());
    }
    page.value(&SERVER_RENEW_ERRORS, certificate.renewal_errors() as f64);
}

/// Claims that pods of this node have mounted; a claim that several pods share stands once.
async fn volumes(server: &Server, page: &mut Page) {
    let mut paths = BTreeMap::new();
    for (pod, mounted) in server.agent.mounted_volumes() {
        for volume in pod::spec(&pod).volumes.iter().flatten() {
            let claim = volume.persistent_volume_claim.as_ref();
            if let (Some(claim), Some(mounted)) = (claim, mounted.get(&volume.name)) {
                let key = (pod::namespace(&pod).to_owned(), claim.claim_name.clone());
                paths.insert(key, mounted.host_path.clone());
            }
        }
    }
    let mounts = Arc::clone(&server.agent.node.mounts);
    let mut usages: Vec<(Vec<String>, FsUsage)> = Vec::new();
    for ((namespace, claim), path) in paths {
        if let Ok(usage) = mounts.fs_usage(&path).await {
            usages.push((vec![namespace, claim], usage));
        }
    }
    let rows: [(&'static Family, fn(&FsUsage) -> u64); 6] = [
        (&VOLUME_CAPACITY, |usage| usage.capacity_bytes),
        (&VOLUME_AVAILABLE, |usage| usage.available_bytes),
        (&VOLUME_USED, |usage| usage.used_bytes),
        (&VOLUME_INODES, |usage| usage.inodes),
        (&VOLUME_INODES_FREE, |usage| usage.inodes_free),
        (&VOLUME_INODES_USED, |usage| {
            usage.inodes.saturating_sub(usage.inodes_free)
        }),
    ];
    for (family, of) in rows {
        let values = usages
            .iter()
            .map(|(labels, usage)| (labels.clone(), of(usage) as f64));
        page.values(family, values);
    }
}

fn build_info(page: &mut Page) {
    let mut numbers = KUBELET_VERSION.trim_start_matches('v').split('.');
    let (major, minor) = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    let platform = format!("linux/{}", crate::machine::architecture());
    page.values(
        &BUILD_INFO,
        [(vec![KUBELET_VERSION, major, minor, platform.as_str()], 1.0)],
    );
}

/// What the kernel says of this process, which may be more than the node agent.
fn process(page: &mut Page) {
    const PAGE_BYTES: f64 = 4096.0;
    /// The unit of `/proc`, the same on every Linux.
    const TICKS_PER_SECOND: f64 = 100.0;
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    // After the name, which may hold anything: field 3 of the manual is the first.
    let stat = read("/proc/self/stat");
    let fields: Vec<f64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| {
            rest.split_whitespace()
                .map(|n| n.parse().unwrap_or(0.0))
                .collect()
        })
        .unwrap_or_default();
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0.0);
    page.value(&PROCESS_CPU, (field(14) + field(15)) / TICKS_PER_SECOND);
    page.value(&PROCESS_VIRTUAL, field(23));
    page.value(&PROCESS_RESIDENT, field(24) * PAGE_BYTES);
    let uptime: f64 = read("/proc/uptime")
        .split_whitespace()
        .next()
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(0.0);
    let age =
        Duration::try_from_secs_f64(uptime - field(22) / TICKS_PER_SECOND).unwrap_or_default();
    page.value(&PROCESS_START, unix_seconds(SystemTime::now() - age));
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    page.value(&PROCESS_OPEN_FDS, open as f64);
    let limits = read("/proc/self/limits");
    let max = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    page.value(&PROCESS_MAX_FDS, max.unwrap_or(f64::INFINITY));
}
