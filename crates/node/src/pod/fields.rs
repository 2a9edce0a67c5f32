//! The downward API: a pod's own fields and resources as text.

use k8s_openapi::api::core::v1::{Container, Pod};
use thiserror::Error;

use super::resources::{limit, request};
use super::{name, namespace, regular_containers, spec, uid};

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum FieldError {
    #[error("unsupported fieldPath: {0}")]
    UnsupportedPath(String),
    #[error("unsupported container resource : {0}")]
    UnsupportedResource(String),
    #[error("container {0} not found")]
    NoContainer(String),
    #[error("invalid divisor {0}")]
    Divisor(String),
}

/// Facts that are not in the pod's metadata and specification.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    pub(crate) node_name: String,
    pub(crate) host_ips: Vec<String>,
    pub(crate) pod_ips: Vec<String>,
    /// What a container without a limit is told it has.
    pub(crate) allocatable_cpu_milli: i64,
    pub(crate) allocatable_memory_bytes: i64,
    pub(crate) allocatable_storage_bytes: i64,
}

/// The value of a `fieldRef` path.
pub(crate) fn field_value(pod: &Pod, path: &str, facts: &Facts) -> Result<String, FieldError> {
    if let Some((map, key)) = subscript(path) {
        let values = match map {
            "metadata.labels" => pod.metadata.labels.as_ref(),
            "metadata.annotations" => pod.metadata.annotations.as_ref(),
            _ => return Err(FieldError::UnsupportedPath(path.to_owned())),
        };
        return Ok(values
            .and_then(|values| values.get(key))
            .cloned()
            .unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => name(pod).to_owned(),
        "metadata.namespace" => namespace(pod).to_owned(),
        "metadata.uid" => uid(pod).to_owned(),
        "metadata.labels" => quoted_lines(pod.metadata.labels.as_ref()),
        "metadata.annotations" => quoted_lines(pod.metadata.annotations.as_ref()),
        "spec.nodeName" => spec(pod)
            .node_name
            .clone()
            .unwrap_or_else(|| facts.node_name.clone()),
        "spec.serviceAccountName" => spec(pod).service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return Err(FieldError::UnsupportedPath(path.to_owned())),
    })
}

/// `metadata.labels['key']` as map and key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let inner = path.strip_suffix("']")?;
    let at = inner.find("['")?;
    Some((&inner[..at], &inner[at + 2..]))
}

fn quoted_lines(map: Option<&std::collections::BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", go_quote(value)))
        .collect();
    lines.join("\n")
}

/// A double-quoted string in the escapes that Go readers of these files expect.
fn go_quote(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('"');
    for character in value.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\u{b}' => quoted.push_str("\\v"),
            c if c.is_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// The value of a `resourceFieldRef`, divided and rounded up.
pub(crate) fn resource_value(
    pod: &Pod,
    container: &Container,
    selector: &k8s_openapi::api::core::v1::ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, FieldError> {
    let container = match selector
        .container_name
        .as_deref()
        .filter(|name| !name.is_empty())
    {
        Some(name) => super::init_containers(pod)
            .iter()
            .chain(regular_containers(pod))
            .find(|candidate| candidate.name == name)
            .ok_or_else(|| FieldError::NoContainer(name.to_owned()))?,
        None => container,
    };
    let divisor_text = selector
        .divisor
        .as_ref()
        .map(|q| q.0.as_str())
        .filter(|q| !q.is_empty() && *q != "0");
    let unsupported = || FieldError::UnsupportedResource(selector.resource.clone());
    let (list, resource) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let quantity = match list {
        "limits" => limit(container, resource),
        "requests" => request(container, resource).or_else(|| limit(container, resource)),
        _ => return Err(unsupported()),
    };
    let fallback = match (list, resource) {
        ("limits", "cpu") => facts.allocatable_cpu_milli,
        ("limits", "memory") => facts.allocatable_memory_bytes,
        ("limits", "ephemeral-storage") => facts.allocatable_storage_bytes,
        _ => 0,
    };
    if resource == "cpu" {
        let divisor = milli_divisor(divisor_text.unwrap_or("1"))?;
        let milli = quantity
            .and_then(super::resources::milli_value)
            .filter(|v| *v > 0)
            .unwrap_or(fallback);
        return Ok(ceil_div(milli, divisor).to_string());
    }
    if resource != "memory"
        && resource != "ephemeral-storage"
        && !resource.starts_with("hugepages-")
    {
        return Err(unsupported());
    }
    let divisor = whole_divisor(divisor_text.unwrap_or("1"))?;
    let amount = quantity
        .and_then(super::resources::value)
        .filter(|v| *v > 0)
        .unwrap_or(fallback);
    Ok(ceil_div(amount, divisor).to_string())
}

fn milli_divisor(text: &str) -> Result<i64, FieldError> {
    let quantity = k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.to_owned());
    super::resources::milli_value(&quantity)
        .filter(|v| *v > 0)
        .ok_or_else(|| FieldError::Divisor(text.to_owned()))
}

fn whole_divisor(text: &str) -> Result<i64, FieldError> {
    let quantity = k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.to_owned());
    super::resources::value(&quantity)
        .filter(|v| *v > 0)
        .ok_or_else(|| FieldError::Divisor(text.to_owned()))
}

