//! Conversion between the versions of a custom kind, where that is more than another apiVersion:
//! a server of the definition's author is asked.

use std::sync::{Arc, Weak};

use keelson_machinery::field::{self, FieldError, Path};
use keelson_machinery::status::Status;
use keelson_machinery::{go, meta, validation};
use serde_json::{Value, json};
use tokio::runtime::{Handle, RuntimeFlavor};

use super::remembered::{Remembered, question};
use crate::admission::post_to_webhook;
use crate::objects::Objects;

/// Versions of the review that are spoken; the author's order decides.
const REVIEW_VERSIONS: &[&str] = &["v1", "v1beta1"];
const GROUP: &str = super::GROUP;
/// Upstream waits so long for a converter.
const TIMEOUT_S: u64 = 30;

/// `spec.conversion` with strategy Webhook.
pub(super) struct Webhook {
    group: String,
    /// With `clientConfig`, as admission's webhooks have it.
    config: Value,
    remembered: Remembered,
    /// Weak, because the registry owns the rules that own this.
    objects: Weak<dyn Objects>,
}

impl Webhook {
    pub(super) fn of(definition: &Value, objects: &Arc<dyn Objects>) -> Option<Arc<Self>> {
        let spec = &definition["spec"];
        if spec["conversion"]["strategy"] != "Webhook" {
            return None;
        }
        Some(Arc::new(Self {
            group: spec["group"].as_str().unwrap_or_default().to_owned(),
            config: {
                let mut config = spec["conversion"]["webhook"].clone();
                config["timeoutSeconds"] = TIMEOUT_S.into();
                config
            },
            remembered: Remembered::default(),
            objects: Arc::downgrade(objects),
        }))
    }

    /// Conversions happen in the middle of rendering and patching, which do not wait; this does,
    /// on a thread that the runtime replaces meanwhile.
    pub(super) fn convert(&self, object: &mut Value, from: &str, to: &str) -> Result<(), Status> {
        let handle = Handle::try_current().map_err(Status::internal)?;
        if handle.runtime_flavor() == RuntimeFlavor::CurrentThread {
            return Err(Status::internal(
                "conversion webhooks need a runtime of several threads",
            ));
        }
        // What is converted is what is stored, and that has no version of its own yet.
        let mut sent = object.clone();
        let version = meta::metadata_mut(&mut sent).remove("resourceVersion");
        let text = serde_json::to_vec(&sent).map_err(Status::internal)?;
        let question = question(to, &text);
        let mut converted = match self.remembered.get(&question) {
            Some(converted) => converted,
            None => {
                let asking = || handle.block_on(self.ask(&sent, to));
                let converted = tokio::task::block_in_place(asking)
                    .map_err(|problem| self.told(problem, from, meta::kind(&sent)))?;
                let size = text.len() + converted.to_string().len();
                self.remembered.put(question, converted.clone(), size);
                converted
            }
        };
        if let Some(version) = version {
            meta::metadata_mut(&mut converted).insert("resourceVersion".to_owned(), version);
        }
        *object = converted;
        Ok(())
    }

    fn told(&self, problem: Problem, from: &str, kind: &str) -> Status {
        let about = format!("conversion webhook for {}/{from}, Kind={kind}", self.group);
        Status::unclassified(match problem {
            Problem::Call(reason) => format!("{about} failed: {reason}"),
            Problem::Answer(reason) => format!("{about} returned {reason}"),
            Problem::Bare(reason) => reason,
        })
    }

