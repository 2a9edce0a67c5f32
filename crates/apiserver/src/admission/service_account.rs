//! ServiceAccount: every pod runs as one, and gets its token, the cluster's certificate and its
//! namespace as a projected volume.

use std::time::Duration;

use async_trait::async_trait;
use keelson_machinery::status::Status;
use keelson_machinery::{go, meta, names};
use serde_json::{Value, json};

use super::{AdmissionPlugin, Attributes, Cluster, Operation};
use crate::authz::references::secrets_of;

pub(super) struct ServiceAccount;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// A namespace's default account is made by a controller a moment after the namespace.
const DEFAULT_ATTEMPTS: u32 = 20;
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(50);

#[async_trait]
impl AdmissionPlugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn admit(&self, attrs: &mut Attributes, cluster: &Cluster) -> Result<(), Status> {
        if !attrs.is("", "pods") || attrs.operation != Operation::Create {
            return Ok(());
        }
        let Some(pod) = attrs.object.as_ref() else {
            return Ok(());
        };
        if meta::annotation(pod, MIRROR).is_some() {
            return check_mirror(attrs, pod);
        }
        let wanted = pod["spec"]["serviceAccountName"]
            .as_str()
            .filter(|n| !n.is_empty())
            .unwrap_or("default")
            .to_owned();
        let account = account(attrs, cluster, &wanted).await?;
        if let Some(pod) = attrs.object.as_mut() {
            apply(pod, &account, &wanted);
        }
        Ok(())
    }

    async fn validate(&self, attrs: &Attributes, cluster: &Cluster) -> Result<(), Status> {
        let created = attrs.is("", "pods") && attrs.operation == Operation::Create;
        let extended = attrs.is_any("", "pods") && attrs.subresource == "ephemeralcontainers";
        let Some(pod) = attrs.object.as_ref().filter(|_| created || extended) else {
            return Ok(());
        };
        if created && meta::annotation(pod, MIRROR).is_some() {
            return check_mirror(attrs, pod);
        }
        let name = pod["spec"]["serviceAccountName"]
            .as_str()
            .unwrap_or_default();
        if name.is_empty() {
            return Err(attrs.forbidden(format!(
                "no service account specified for pod {}/{}",
                attrs.namespace,
                meta::name(pod)
            )));
        }
        let account = account(attrs, cluster, name).await?;
        let limited = meta::annotation(&account, "kubernetes.io/enforce-mountable-secrets")
            .is_some_and(|value| go::parse_bool(value) == Some(true));
        match limited.then(|| foreign_secret(pod, &account, created)) {
            Some(Some(message)) if created => Err(attrs.forbidden(message)),
            // Upstream gives this one no class.
            Some(Some(message)) => Err(Status::unclassified(message)),
            _ => Ok(()),
        }
    }
}

async fn account(attrs: &Attributes, cluster: &Cluster, name: &str) -> Result<Value, Status> {
    let attempts = if name == "default" {
        DEFAULT_ATTEMPTS
    } else {
        1
    };
    for attempt in 0..attempts {
        if attempt > 0 {
            tokio::time::sleep(ATTEMPT_INTERVAL).await;
        }
        if let Some(account) = cluster
            .objects
            .get("", "serviceaccounts", &attrs.namespace, name)
        {
            return Ok((*account).clone());
        }
        if let Some(account) = cluster
            .objects
            .read("", "serviceaccounts", &attrs.namespace, name)
            .await?
        {
            return Ok(account);
        }
    }
    Err(attrs.forbidden(format!(
        "error looking up service account {}/{name}: serviceaccount {name:?} not found",
        attrs.namespace
    )))
}

/// The first secret a pod uses that its account does not list, in the words of the refusal. Of
/// an update only ephemeral containers are looked at.
fn foreign_secret(pod: &Value, account: &Value, created: bool) -> Option<String> {
    let items = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let owner = meta::name(account);
    let listed = |key: &str, name: &str| items(&account[key]).iter().any(|s| s["name"] == name);
    let spec = &pod["spec"];
    let lists: &[(&str, &str)] = if created {
        let volume = items(&spec["volumes"])
            .iter()
            .filter(|volume| volume["secret"].is_object())
            .map(|volume| text(&volume["secret"]["secretName"]))
            .find(|name| !listed("secrets", name));
        if let Some(name) = volume {
            return Some(format!(
                "volume with secret.secretName=\"{name}\" is not allowed because service account {owner} does not reference that secret"
            ));
        }
        &[
            ("initContainers", "init container"),
            ("containers", "container"),
        ]
    } else {
        &[("ephemeralContainers", "ephemeral container")]
    };
    for (list, label) in lists {
        for container in items(&spec[*list]) {
            let label = format!("{label} {}", text(&container["name"]));
            for variable in items(&container["env"]) {
                let reference = &variable["valueFrom"]["secretKeyRef"];
                let name = text(&reference["name"]);
                if reference.is_object() && !listed("secrets", &name) {
                    return Some(format!(
                        "{label} with envVar {} referencing secret.secretName=\"{name}\" is not allowed because service account {owner} does not reference that secret",
                        text(&variable["name"])
                    ));
                }
            }
            for source in items(&container["envFrom"]) {
                let name = text(&source["secretRef"]["name"]);
                if source["secretRef"].is_object() && !listed("secrets", &name) {
                    return Some(format!(
                        "{label} with envFrom referencing secret.secretName=\"{name}\" is not allowed because service account {owner} does not reference that secret"
                    ));
                }
            }
        }
    }
    let pull = items(&spec["imagePullSecrets"]);
    let foreign = pull
        .iter()
        .map(|s| text(&s["name"]))
        .enumerate()
        .find(|(_, name)| created && !listed("imagePullSecrets", name));
    foreign.map(|(index, name)| {
        format!(
            "imagePullSecrets[{index}].name=\"{name}\" is not allowed because service account {owner} does not reference that imagePullSecret"
        )
    })
}

