//! Admission webhooks: servers of others that are asked about writes, to change or to refuse them.

mod call;
mod connections;
mod review;
mod select;

pub(crate) use call::post;

use async_trait::async_trait;
use keelson_machinery::status::Status;
use keelson_machinery::{go, json_syntax, patch};
use serde_json::{Value, json};

use super::matching::{Form, GROUP, Versioned};
use super::{AdmissionPlugin, Attributes, Cluster, Operation, replace_object};
use review::Response;
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
        let round = u8::from(attrs.rounds.again);
        for (index, webhook) in webhooks.iter().enumerate() {
            // An earlier webhook may have changed what rules and selectors look at.
            let Some(form) = select::wants(attrs, cluster, webhook).await? else {
                continue;
            };
            // The second round asks only whom it was meant for.
            if attrs.rounds.again && !attrs.rounds.webhooks.is_due(&webhook.key) {
                continue;
            }
            let at = format!("mutation.webhook.admission.k8s.io/round_{round}_index_{index}");
            let changed = match mutate(attrs, cluster, webhook, &form).await {
                Ok(changed) => changed,
                Err(failure) => {
                    note(attrs, webhook, &at, false);
                    let at = format!("failed-open.{at}");
                    if let Some(status) = judge(attrs, &webhook.value, failure, &at) {
                        return Err(status);
                    }
                    false
                }
            };
            note(attrs, webhook, &at, changed);
            if changed {
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
            .map(|(webhook, form)| ask(attrs, cluster, webhook, form, false));
        let answers = futures::future::join_all(answers).await;
        for (index, ((webhook, _), answer)) in wanting.iter().zip(answers).enumerate() {
            let at =
                format!("failed-open.validating.webhook.admission.k8s.io/round_0_index_{index}");
            if let Err(failure) = answer
                && let Some(status) = judge(attrs, &webhook.value, failure, &at)
            {
                return Err(status);
            }
        }
        Ok(())
    }
}

/// Notes for the audit log whether a webhook changed the object.
fn note(attrs: &Attributes, webhook: &Webhook, at: &str, mutated: bool) {
    if !attrs.annotations.is_kept() {
        return;
    }
    let configuration = webhook.key.split('/').next().unwrap_or_default();
    let (configuration, name) = (json!(configuration), json!(name_of(&webhook.value)));
    let note =
        format!(r#"{{"configuration":{configuration},"webhook":{name},"mutated":{mutated}}}"#);
    attrs.annotations.add(at, note);
}

/// Why a webhook's part in a write came to nothing.
enum Failure {
    /// It could not be asked, or answered nonsense; its failure policy decides what that means.
    Calling(String),
    /// It said no, or the write cannot go on for another reason.
    Refused(Status),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

/// Asks a mutating webhook and applies its patch; true when the object changed.
async fn mutate(
    attrs: &mut Attributes,
    cluster: &Cluster,
    webhook: &Webhook,
    form: &Form,
) -> Result<bool, Failure> {
    let response = ask(attrs, cluster, webhook, form, true).await?;
    if response.patch.is_empty() {
        return Ok(false);
    }
    let undecodable = |reason: String| {
        Failure::Calling(format!(
            "received undecodable patch in webhook response: {reason}"
        ))
    };
    let operations: Value = serde_json::from_slice(&response.patch).map_err(|error| {
        undecodable(json_syntax::error(&response.patch).unwrap_or_else(|| error.to_string()))
    })?;
    match operations.as_array() {
        None => {
            return Err(undecodable(format!(
                "json: cannot unmarshal {} into Go value of type jsonpatch.Patch",
                go::json_kind(&operations)
            )));
        }
        Some(operations) if operations.is_empty() => return Ok(false),
        Some(_) => {}
    }
    let name = name_of(&webhook.value);
    let Some(object) = Versioned::new(attrs, cluster, form)?.object else {
        return Err(Failure::Refused(Status::internal(format!(
            "admission webhook {} attempted to modify the object, which is not supported for this operation",
            go::quote(name)
        ))));
    };
    if response.patch_type != "JSONPatch" {
        return Err(Failure::Calling(format!(
            "unsupported patch type {}",
            go::quote(&response.patch_type)
        )));
    }
    let patched = patch::json::apply(Value::clone(&object), &operations)
        .map_err(|error| Status::internal(error.to_string()))?;
    if patched == *object {
        return Ok(false);
    }
    replace_object(attrs, cluster, form, patched)?;
    Ok(true)
}

/// The webhook's answer, when it allows the request.
async fn ask(
    attrs: &Attributes,
    cluster: &Cluster,
    webhook: &Webhook,
    form: &Form,
    mutating: bool,
) -> Result<Response, Failure> {
    let webhook = &*webhook.value;
    let name = name_of(webhook);
    let silent = matches!(
        webhook["sideEffects"].as_str(),
        Some("None" | "NoneOnDryRun")
    );
    if attrs.dry_run && !silent {
        return Err(Failure::Refused(Status::bad_request(format!(
            "admission webhook {} does not support dry run",
            go::quote(name)
        ))));
    }
    let uid = uuid::Uuid::new_v4().to_string();
    let version = review::version(webhook).map_err(Failure::Calling)?;
    let about = (version, uid.as_str());
    let objects = Versioned::new(attrs, cluster, form)?;
    let request = review::request(attrs, form, &objects, about);
    let answer = call::post(&cluster.objects, webhook, &request).await;
    let answer =
        answer.map_err(|reason| Failure::Calling(format!("failed to call webhook: {reason}")))?;
    let response = review::response(&answer, about, mutating).map_err(Failure::Calling)?;
    for (key, value) in &response.audit_annotations {
        attrs.annotations.add(&format!("{name}/{key}"), value);
    }
    for warning in &response.warnings {
        // Such a text has no place in a header.
        if !warning.contains(char::is_control) {
            attrs.warnings.add(warning);
        }
    }
    if response.allowed {
        return Ok(response);
    }
    Err(Failure::Refused(review::refusal(name, &response.status)))
}

/// What a failure of one webhook means for the write: nothing, if the webhook's policy is to ignore
/// it.
fn judge(
    attrs: &Attributes,
    webhook: &Value,
    failure: Failure,
    annotation: &str,
) -> Option<Status> {
    let name = name_of(webhook);
    let reason = match failure {
        Failure::Refused(status) => return Some(status),
        Failure::Calling(reason) => reason,
    };
    if webhook["failurePolicy"] == "Ignore" {
        tracing::warn!(webhook = name, %reason, "a webhook failed and is ignored");
        attrs.annotations.add(annotation, name);
        return None;
    }
    Some(Status::internal(format!(
        "failed calling webhook {}: {reason}",
        go::quote(name)
    )))
}

fn name_of(webhook: &Value) -> &str {
    webhook["name"].as_str().unwrap_or_default()
}
