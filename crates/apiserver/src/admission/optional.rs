//! Plugins that are off unless an administrator turns them on.

use std::collections::BTreeSet;

use async_trait::async_trait;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use super::{AdmissionPlugin, Attributes, Cluster, Operation};

const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

fn is_write(operation: Operation) -> bool {
    matches!(operation, Operation::Create | Operation::Update)
}

/// Every image is asked for at its registry, so that a pod gets none its secrets do not open.
pub(super) struct AlwaysPullImages;

#[async_trait]
impl AdmissionPlugin for AlwaysPullImages {
    fn name(&self) -> &'static str {
        "AlwaysPullImages"
    }

    fn is_default(&self) -> bool {
        false
    }

    fn handles(&self, operation: Operation) -> bool {
        is_write(operation)
    }

    async fn admit(&self, attrs: &mut Attributes, _cluster: &Cluster) -> Result<(), Status> {
        let concerned = attrs.is("", "pods")
            || (attrs.is_any("", "pods") && attrs.subresource == "ephemeralcontainers");
        let known = attrs.old_object.as_deref().map(images);
        let Some(pod) = attrs.object.as_mut().filter(|_| concerned) else {
            return Ok(());
        };
        // An update that brings no other image changes nothing about what is pulled.
        if known.is_some_and(|known| images(pod).is_subset(&known)) {
            return Ok(());
        }
        for list in CONTAINERS {
            let containers = pod["spec"].get_mut(list).and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten() {
                container["imagePullPolicy"] = json!("Always");
            }
        }
        let volumes = pod["spec"].get_mut("volumes").and_then(Value::as_array_mut);
        for volume in volumes.into_iter().flatten() {
            if volume["image"].is_object() {
                volume["image"]["pullPolicy"] = json!("Always");
            }
        }
        Ok(())
    }
}

fn images(pod: &Value) -> BTreeSet<String> {
    CONTAINERS
        .iter()
        .flat_map(|list| pod["spec"][*list].as_array().into_iter().flatten())
        .filter_map(|container| container["image"].as_str().map(ToOwned::to_owned))
        .collect()
}

/// A Service may keep its external addresses, but gets no others.
pub(super) struct DenyServiceExternalIps;

#[async_trait]
impl AdmissionPlugin for DenyServiceExternalIps {
    fn name(&self) -> &'static str {
        "DenyServiceExternalIPs"
    }

    fn is_default(&self) -> bool {
        false
    }

    fn handles(&self, operation: Operation) -> bool {
        is_write(operation)
    }

    async fn validate(&self, attrs: &Attributes, _cluster: &Cluster) -> Result<(), Status> {
        let Some(service) = attrs.object.as_ref().filter(|_| attrs.is("", "services")) else {
            return Ok(());
        };
        let addresses = |service: &Value| -> BTreeSet<String> {
            let all = service["spec"]["externalIPs"].as_array();
            let texts = all.into_iter().flatten().filter_map(Value::as_str);
            texts.map(ToOwned::to_owned).collect()
        };
        let old = attrs.old_object.as_deref().map(addresses);
        if addresses(service).is_subset(&old.unwrap_or_default()) {
            return Ok(());
        }
        Err(attrs.forbidden("Use of external IPs is denied by admission control"))
    }
}

/// Pods that ask for a special resource tolerate the taint of the nodes that are kept for it.
pub(super) struct ExtendedResourceToleration;

#[async_trait]
impl AdmissionPlugin for ExtendedResourceToleration {
    fn name(&self) -> &'static str {
        "ExtendedResourceToleration"
    }

    fn is_default(&self) -> bool {
        false
    }

    fn handles(&self, operation: Operation) -> bool {
        is_write(operation)
    }

    async fn admit(&self, attrs: &mut Attributes, _cluster: &Cluster) -> Result<(), Status> {
        let concerned = attrs.is("", "pods");
        if let Some(pod) = attrs.object.as_mut().filter(|_| concerned) {
            tolerate_resources(&mut pod["spec"]);
        }
        Ok(())
    }
}

fn tolerate_resources(spec: &mut Value) {
    let wanted: BTreeSet<String> = ["initContainers", "containers"]
        .iter()
        .flat_map(|list| spec[*list].as_array().into_iter().flatten())
        .flat_map(|container| {
            container["resources"]["requests"]
                .as_object()
                .into_iter()
                .flatten()
        })
        .map(|(name, _)| name.clone())
        .filter(|name| is_extended(name))
        .collect();
    for name in wanted {
        let toleration = json!({"key": name, "operator": "Exists"});
        let mut all = spec["tolerations"].as_array().cloned().unwrap_or_default();
        let tolerated = all.iter().any(|t| {
            t["key"] == toleration["key"] && t["operator"] == "Exists" && t["effect"].is_null()
        });
        if !tolerated {
            all.push(toleration);
            spec["tolerations"] = Value::Array(all);
        }
    }
}

/// Neither the system's own resources nor requests of a quota.
fn is_extended(name: &str) -> bool {
    match name.split_once('/') {
        Some((domain, _)) => !domain.contains("kubernetes.io") && !name.starts_with("requests."),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_resources_are_tolerated_once() {
        let mut spec = json!({"containers": [{"resources": {"requests": {
            "cpu": "1", "example.com/gpu": "1", "kubernetes.io/x": "1", "hugepages-2Mi": "1"}}}]});
        tolerate_resources(&mut spec);
        let once = spec.clone();
        assert_eq!(
            once["tolerations"],
            json!([{"key": "example.com/gpu", "operator": "Exists"}])
        );
        tolerate_resources(&mut spec);
        assert_eq!(spec, once);
    }
}
