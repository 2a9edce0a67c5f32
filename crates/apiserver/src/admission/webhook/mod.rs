//! Admission webhooks: servers of others that are asked about writes, to change or to refuse them.

mod call;
mod select;

pub(crate) use call::post;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::patch;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use super::matching::{Form, GROUP, Versioned};
use super::{AdmissionPlugin, Attributes, Cluster, Operation, replace_object};
use select::Webhook;

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
        let webhooks = select::all(attrs, cluster, MUTATING);
        if webhooks.is_empty() {
            return Ok(());
        }
        attrs
            .rounds
            .webhooks
            .begin(attrs.rounds.again, attrs.object.as_ref());
        for webhook in &webhooks {
            // An earlier webhook may have changed what rules and selectors look at.
            let Some(form) = select::wants(attrs, cluster, webhook).await? else {
                continue;
            };
            // The second round asks only whom it was meant for.
            if attrs.rounds.again && !attrs.rounds.webhooks.is_due(&webhook.key) {
                continue;
            }
            if mutate(attrs, cluster, webhook, &form).await? {
                attrs.rounds.webhooks.require();
                attrs.rounds.wanted = true;
            }
            if webhook.value["reinvocationPolicy"] == "IfNeeded" {
                attrs.rounds.webhooks.invoked(&webhook.key);
            }
        }
        attrs.rounds.webhooks.end(attrs.object.as_ref());
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
        let webhooks = select::all(attrs, cluster, VALIDATING);
        let mut wanting = Vec::new();
        for webhook in &webhooks {
            if let Some(form) = select::wants(attrs, cluster, webhook).await? {
                wanting.push((webhook, form));
            }
        }
        let answers = wanting
            .iter()
            .map(|(webhook, form)| ask(attrs, cluster, webhook, form));
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
    webhook: &Webhook,
    form: &Form,
) -> Result<bool, Status> {
    let Some(response) = ask(attrs, cluster, webhook, form).await? else {
        return Ok(false);
    };
    let Some(encoded) = response["patch"].as_str().filter(|p| !p.is_empty()) else {
        return Ok(false);
    };
    let name = name_of(&webhook.value);
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
    let Some(object) = Versioned::new(attrs, cluster, form)?.object else {
        return Err(broken("a deletion has no object to change".to_owned()));
    };
    let patched = patch::json::apply(Value::clone(&object), &operations)
        .map_err(|e| broken(e.status().message))?;
    if patched == *object {
        return Ok(false);
    }
    replace_object(attrs, cluster, form, patched)?;
    Ok(true)
}

/// The webhook's answer; nothing when it failed and its policy is to ignore that.
async fn ask(
    attrs: &Attributes,
    cluster: &Cluster,
    webhook: &Webhook,
    form: &Form,
) -> Result<Option<Value>, Status> {
    let webhook = &*webhook.value;
    let name = name_of(webhook);
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
    let objects = Versioned::new(attrs, cluster, form)?;
    let review = review(attrs, form, &objects, &uid);
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

fn review(attrs: &Attributes, form: &Form, objects: &Versioned, uid: &str) -> Value {
    let requested = Form::requested(attrs);
    let mut request = json!({
        "uid": uid,
        "kind": form.kind_json(), "resource": form.resource_json(),
        "requestKind": requested.kind_json(), "requestResource": requested.resource_json(),
        "operation": attrs.operation.as_str(),
        "userInfo": attrs.user.to_json(),
        "object": objects.object.as_deref(),
        "oldObject": objects.old_object.as_deref(),
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

fn name_of(webhook: &Value) -> &str {
    webhook["name"].as_str().unwrap_or_default()
}

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
