//! Figures: `/stats/summary`, `/metrics/resource`.

use std::fmt::Write;
use std::sync::Arc;

use http::{Response, StatusCode};
use k8s_openapi::api::core::v1::Pod;
use keelson_ports::{CgroupStats, ContainerStats};
use serde_json::{Value, json};

use super::{Body, Server, full, json as json_response, response};
use crate::plan::RuntimePod;
use crate::pod::{self, qos};

pub(super) const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

struct PodFigures {
    pod: Arc<Pod>,
    cgroup: CgroupStats,
    containers: Vec<(String, u64, ContainerStats)>,
}

async fn gather(server: &Server) -> Vec<PodFigures> {
    let node = &server.agent.node;
    let mut figures = Vec::new();
    for pod in server.agent.pods() {
        let runtime: RuntimePod = node.state.pod(pod::uid(&pod));
        let mut containers = Vec::new();
        for status in runtime.running() {
            let Ok(stats) = node.runtime.container_stats(&status.id).await else {
                continue;
            };
            let started = status.started_at.unwrap_or(status.created_at);
            let started_s = started
                .duration_since(std::time::SystemTime::UNIX_EPOCH)
                .map_or(0, |d| d.as_secs());
            containers.push((status.name.clone(), started_s, stats));
        }
        if containers.is_empty() {
            continue;
        }
        let cgroup = node
            .cgroups
            .stats(&qos::cgroup_path(&pod))
            .await
            .unwrap_or_default();
        figures.push(PodFigures {
            pod,
            cgroup,
            containers,
        });
    }
    figures
}

fn cpu_memory(cgroup: &CgroupStats, time: &Value) -> Value {
    json!({
        "cpu": {"time": time, "usageCoreNanoSeconds": cgroup.cpu_usage_ns},
        "memory": {
            "time": time,
            "usageBytes": cgroup.memory_usage_bytes,
            "workingSetBytes": cgroup.memory_working_set_bytes,
            "rssBytes": cgroup.memory_rss_bytes,
            "pageFaults": cgroup.memory_page_faults,
            "majorPageFaults": cgroup.memory_major_page_faults,
            "availableBytes": cgroup.memory_limit_bytes.map(|limit| limit.saturating_sub(cgroup.memory_working_set_bytes)),
        },
    })
}

pub(super) async fn summary(server: &Server) -> Response<Body> {
    let node = &server.agent.node;
    let time = json!(pod::time(node.clock.now()));
    let root = node.cgroups.stats("/").await.unwrap_or_default();
    let disk = node
        .mounts
        .fs_usage(&node.config.data_dir)
        .await
        .unwrap_or_default();
    let mut of_node = cpu_memory(&root, &time);
    of_node["nodeName"] = json!(node.config.node_name);
    of_node["fs"] = json!({
        "time": time,
        "availableBytes": disk.available_bytes,
        "capacityBytes": disk.capacity_bytes,
        "usedBytes": disk.used_bytes,
        "inodes": disk.inodes,
        "inodesFree": disk.inodes_free,
        "inodesUsed": disk.inodes.saturating_sub(disk.inodes_free),
    });
    let pods: Vec<Value> = gather(server)
        .await
        .iter()
        .map(|figures| {
            let mut of_pod = cpu_memory(&figures.cgroup, &time);
            of_pod["podRef"] = json!({
                "name": pod::name(&figures.pod),
                "namespace": pod::namespace(&figures.pod),
                "uid": pod::uid(&figures.pod),
            });
            of_pod["startTime"] = json!(
                figures
                    .pod
                    .status
                    .as_ref()
                    .and_then(|status| status.start_time.clone())
            );
            of_pod["process_stats"] = json!({"process_count": figures.cgroup.pids});
            of_pod["containers"] = figures
                .containers
                .iter()
                .map(|(name, _, stats)| {
                    let mut of_container = cpu_memory(&stats.cgroup, &time);
                    of_container["name"] = json!(name);
                    of_container["rootfs"] = json!({
                        "time": time,
                        "usedBytes": stats.writable_layer_bytes,
                        "inodesUsed": stats.writable_layer_inodes,
                    });
                    of_container
                })
                .collect();
            of_pod
        })
        .collect();
    json_response(&json!({"node": of_node, "pods": pods}))
}

/// Label values are escaped as the exposition format wants.
fn label(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn head(output: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(
        output,
        "# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}"
    );
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

pub(super) async fn resource_metrics(server: &Server) -> Response<Body> {
    let node = &server.agent.node;
    let figures = gather(server).await;
    let mut output = String::new();
    let per_container =
        |output: &mut String, name: &str, value: &dyn Fn(&(String, u64, ContainerStats)) -> f64| {
            for figures in &figures {
                for container in &figures.containers {
                    let _ = writeln!(
                        output,
                        "{name}{{container=\"{}\",namespace=\"{}\",pod=\"{}\"}} {}",
                        label(&container.0),
                        label(pod::namespace(&figures.pod)),
                        label(pod::name(&figures.pod)),
                        value(container)
                    );
                }
            }
        };
    let per_pod = |output: &mut String, name: &str, value: &dyn Fn(&CgroupStats) -> f64| {
        for figures in &figures {
            let _ = writeln!(
                output,
                "{name}{{namespace=\"{}\",pod=\"{}\"}} {}",
                label(pod::namespace(&figures.pod)),
                label(pod::name(&figures.pod)),
                value(&figures.cgroup)
            );
        }
    };
    let name = "container_cpu_usage_seconds_total";
    head(
        &mut output,
        name,
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
    );
    per_container(&mut output, name, &|container| {
        seconds(container.2.cgroup.cpu_usage_ns)
    });
    let name = "container_memory_working_set_bytes";
    head(
        &mut output,
        name,
        "gauge",
        "Current working set of the container in bytes",
    );
    per_container(&mut output, name, &|container| {
        container.2.cgroup.memory_working_set_bytes as f64
    });
    let name = "container_start_time_seconds";
    head(
        &mut output,
        name,
        "gauge",
        "Start time of the container since unix epoch in seconds",
    );
    per_container(&mut output, name, &|container| container.1 as f64);
    let name = "pod_cpu_usage_seconds_total";
    head(
        &mut output,
        name,
        "counter",
        "Cumulative cpu time consumed by the pod in core-seconds",
    );
    per_pod(&mut output, name, &|cgroup| seconds(cgroup.cpu_usage_ns));
    let name = "pod_memory_working_set_bytes";
    head(
        &mut output,
        name,
        "gauge",
        "Current working set of the pod in bytes",
    );
    per_pod(&mut output, name, &|cgroup| {
        cgroup.memory_working_set_bytes as f64
    });
    let root = node.cgroups.stats("/").await;
    let whole = root.clone().unwrap_or_default();
    head(
        &mut output,
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
    );
    let _ = writeln!(
        output,
        "node_cpu_usage_seconds_total {}",
        seconds(whole.cpu_usage_ns)
    );
    head(
        &mut output,
        "node_memory_working_set_bytes",
        "gauge",
        "Current working set of the node in bytes",
    );
    let _ = writeln!(
        output,
        "node_memory_working_set_bytes {}",
        whole.memory_working_set_bytes
    );
    head(
        &mut output,
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
    );
    let _ = writeln!(output, "resource_scrape_error {}", u8::from(root.is_err()));
    response(StatusCode::OK, PROMETHEUS, full(output))
}
