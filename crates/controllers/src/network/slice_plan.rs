//! Distributing endpoints over EndpointSlices with as few writes as possible. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};

use super::address::Port;

/// No slice holds more endpoints than this.
pub(crate) const MAX_PER_SLICE: usize = 100;

#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub create: Vec<Draft>,
    pub update: Vec<(Arc<EndpointSlice>, Draft)>,
    pub delete: Vec<Arc<EndpointSlice>>,
}

/// The part of a slice that is planned; labels and owner are the same for all.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Draft {
    pub address_type: String,
    pub ports: Vec<Port>,
    pub endpoints: Vec<Endpoint>,
}

pub(crate) type Groups = BTreeMap<Vec<Port>, Vec<Endpoint>>;

/// `desired` holds, for every address type that must be present, the endpoints by their ports.
pub(crate) fn plan(
    desired: &BTreeMap<String, Groups>,
    existing: &[Arc<EndpointSlice>],
    labels_fit: impl Fn(&EndpointSlice) -> bool,
) -> Plan {
    let mut plan = Plan::default();
    for slice in existing {
        if !desired.contains_key(&slice.address_type) {
            plan.delete.push(slice.clone());
        }
    }
    for (address_type, groups) in desired {
        let of_type: Vec<&Arc<EndpointSlice>> = existing
            .iter()
            .filter(|s| &s.address_type == address_type)
            .collect();
        plan_type(&mut plan, address_type, groups, &of_type, &labels_fit);
    }
    plan
}

fn plan_type(
    plan: &mut Plan,
    address_type: &str,
    groups: &Groups,
    existing: &[&Arc<EndpointSlice>],
    labels_fit: &impl Fn(&EndpointSlice) -> bool,
) {
    let mut keep: Vec<(Option<Arc<EndpointSlice>>, Draft)> = Vec::new();
    let mut spare: Vec<Arc<EndpointSlice>> = existing
        .iter()
        .filter(|s| !groups.contains_key(&ports_of(s)))
        .map(|s| (*s).clone())
        .collect();
    for (ports, wanted) in groups {
        let mut left: BTreeMap<String, Endpoint> =
            wanted.iter().map(|e| (identity(e), e.clone())).collect();
        let mut drafts: Vec<(Option<Arc<EndpointSlice>>, Draft)> = Vec::new();
        for slice in existing.iter().filter(|s| &ports_of(s) == ports) {
            let endpoints: Vec<Endpoint> = slice
                .endpoints
                .iter()
                .flatten()
                .filter_map(|e| left.remove(&identity(e)))
                .take(MAX_PER_SLICE)
                .collect();
            drafts.push((
                Some((*slice).clone()),
                draft(address_type, ports, endpoints),
            ));
        }
        // The fullest slices take the newcomers first, so that slices stay few.
        drafts.sort_by_key(|(_, d)| std::cmp::Reverse(d.endpoints.len()));
        let mut left = left.into_values();
        for (_, draft) in &mut drafts {
            let room = MAX_PER_SLICE.saturating_sub(draft.endpoints.len());
            draft.endpoints.extend(left.by_ref().take(room));
        }
        loop {
            let chunk: Vec<Endpoint> = left.by_ref().take(MAX_PER_SLICE).collect();
            if chunk.is_empty() {
                break;
            }
            drafts.push((spare.pop(), draft(address_type, ports, chunk)));
        }
        keep.extend(drafts);
    }
    let (full, empty): (Vec<_>, Vec<_>) =
        keep.into_iter().partition(|(_, d)| !d.endpoints.is_empty());
    let placeholder = full.is_empty();
    spare.extend(empty.into_iter().filter_map(|(slice, _)| slice));
    for (slice, draft) in full {
        settle(plan, slice, draft, labels_fit);
    }
    if placeholder {
        // An empty slice says that the Service is known and has nothing behind it.
        let slice = if spare.is_empty() {
            None
        } else {
            Some(spare.remove(0))
        };
        settle(
            plan,
            slice,
            draft(address_type, &[], Vec::new()),
            labels_fit,
        );
    }
    plan.delete.extend(spare);
}

fn settle(
    plan: &mut Plan,
    slice: Option<Arc<EndpointSlice>>,
    draft: Draft,
    labels_fit: &impl Fn(&EndpointSlice) -> bool,
) {
    match slice {
        None => plan.create.push(draft),
        Some(slice) => {
            let same = ports_of(&slice) == draft.ports
                && slice.endpoints.as_deref().unwrap_or_default() == draft.endpoints
                && labels_fit(&slice);
            if !same {
                plan.update.push((slice, draft));
            }
        }
    }
}

