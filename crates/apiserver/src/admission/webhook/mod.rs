//! Admission webhooks: servers of others that are asked about writes, to change or to refuse them.

mod call;
mod select;

pub(crate) use call::post;

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::status::Status;
use keelson_machinery::{meta, patch};
use serde_json::{Value, json};

use super::{AdmissionPlugin, Attributes, Cluster, Operation};

const GROUP: &str = "admissionregistration.k8s.io";
const MUTATING: &str = "mutatingwebhookconfigurations";
const VALIDATING: &str = "validatingwebhookconfigurations";

pub(super) struct MutatingAdmissionWebhook;

#[async_trait]
impl AdmissionPlugin for MutatingAdmissionWebhook {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    fn handles(&self, _operation: Operation) -> bool {
        true
    }

    async fn admit(&self, attrs: &mut Attributes, cluster: &Cluster) -> Result<(), Status> {
        let webhooks = select::matching(attrs, cluster, MUTATING)?;
        let mut asked: Vec<(usize, bool)> = Vec::new();
        for (at, webhook) in webhooks.iter().enumerate() {
            // An earlier webhook may have changed what the selectors look at.
            if !select::still_matches(attrs, cluster, webhook) {
                continue;
            }
            let changed = mutate(attrs, cluster, webhook).await?;
            asked.push((at, changed));
        }
        // Who wants to see what later ones changed is asked once more.
        let last_change = asked
            .iter()
            .rev()
            .find(|(_, changed)| *changed)
            .map(|(at, _)| *at);
        for (at, _) in asked {
            let again = webhooks[at]["reinvocationPolicy"] == "IfNeeded"
                && last_change.is_some_and(|last| last > at);
            if again {
                mutate(attrs, cluster, &webhooks[at]).await?;
            }
        }
        Ok(())
    }
}

pub(super) struct ValidatingAdmissionWebhook;

#[async_trait]
impl AdmissionPlugin for ValidatingAdmissionWebhook {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    fn handles(&self, _operation: Operation) -> bool {
        true
    }

    async fn validate(&self, attrs: &Attributes, cluster: &Cluster) -> Result<(), Status> {
        let webhooks = select::matching(attrs, cluster, VALIDATING)?;
        let answers = webhooks.iter().map(|webhook| ask(attrs, cluster, webhook));
        for answer in futures::future::join_all(answers).await {
            answer?;
        }
        Ok(())
    }
}

/// Asks a mutating webhook and applies its patch; true when the object changed.
async fn mutate(
    attrs: &mut Attributes,
    cluster: &Cluster,
    webhook: &Value,
) -> Result<bool, Status> {
    let Some(response) = ask(attrs, cluster, webhook).await? else {
        return Ok(false);
    };
    let Some(encoded) = response["patch"].as_str().filter(|p| !p.is_empty()) else {
        return Ok(false);
    };
    let name = webhook["name"].as_str().unwrap_or_default();
    let broken = |reason: String| {
        Status::internal(format!(
            "failed to apply the patch of webhook {name:?}: {reason}"
        ))
    };
    if response["patchType"] != "JSONPatch" {
        return Err(broken(format!(
            "unsupported patch type {}",
            response["patchType"]
        )));
    }
    let bytes = STANDARD
        .decode(encoded)
        .map_err(|e| broken(e.to_string()))?;
    let operations: Value = serde_json::from_slice(&bytes).map_err(|e| broken(e.to_string()))?;
    let Some(object) = attrs.object.take() else {
        return Err(broken("a deletion has no object to change".to_owned()));
    };
    let patched =
        patch::json::apply(object.clone(), &operations).map_err(|e| broken(e.status().message))?;
    let changed = patched != object;
    attrs.changed_by_webhook |= changed;
    attrs.object = Some(patched);
    Ok(changed)
}

