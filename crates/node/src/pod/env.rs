//! A container's environment: services, `envFrom`, `env`, in that order of weakness.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, Secret, Service, ServiceSpec};
use thiserror::Error;

use super::expansion::expand;
use super::fields::{self, Facts};
use super::{namespace, spec};

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum EnvError {
    #[error("configmap \"{0}\" not found")]
    NoConfigMap(String),
    #[error("secret \"{0}\" not found")]
    NoSecret(String),
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        kind: &'static str,
        namespace: String,
        name: String,
        key: String,
    },
    #[error(transparent)]
    Field(#[from] fields::FieldError),
    #[error("fileKeyRef is not supported yet (variable {0})")]
    FileKeyRef(String),
}

/// Objects the environment refers to, read before the pure part runs.
pub(crate) struct EnvInput<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) container: &'a Container,
    pub(crate) config_maps: &'a HashMap<String, std::sync::Arc<ConfigMap>>,
    pub(crate) secrets: &'a HashMap<String, std::sync::Arc<Secret>>,
    /// Services of the pod's namespace, and the API server's own.
    pub(crate) services: &'a [std::sync::Arc<Service>],
    pub(crate) facts: &'a Facts,
}

/// Names of ConfigMaps and Secrets that a container's environment reads.
pub(crate) fn references(container: &Container) -> (Vec<String>, Vec<String>) {
    let (mut config_maps, mut secrets) = (Vec::new(), Vec::new());
    for source in container.env_from.as_deref().unwrap_or_default() {
        config_maps.extend(source.config_map_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(source.secret_ref.as_ref().map(|r| r.name.clone()));
    }
    for variable in container.env.as_deref().unwrap_or_default() {
        let Some(from) = variable.value_from.as_ref() else {
            continue;
        };
        config_maps.extend(from.config_map_key_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(from.secret_key_ref.as_ref().map(|r| r.name.clone()));
    }
    (config_maps, secrets)
}

/// The environment in the order it is set; a name stands once.
pub(crate) fn build(input: &EnvInput<'_>) -> Result<Vec<(String, String)>, EnvError> {
    let service_env = service_variables(input);
    let mut result: Vec<(String, String)> = Vec::new();
    let mut index: HashMap<String, usize> = HashMap::new();
    let mut set = |name: String, value: String| match index.get(&name) {
        Some(at) => result[*at].1 = value,
        None => {
            index.insert(name.clone(), result.len());
            result.push((name, value));
        }
    };
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in from_sources(input)? {
        known.insert(name.clone(), value.clone());
        set(name, value);
    }
    for variable in input.container.env.as_deref().unwrap_or_default() {
        let value = match variable.value.as_deref() {
            Some(text) if !text.is_empty() => Some(expand(text, |name| {
                known
                    .get(name)
                    .cloned()
                    .or_else(|| service_env.get(name).cloned())
            })),
            _ => value_from(input, variable)?,
        };
        // An optional reference to something absent leaves the variable unset.
        let Some(value) = value else { continue };
        known.insert(variable.name.clone(), value.clone());
        set(variable.name.clone(), value);
    }
    let taken = index;
    result.extend(
        service_env
            .into_iter()
            .filter(|(name, _)| !taken.contains_key(name)),
    );
    Ok(result)
}

fn from_sources(input: &EnvInput<'_>) -> Result<Vec<(String, String)>, EnvError> {
    let mut variables = Vec::new();
    for source in input.container.env_from.as_deref().unwrap_or_default() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = source.config_map_ref.as_ref() {
            match input.config_maps.get(&reference.name) {
                Some(map) => variables.extend(
                    map.data
                        .iter()
                        .flatten()
                        .map(|(key, value)| (format!("{prefix}{key}"), value.clone())),
                ),
                None if reference.optional.unwrap_or(false) => {}
                None => return Err(EnvError::NoConfigMap(reference.name.clone())),
            }
        }
        if let Some(reference) = source.secret_ref.as_ref() {
            match input.secrets.get(&reference.name) {
                Some(secret) => {
                    variables.extend(secret.data.iter().flatten().map(|(key, value)| {
                        (
                            format!("{prefix}{key}"),
                            String::from_utf8_lossy(&value.0).into_owned(),
                        )
                    }))
                }
                None if reference.optional.unwrap_or(false) => {}
                None => return Err(EnvError::NoSecret(reference.name.clone())),
            }
        }
    }
    variables.retain(|(name, _)| is_env_name(name));
    Ok(variables)
}

/// Any printable ASCII name without `=` can be set.
fn is_env_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=')
}

