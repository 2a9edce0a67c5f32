//! Amounts of what nodes offer and pods request.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use keelson_machinery::quantity::Quantity;

/// A pod that requests nothing still counts as this much when nodes are scored, so that empty
/// requests spread too: 100 millicores and 200 MiB, upstream's figures.
pub(crate) const DEFAULT_MILLI_CPU: i64 = 100;
pub(crate) const DEFAULT_MEMORY_BYTES: i64 = 200 << 20;

/// CPU in millicores, everything else in its own unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    pub(crate) milli_cpu: i64,
    pub(crate) memory: i64,
    pub(crate) other: BTreeMap<String, i64>,
}

impl Resources {
    pub(crate) fn of(list: Option<&BTreeMap<String, ApiQuantity>>) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in list.into_iter().flatten() {
            // The API server validates quantities; one that is not counts as nothing.
            let Ok(quantity) = Quantity::parse(&quantity.0) else {
                continue;
            };
            match name.as_str() {
                "cpu" => resources.milli_cpu = quantity.milli_value(),
                "memory" => resources.memory = quantity.value(),
                _ => {
                    resources.other.insert(name.clone(), quantity.value());
                }
            }
        }
        resources
    }

    pub(crate) fn add(&mut self, more: &Self) {
        self.milli_cpu = self.milli_cpu.saturating_add(more.milli_cpu);
        self.memory = self.memory.saturating_add(more.memory);
        for (name, amount) in &more.other {
            let sum = self.other.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    pub(crate) fn subtract(&mut self, less: &Self) {
        self.milli_cpu = self.milli_cpu.saturating_sub(less.milli_cpu);
        self.memory = self.memory.saturating_sub(less.memory);
        for (name, amount) in &less.other {
            let sum = self.other.entry(name.clone()).or_default();
            *sum = sum.saturating_sub(*amount);
        }
    }

    fn raise_to(&mut self, floor: &Self) {
        self.milli_cpu = self.milli_cpu.max(floor.milli_cpu);
        self.memory = self.memory.max(floor.memory);
        for (name, amount) in &floor.other {
            let value = self.other.entry(name.clone()).or_default();
            *value = (*value).max(*amount);
        }
    }
}

/// What a pod needs at its most demanding moment: its containers and sidecars together, or one
/// init container beside the sidecars started before it, plus overhead.
///
/// `requests` turns a container into its requests (raw, or with defaults for scoring).
pub(crate) fn pod_requests(
    spec: &PodSpec,
    requests: impl Fn(&Container) -> Resources,
) -> Resources {
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&requests(container));
    }
    let mut sidecars = Resources::default();
    let mut peak = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let own = requests(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&own);
            peak.raise_to(&sidecars);
        } else {
            let mut moment = sidecars.clone();
            moment.add(&own);
            peak.raise_to(&moment);
        }
    }
    running.add(&sidecars);
    running.raise_to(&peak);
    if let Some(pod_level) = spec
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref())
    {
        let pod_level = Resources::of(Some(pod_level));
        if pod_level.milli_cpu > 0 {
            running.milli_cpu = pod_level.milli_cpu;
        }
        if pod_level.memory > 0 {
            running.memory = pod_level.memory;
        }
    }
    running.add(&Resources::of(spec.overhead.as_ref()));
    running
}

pub(crate) fn container_requests(container: &Container) -> Resources {
    Resources::of(
        container
            .resources
            .as_ref()
            .and_then(|resources| resources.requests.as_ref()),
    )
}

/// Requests with the scoring defaults where none are given.
pub(crate) fn container_requests_for_score(container: &Container) -> Resources {
    let mut requests = container_requests(container);
    let given = container
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref());
    if given.is_none_or(|given| !given.contains_key("cpu")) {
        requests.milli_cpu = DEFAULT_MILLI_CPU;
    }
    if given.is_none_or(|given| !given.contains_key("memory")) {
        requests.memory = DEFAULT_MEMORY_BYTES;
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ResourceRequirements;

    fn container(cpu: &str, restart: Option<&str>) -> Container {
        let requests = BTreeMap::from([("cpu".to_owned(), ApiQuantity(cpu.to_owned()))]);
        Container {
            resources: Some(ResourceRequirements {
                requests: Some(requests),
                ..Default::default()
            }),
            restart_policy: restart.map(str::to_owned),
            ..Default::default()
        }
    }

    #[test]
    fn the_most_demanding_moment_counts() {
        let spec = PodSpec {
            containers: vec![container("100m", None), container("200m", None)],
            init_containers: Some(vec![
                container("50m", Some("Always")),
                container("1", None),
                container("10m", Some("Always")),
            ]),
            ..Default::default()
        };
        assert_eq!(pod_requests(&spec, container_requests).milli_cpu, 1050);
        let spec = PodSpec {
            init_containers: Some(vec![container("50m", Some("Always"))]),
            ..spec
        };
        assert_eq!(pod_requests(&spec, container_requests).milli_cpu, 350);
    }
}