    async fn ask(&self, object: &Value, to: &str) -> Result<Value, Problem> {
        let mut accepted_versions = self.config["conversionReviewVersions"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        let version = accepted_versions
            .find(|version| REVIEW_VERSIONS.contains(version))
            .ok_or_else(|| Problem::Bare("no supported conversion review versions".to_owned()))?;
        let objects = self
            .objects
            .upgrade()
            .ok_or_else(|| Problem::Call("the server is stopping".to_owned()))?;
        let uid = uuid::Uuid::new_v4().to_string();
        let desired = meta::join_api_version(&self.group, to);
        let review = json!({
            "kind": "ConversionReview",
            "apiVersion": format!("{GROUP}/{version}"),
            "request": {"uid": uid, "desiredAPIVersion": desired, "objects": [object]},
            "response": {"uid": "", "convertedObjects": null, "result": {"metadata": {}}},
        });
        let answer = post_to_webhook(&objects, &self.config, &review)
            .await
            .map_err(Problem::Call)?;
        accepted(object, &desired, (version, &uid), answer)
    }
}

/// Why there is no converted object.
#[derive(Debug, PartialEq, Eq)]
enum Problem {
    /// There was no answer, or it says no.
    Call(String),
    /// There was an answer, and it does not keep to the rules.
    Answer(String),
    /// What upstream says without saying of whom.
    Bare(String),
}

/// The converted object of an answer, if the answer keeps to the rules. `sent` is the version of
/// the review and its uid.
fn accepted(
    original: &Value,
    desired: &str,
    sent: (&str, &str),
    mut answer: Value,
) -> Result<Value, Problem> {
    let (version, uid) = sent;
    check_review(version, uid, &answer).map_err(Problem::Call)?;
    let objects = answer["response"]["convertedObjects"].as_array_mut();
    let mut converted = match objects {
        Some(all) if all.len() == 1 => all.swap_remove(0),
        other => {
            let count = other.map_or(0, |all| all.len());
            return Err(Problem::Answer(format!("{count} objects, expected 1")));
        }
    };
    if converted.is_null() {
        return Err(Problem::Bare("unexpected end of JSON input".to_owned()));
    }
    check_object(original, desired, &converted).map_err(Problem::Answer)?;
    let metadata = metadata(original, &converted)
        .map_err(|reason| Problem::Answer(format!("invalid metadata: {reason}")))?;
    converted["metadata"] = metadata;
    Ok(converted)
}

/// The first version of the review left out that answers say what they answer.
fn check_review(version: &str, uid: &str, answer: &Value) -> Result<(), String> {
    let response = &answer["response"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group_version, kind) = (meta::api_version(answer), meta::kind(answer));
    // In the words of the client that reads them.
    if kind != "ConversionReview" {
        return Err(format!(
            "no kind {kind:?} is registered for version {group_version:?} in scheme \"k8s.io/apiserver/pkg/util/webhook/client.go:71\""
        ));
    }
    if group_version != format!("{GROUP}/{version}") {
        let (_, answered) = meta::split_api_version(group_version);
        return Err(format!(
            "converting ({answered}.ConversionReview) to ({version}.ConversionReview): unknown conversion"
        ));
    }
    if !response.is_object() {
        return Err("no response provided".to_owned());
    }
    let answered = text(&response["uid"]);
    if version == "v1" && answered != uid {
        return Err(format!("expected response.uid={uid:?}, got {answered:?}"));
    }
    let (status, message) = (
        text(&response["result"]["status"]),
        text(&response["result"]["message"]),
    );
    match (status.as_str(), message.is_empty()) {
        ("Success", _) => Ok(()),
        (_, false) => Err(message),
        (_, true) => Err(format!(
            "response.result.status was '{status}', not 'Success'"
        )),
    }
}

/// A converter changes the version and what is inside, not which object it is.
fn check_object(original: &Value, desired: &str, converted: &Value) -> Result<(), String> {
    let (version, kind) = (meta::api_version(converted), meta::kind(converted));
    if version != desired {
        return Err(format!(
            "invalid object at index 0: invalid groupVersion (expected {desired}, received {version})"
        ));
    }
    let wanted = meta::kind(original);
    if kind != wanted {
        return Err(format!(
            "invalid object at index 0: invalid kind (expected {wanted}, received {kind})"
        ));
    }
    for (field, shown) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let of = |object: &Value| {
            let value = object["metadata"][field].as_str();
            value.unwrap_or_default().to_owned()
        };
        let (before, after) = (of(original), of(converted));
        if before != after {
            return Err(format!(
                "invalid object: must have the same {shown}: {before} != {after}"
            ));
        }
    }
    Ok(())
}