fn value_from(input: &EnvInput<'_>, variable: &EnvVar) -> Result<Option<String>, EnvError> {
    let Some(from) = variable.value_from.as_ref() else {
        return Ok(Some(String::new()));
    };
    if let Some(reference) = from.field_ref.as_ref() {
        return Ok(Some(fields::field_value(
            input.pod,
            &reference.field_path,
            input.facts,
        )?));
    }
    if let Some(reference) = from.resource_field_ref.as_ref() {
        return Ok(Some(fields::resource_value(
            input.pod,
            input.container,
            reference,
            input.facts,
        )?));
    }
    if let Some(reference) = from.config_map_key_ref.as_ref() {
        let optional = reference.optional.unwrap_or(false);
        let Some(map) = input.config_maps.get(&reference.name) else {
            return absent(optional, EnvError::NoConfigMap(reference.name.clone()));
        };
        return match map.data.as_ref().and_then(|data| data.get(&reference.key)) {
            Some(value) => Ok(Some(value.clone())),
            None => absent(
                optional,
                no_key("ConfigMap", input.pod, &reference.name, &reference.key),
            ),
        };
    }
    if let Some(reference) = from.secret_key_ref.as_ref() {
        let optional = reference.optional.unwrap_or(false);
        let Some(secret) = input.secrets.get(&reference.name) else {
            return absent(optional, EnvError::NoSecret(reference.name.clone()));
        };
        return match secret
            .data
            .as_ref()
            .and_then(|data| data.get(&reference.key))
        {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None => absent(
                optional,
                no_key("Secret", input.pod, &reference.name, &reference.key),
            ),
        };
    }
    if from.file_key_ref.is_some() {
        return Err(EnvError::FileKeyRef(variable.name.clone()));
    }
    Ok(Some(String::new()))
}

fn absent(optional: bool, error: EnvError) -> Result<Option<String>, EnvError> {
    if optional { Ok(None) } else { Err(error) }
}

fn no_key(kind: &'static str, pod: &Pod, name: &str, key: &str) -> EnvError {
    EnvError::NoKey {
        kind,
        namespace: namespace(pod).to_owned(),
        name: name.to_owned(),
        key: key.to_owned(),
    }
}

/// Docker-links-style variables of Services that existed before the container.
fn service_variables(input: &EnvInput<'_>) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for (name, service_spec) in linked_services(input) {
        let ip = service_spec.cluster_ip.as_deref().unwrap_or_default();
        let prefix = name.to_uppercase().replace('-', "_");
        let ports = service_spec.ports.as_deref().unwrap_or_default();
        variables.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
        if let Some(first) = ports.first() {
            variables.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
        }
        for (position, port) in ports.iter().enumerate() {
            if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
                let port_name = port_name.to_uppercase().replace('-', "_");
                variables.insert(
                    format!("{prefix}_SERVICE_PORT_{port_name}"),
                    port.port.to_string(),
                );
            }
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let host = if ip.contains(':') {
                format!("[{ip}]")
            } else {
                ip.to_owned()
            };
            let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
            if position == 0 {
                variables.insert(format!("{prefix}_PORT"), url.clone());
            }
            let base = format!("{prefix}_PORT_{}_{protocol}", port.port);
            variables.insert(format!("{base}_PROTO"), protocol.to_lowercase());
            variables.insert(format!("{base}_PORT"), port.port.to_string());
            variables.insert(format!("{base}_ADDR"), ip.to_owned());
            variables.insert(base, url);
        }
    }
    variables
}