fn ceil_div(amount: i64, divisor: i64) -> i64 {
    amount / divisor + i64::from(amount % divisor > 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use k8s_openapi::api::core::v1::ResourceFieldSelector;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u",
                "labels": {"a": "1", "b": "x\"y"}, "annotations": {"k/x": "v\nw"}},
            "spec": {"serviceAccountName": "sa", "nodeName": "node", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}},
                {"name": "d"}]}}))
        .unwrap()
    }

    #[test]
    fn fields() {
        let facts = Facts {
            host_ips: vec!["1.1.1.1".into()],
            pod_ips: vec!["2.2.2.2".into(), "::2".into()],
            ..Facts::default()
        };
        for (path, expected) in [
            ("metadata.name", "p"),
            ("metadata.labels", "a=\"1\"\nb=\"x\\\"y\""),
            ("metadata.annotations", "k/x=\"v\\nw\""),
            ("metadata.labels['a']", "1"),
            ("metadata.annotations['k/x']", "v\nw"),
            ("metadata.labels['none']", ""),
            ("spec.nodeName", "node"),
            ("spec.serviceAccountName", "sa"),
            ("status.podIP", "2.2.2.2"),
            ("status.podIPs", "2.2.2.2,::2"),
            ("status.hostIP", "1.1.1.1"),
        ] {
            assert_eq!(
                field_value(&pod(), path, &facts).unwrap(),
                expected,
                "{path}"
            );
        }
        assert!(field_value(&pod(), "spec.tolerations", &facts).is_err());
    }

    #[test]
    fn resources() {
        let facts = Facts {
            allocatable_cpu_milli: 4000,
            allocatable_memory_bytes: 1 << 30,
            ..Facts::default()
        };
        let read = |resource: &str, container: &str, divisor: Option<&str>| {
            let selector: ResourceFieldSelector = serde_json::from_value(
                json!({"resource": resource, "containerName": container, "divisor": divisor}),
            )
            .unwrap();
            resource_value(&pod(), &Container::default(), &selector, &facts)
        };
        assert_eq!(read("limits.cpu", "c", None).unwrap(), "2");
        assert_eq!(read("limits.cpu", "c", Some("1m")).unwrap(), "1500");
        assert_eq!(read("requests.cpu", "c", Some("1m")).unwrap(), "250");
        assert_eq!(read("limits.memory", "c", Some("1Mi")).unwrap(), "64");
        assert_eq!(read("limits.cpu", "d", None).unwrap(), "4");
        assert_eq!(read("limits.memory", "d", None).unwrap(), "1073741824");
        assert_eq!(read("requests.cpu", "d", None).unwrap(), "0");
        assert!(read("limits.gpu", "d", None).is_err());
        assert!(read("limits.cpu", "zz", None).is_err());
    }
}