fn draft(address_type: &str, ports: &[Port], endpoints: Vec<Endpoint>) -> Draft {
    Draft {
        address_type: address_type.to_owned(),
        ports: ports.to_vec(),
        endpoints,
    }
}

/// The same pod under the same address is the same endpoint.
fn identity(endpoint: &Endpoint) -> String {
    let target = endpoint
        .target_ref
        .as_ref()
        .and_then(|t| t.uid.clone())
        .unwrap_or_default();
    format!("{target}/{}", endpoint.addresses.join(","))
}

fn ports_of(slice: &EndpointSlice) -> Vec<Port> {
    let mut ports: Vec<Port> = slice
        .ports
        .iter()
        .flatten()
        .map(|p| Port {
            name: p.name.clone().unwrap_or_default(),
            port: p.port.unwrap_or(0),
            protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
            app_protocol: p.app_protocol.clone(),
        })
        .collect();
    ports.sort();
    ports
}

pub(crate) fn slice_ports(ports: &[Port]) -> Vec<EndpointPort> {
    ports
        .iter()
        .map(|p| EndpointPort {
            name: Some(p.name.clone()),
            port: Some(p.port),
            protocol: Some(p.protocol.clone()),
            app_protocol: p.app_protocol.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(n: usize) -> Endpoint {
        Endpoint {
            addresses: vec![format!("10.0.{}.{}", n / 256, n % 256)],
            ..Endpoint::default()
        }
    }

    fn port(number: i32) -> Vec<Port> {
        vec![Port {
            name: String::new(),
            port: number,
            protocol: "TCP".into(),
            app_protocol: None,
        }]
    }

    fn desired(groups: &[(i32, std::ops::Range<usize>)]) -> BTreeMap<String, Groups> {
        let groups = groups
            .iter()
            .map(|(p, range)| (port(*p), range.clone().map(endpoint).collect()))
            .collect();
        BTreeMap::from([("IPv4".to_owned(), groups)])
    }

    fn slice(name: &str, number: i32, range: std::ops::Range<usize>) -> Arc<EndpointSlice> {
        let mut slice = EndpointSlice {
            address_type: "IPv4".into(),
            endpoints: Some(range.map(endpoint).collect()),
            ports: Some(slice_ports(&port(number))),
            ..EndpointSlice::default()
        };
        slice.metadata.name = Some(name.into());
        Arc::new(slice)
    }

    #[test]
    fn splits_at_one_hundred() {
        let plan = plan(&desired(&[(80, 0..250)]), &[], |_| true);
        let sizes: Vec<_> = plan.create.iter().map(|d| d.endpoints.len()).collect();
        assert_eq!(sizes, [100, 100, 50]);
    }

    #[test]
    fn nothing_to_do_writes_nothing() {
        let plan = plan(&desired(&[(80, 0..3)]), &[slice("a", 80, 0..3)], |_| true);
        assert!(plan.create.is_empty() && plan.update.is_empty() && plan.delete.is_empty());
    }

    #[test]
    fn newcomers_fill_the_fullest_slice_and_empty_ones_go() {
        let existing = [slice("a", 80, 0..99), slice("b", 80, 200..201)];
        let plan = plan(&desired(&[(80, 0..100)]), &existing, |_| true);
        assert_eq!(plan.update.len(), 1);
        assert_eq!(plan.update[0].0.metadata.name.as_deref(), Some("a"));
        assert_eq!(plan.delete.len(), 1);
        assert!(plan.create.is_empty());
    }

    #[test]
    fn without_endpoints_one_empty_slice_stays() {
        let created = plan(&desired(&[]), &[], |_| true);
        assert_eq!(created.create.len(), 1);
        assert!(created.create[0].ports.is_empty());
        let emptied = plan(
            &desired(&[]),
            &[slice("a", 80, 0..2), slice("b", 80, 2..3)],
            |_| true,
        );
        assert_eq!((emptied.update.len(), emptied.delete.len()), (1, 1));
    }

    #[test]
    fn changed_labels_or_ports_are_rewritten() {
        let relabelled = plan(&desired(&[(80, 0..1)]), &[slice("a", 80, 0..1)], |_| false);
        assert_eq!(relabelled.update.len(), 1);
        let reported = plan(&desired(&[(81, 0..1)]), &[slice("a", 80, 0..1)], |_| true);
        assert_eq!(
            (
                reported.update.len(),
                reported.create.len(),
                reported.delete.len()
            ),
            (1, 0, 0)
        );
    }
}