/// Of the metadata a converter has a say in labels and annotations alone.
fn metadata(original: &Value, converted: &Value) -> Result<Value, String> {
    let mut metadata = original["metadata"].clone();
    for field in ["labels", "annotations"] {
        let given = match converted["metadata"].get(field) {
            None | Some(Value::Null) => {
                meta::as_map(&mut metadata).remove(field);
                continue;
            }
            Some(given) => given,
        };
        let Some(entries) = given.as_object() else {
            let kind = go::dynamic_type(given);
            return Err(format!(
                "invalid metadata.{field} of type {kind} in converted object"
            ));
        };
        if let Some((key, value)) = entries.iter().find(|(_, value)| !value.is_string()) {
            let kind = go::dynamic_type(value);
            return Err(format!(
                "metadata.{field}[{key}] must be a string, but is {kind} in converted object"
            ));
        }
        if *given != metadata[field] {
            let errors = match field {
                "labels" => {
                    validation::validate_labels(given, &Path::new("metadata").child("labels"))
                }
                _ => entries
                    .keys()
                    .flat_map(|key| {
                        let messages = validation::is_qualified_name(&key.to_lowercase());
                        let path = Path::new("metadata").child("annotation");
                        let of_key = move |m| FieldError::invalid(&path, key.as_str(), m);
                        messages.into_iter().map(of_key)
                    })
                    .collect(),
            };
            if !errors.is_empty() {
                return Err(field::aggregate(&errors));
            }
        }
        metadata[field] = given.clone();
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_change_labels_and_content_and_nothing_else() {
        let original = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "a", "resourceVersion": "7", "labels": {"x": "y"}}});
        let answer = |object: Value| {
            json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
                "response": {"uid": "u", "result": {"status": "Success"}, "convertedObjects": [object]}})
        };
        let good = json!({"apiVersion": "g/v2", "kind": "K", "metadata": {"name": "a", "labels": {"z": "1"}}, "b": 1});
        let out = accepted(&original, "g/v2", ("v1", "u"), answer(good.clone())).unwrap();
        assert_eq!(out["metadata"]["resourceVersion"], "7");
        assert_eq!(out["metadata"]["labels"], json!({"z": "1"}));
        assert_eq!(out["b"], 1);
        let problem = |desired: &str, uid: &str, answer: Value| match accepted(
            &original,
            desired,
            ("v1", uid),
            answer,
        )
        .unwrap_err()
        {
            Problem::Call(text) => format!("failed: {text}"),
            Problem::Answer(text) => format!("returned {text}"),
            Problem::Bare(text) => text,
        };
        assert_eq!(
            problem("g/v3", "u", answer(good.clone())),
            "returned invalid object at index 0: invalid groupVersion (expected g/v3, received g/v2)"
        );
        assert_eq!(
            problem("g/v2", "other", answer(good.clone())),
            "failed: expected response.uid=\"other\", got \"u\""
        );
        let mut renamed = good.clone();
        renamed["metadata"]["name"] = json!("b");
        assert_eq!(
            problem("g/v2", "u", answer(renamed)),
            "returned invalid object: must have the same name: a != b"
        );
        let mut labelled = good.clone();
        labelled["metadata"]["labels"] = json!({"a": 5});
        assert_eq!(
            problem("g/v2", "u", answer(labelled)),
            "returned invalid metadata: metadata.labels[a] must be a string, but is int64 in converted object"
        );
        let mut failed = answer(good);
        failed["response"]["result"] = json!({"status": "Failure"});
        assert_eq!(
            problem("g/v2", "u", failed),
            "failed: response.result.status was 'Failure', not 'Success'"
        );
        assert_eq!(
            problem("g/v2", "u", answer(Value::Null)),
            "unexpected end of JSON input"
        );
    }
}