/// A mirror pod shows what a node runs by itself; it can use nothing of the cluster.
fn check_mirror(attrs: &Attributes, pod: &Value) -> Result<(), Status> {
    if pod["spec"]["serviceAccountName"]
        .as_str()
        .is_some_and(|n| !n.is_empty())
    {
        return Err(attrs.forbidden("a mirror pod may not reference service accounts"));
    }
    if secrets_of(pod).next().is_some() {
        return Err(attrs.forbidden("a mirror pod may not reference secrets"));
    }
    let projects = |volume: &Value| {
        volume["projected"]["sources"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|s| s["serviceAccountToken"].is_object())
    };
    if pod["spec"]["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .any(projects)
    {
        return Err(
            attrs.forbidden("a mirror pod may not use ServiceAccountToken volume projections")
        );
    }
    Ok(())
}

fn apply(pod: &mut Value, account: &Value, name: &str) {
    pod["spec"]["serviceAccountName"] = json!(name);
    pod["spec"]["serviceAccount"] = json!(name);
    let automount = pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or_else(|| account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if automount {
        mount_token(&mut pod["spec"]);
    }
    let has_pull_secrets = pod["spec"]["imagePullSecrets"]
        .as_array()
        .is_some_and(|s| !s.is_empty());
    if let Some(secrets) = account["imagePullSecrets"]
        .as_array()
        .filter(|s| !s.is_empty())
        && !has_pull_secrets
    {
        pod["spec"]["imagePullSecrets"] = json!(secrets);
    }
}

fn mount_token(spec: &mut Value) {
    let existing = spec["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v["name"].as_str())
        .find(|name| name.starts_with(VOLUME_PREFIX))
        .map(ToOwned::to_owned);
    let volume = existing
        .clone()
        .unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", names::random_suffix(5)));
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in spec
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            let mounted = container["volumeMounts"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|m| m["mountPath"] == MOUNT_PATH);
            if mounted {
                continue;
            }
            used = true;
            let mount = json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH});
            push(container, "volumeMounts", mount);
        }
    }
    if !used || existing.is_some() {
        return;
    }
    let source = json!({
        "name": volume,
        "projected": {
            "defaultMode": 420,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
            ],
        },
    });
    push(spec, "volumes", source);
}

fn push(object: &mut Value, key: &str, item: Value) {
    match object.get_mut(key).and_then(Value::as_array_mut) {
        Some(list) => list.push(item),
        None => object[key] = json!([item]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_container_that_lacks_it_gets_the_token() {
        let mut pod = json!({"spec": {
            "containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}],
            "initContainers": [{"name": "i"}],
        }});
        apply(
            &mut pod,
            &json!({"imagePullSecrets": [{"name": "p"}]}),
            "default",
        );
        assert_eq!(
            pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"],
            MOUNT_PATH
        );
        assert_eq!(
            pod["spec"]["initContainers"][0]["volumeMounts"][0]["readOnly"],
            true
        );
        assert_eq!(
            pod["spec"]["containers"][1]["volumeMounts"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
        assert_eq!(pod["spec"]["volumes"].as_array().unwrap().len(), 1);
        assert_eq!(pod["spec"]["imagePullSecrets"][0]["name"], "p");
        let once = pod.clone();
        apply(&mut pod, &json!({}), "default");
        assert_eq!(pod, once, "a second call changes nothing");
    }

    #[test]
    fn an_account_may_say_no() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}]}});
        apply(
            &mut pod,
            &json!({"automountServiceAccountToken": false}),
            "x",
        );
        assert!(pod["spec"]["volumes"].is_null());
        let mut pod =
            json!({"spec": {"automountServiceAccountToken": true, "containers": [{"name": "a"}]}});
        apply(
            &mut pod,
            &json!({"automountServiceAccountToken": false}),
            "x",
        );
        assert!(pod["spec"]["volumes"].is_array());
    }
}