/// Services that variables are made of, by name. The API server's is always among them, unless the
/// pod's namespace has one of its name: that one is the pod's own.
fn linked_services<'a>(input: &EnvInput<'a>) -> BTreeMap<&'a str, &'a ServiceSpec> {
    let links = spec(input.pod).enable_service_links.unwrap_or(true);
    let mut linked = BTreeMap::new();
    for service in input.services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let service_namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let Some(service_spec) = service
            .spec
            .as_ref()
            .filter(|spec| !matches!(spec.cluster_ip.as_deref(), None | Some("" | "None")))
        else {
            continue;
        };
        if service_namespace == "default" && name == "kubernetes" {
            linked.entry(name).or_insert(service_spec);
        } else if links && service_namespace == namespace(input.pod) {
            linked.insert(name, service_spec);
        }
    }
    linked
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn run(container: serde_json::Value) -> Result<BTreeMap<String, String>, EnvError> {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": [container]}}),
        )
        .unwrap();
        let map: ConfigMap = serde_json::from_value(
            json!({"metadata": {"name": "m"}, "data": {"A": "1", "b.c": "2"}}),
        )
        .unwrap();
        let secret: Secret =
            serde_json::from_value(json!({"metadata": {"name": "s"}, "data": {"K": "djE="}}))
                .unwrap();
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "my-db", "namespace": "ns"},
            "spec": {"clusterIP": "10.0.0.5", "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}]}}))
        .unwrap();
        let other: Service =
            serde_json::from_value(json!({"metadata": {"name": "x", "namespace": "other"},
            "spec": {"clusterIP": "10.0.0.6", "ports": [{"port": 1}]}}))
            .unwrap();
        let hosts: ConfigMap = serde_json::from_value(
            json!({"metadata": {"name": "hosts"}, "data": {"HOST": "mapped"}}),
        )
        .unwrap();
        let same_key: Secret =
            serde_json::from_value(json!({"metadata": {"name": "s2"}, "data": {"A": "c2VjcmV0"}}))
                .unwrap();
        let api_of = |namespace: &str, ip: &str| -> Service {
            serde_json::from_value(
                json!({"metadata": {"name": "kubernetes", "namespace": namespace},
                "spec": {"clusterIP": ip, "ports": [{"port": 443}]}}),
            )
            .unwrap()
        };
        let (own_api, api) = (api_of("ns", "10.0.0.9"), api_of("default", "10.0.0.1"));
        let env = build(&EnvInput {
            pod: &pod,
            container: &super::super::regular_containers(&pod)[0],
            config_maps: &HashMap::from([
                ("m".to_owned(), Arc::new(map)),
                ("hosts".to_owned(), Arc::new(hosts)),
            ]),
            secrets: &HashMap::from([
                ("s".to_owned(), Arc::new(secret)),
                ("s2".to_owned(), Arc::new(same_key)),
            ]),
            services: &[
                Arc::new(service),
                Arc::new(own_api),
                Arc::new(other),
                Arc::new(api),
            ],
            facts: &Facts::default(),
        })?;
        Ok(env.into_iter().collect())
    }

    #[test]
    fn sources_and_references() {
        let env = run(json!({"name": "c",
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}, {"secretRef": {"name": "s"}}],
            "env": [
                {"name": "X", "value": "$(P_A)-$(MY_DB_SERVICE_PORT)-$(NO)"},
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "CM", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "A"}}},
                {"name": "OPT", "valueFrom": {"configMapKeyRef": {"name": "zz", "key": "A", "optional": true}}},
                {"name": "SEC", "valueFrom": {"secretKeyRef": {"name": "s", "key": "K"}}},
                {"name": "EMPTY"}]}))
        .unwrap();
        assert_eq!(env["P_A"], "1");
        assert_eq!(env["P_b.c"], "2");
        assert_eq!(env["K"], "v1");
        assert_eq!(env["X"], "1-5432-$(NO)");
        assert_eq!(env["NAME"], "p");
        assert_eq!(
            (
                env["CM"].as_str(),
                env["SEC"].as_str(),
                env["EMPTY"].as_str()
            ),
            ("1", "v1", "")
        );
        assert!(!env.contains_key("OPT"));
        assert_eq!(env["MY_DB_PORT_5432_TCP"], "tcp://10.0.0.5:5432");
        assert!(!env.contains_key("X_SERVICE_HOST"));
    }

    #[test]
    fn the_later_and_nearer_source_of_a_variable_counts() {
        let cases = [
            // `env` before `envFrom` before services.
            (
                json!({"name": "c", "envFrom": [{"configMapRef": {"name": "m"}}], "env": [{"name": "A", "value": "own"}]}),
                "A",
                "own",
            ),
            (
                json!({"name": "c", "env": [{"name": "MY_DB_SERVICE_HOST", "value": "own"}]}),
                "MY_DB_SERVICE_HOST",
                "own",
            ),
            // A later source before an earlier one, a later variable before an earlier one.
            (
                json!({"name": "c", "envFrom": [{"configMapRef": {"name": "m"}}, {"secretRef": {"name": "s2"}}]}),
                "A",
                "secret",
            ),
            (
                json!({"name": "c", "env": [{"name": "B", "value": "1"}, {"name": "B", "value": "$(B)2"}]}),
                "B",
                "12",
            ),
            // A reference sees what stands before it, services below all.
            (
                json!({"name": "c", "env": [{"name": "C", "value": "$(D)"}, {"name": "D", "value": "x"}]}),
                "C",
                "$(D)",
            ),
            (
                json!({"name": "c", "envFrom": [{"prefix": "MY_DB_SERVICE_", "configMapRef": {"name": "hosts"}}],
                    "env": [{"name": "E", "value": "$(MY_DB_SERVICE_HOST)"}]}),
                "E",
                "mapped",
            ),
            // A Service of the pod's namespace before the API server's.
            (json!({"name": "c"}), "KUBERNETES_SERVICE_HOST", "10.0.0.9"),
        ];
        for (container, name, value) in cases {
            let env = run(container.clone()).unwrap();
            assert_eq!(env[name], value, "{container}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let error =
            run(json!({"name": "c", "envFrom": [{"configMapRef": {"name": "gone"}}]})).unwrap_err();
        assert_eq!(error.to_string(), "configmap \"gone\" not found");
        let error = run(json!({"name": "c", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "z"}}}]})).unwrap_err();
        assert_eq!(error.to_string(), "couldn't find key z in Secret ns/s");
    }
}