/// The webhook's answer; nothing when it failed and its policy is to ignore that.
async fn ask(
    attrs: &Attributes,
    cluster: &Cluster,
    webhook: &Value,
) -> Result<Option<Value>, Status> {
    let name = webhook["name"].as_str().unwrap_or_default();
    if attrs.dry_run
        && !matches!(
            webhook["sideEffects"].as_str(),
            Some("None" | "NoneOnDryRun")
        )
    {
        return Err(Status::bad_request(format!(
            "admission webhook {name:?} does not support dry run"
        )));
    }
    let uid = uuid::Uuid::new_v4().to_string();
    let review = review(attrs, &uid);
    let response = match call::post(&cluster.objects, webhook, &review).await {
        Ok(answer) if answer["response"]["uid"] == uid.as_str() => answer["response"].clone(),
        outcome => {
            let reason = outcome
                .err()
                .unwrap_or_else(|| "expected response.uid to be that of the request".to_owned());
            if webhook["failurePolicy"] == "Ignore" {
                tracing::warn!(webhook = name, %reason, "a webhook failed and is ignored");
                return Ok(None);
            }
            return Err(Status::internal(format!(
                "failed calling webhook {name:?}: {reason}"
            )));
        }
    };
    for warning in response["warnings"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        attrs.warnings.add(warning);
    }
    if response["allowed"] == true {
        return Ok(Some(response));
    }
    Err(refusal(name, &response["status"]))
}

fn refusal(webhook: &str, status: &Value) -> Status {
    let (message, reason) = (status["message"].as_str(), status["reason"].as_str());
    let text = match (
        message.filter(|m| !m.is_empty()),
        reason.filter(|r| !r.is_empty()),
    ) {
        (Some(why), _) | (None, Some(why)) => {
            format!("admission webhook {webhook:?} denied the request: {why}")
        }
        (None, None) => {
            format!("admission webhook {webhook:?} denied the request without explanation")
        }
    };
    let code = status["code"]
        .as_u64()
        .and_then(|c| u16::try_from(c).ok())
        .filter(|c| (400..600).contains(c))
        .unwrap_or(403);
    let reason = match reason {
        Some(reason) if !reason.is_empty() => reason.to_owned(),
        _ if code == 403 => "Forbidden".to_owned(),
        _ => String::new(),
    };
    Status {
        code,
        reason,
        message: text,
        details: None,
    }
}

fn review(attrs: &Attributes, uid: &str) -> Value {
    let api_version = attrs
        .object
        .as_ref()
        .or(attrs.old_object.as_deref())
        .map(meta::api_version)
        .unwrap_or_default();
    let (group, version) = if api_version.is_empty() {
        (attrs.group.as_str(), attrs.version.as_str())
    } else {
        meta::split_api_version(api_version)
    };
    let kind = json!({"group": group, "version": version, "kind": attrs.kind});
    let resource =
        json!({"group": attrs.group, "version": attrs.version, "resource": attrs.resource});
    let mut request = json!({
        "uid": uid,
        "kind": kind, "resource": resource,
        "requestKind": kind, "requestResource": resource,
        "operation": attrs.operation.as_str(),
        "userInfo": attrs.user.to_json(),
        "object": attrs.object,
        "oldObject": attrs.old_object.as_deref(),
        "dryRun": attrs.dry_run,
        "options": attrs.options,
    });
    for (key, value) in [("name", &attrs.name), ("namespace", &attrs.namespace)] {
        if !value.is_empty() {
            request[key] = json!(value);
        }
    }
    if !attrs.subresource.is_empty() {
        request["subResource"] = json!(attrs.subresource);
        request["requestSubResource"] = json!(attrs.subresource);
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
}

/// One webhook of a configuration, shared while it is asked.
type Webhook = Arc<Value>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_read_as_upstream() {
        let status = refusal("w", &json!({"message": "no", "code": 400}));
        assert_eq!(
            (status.code, status.message.as_str()),
            (400, r#"admission webhook "w" denied the request: no"#)
        );
        let status = refusal("w", &Value::Null);
        assert_eq!(
            status.message,
            r#"admission webhook "w" denied the request without explanation"#
        );
        assert_eq!((status.code, status.reason.as_str()), (403, "Forbidden"));
    }
}
