//! Conversion between the versions of a custom kind, where that is more than another apiVersion:
//! a server of the definition's author is asked.

use std::sync::{Arc, Weak};

use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::{Value, json};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::admission::post_to_webhook;
use crate::objects::Objects;

const REVIEW_VERSION: &str = "v1";

/// `spec.conversion` with strategy Webhook.
pub(super) struct Webhook {
    group: String,
    /// With `clientConfig`, as admission's webhooks have it.
    config: Value,
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
            config: spec["conversion"]["webhook"].clone(),
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
        let kind = meta::kind(object).to_owned();
        let converted = tokio::task::block_in_place(|| handle.block_on(self.ask(object, to)))
            .map_err(|reason| {
                Status::internal(format!(
                    "conversion webhook for {}/{from}, Kind={kind} failed: {reason}",
                    self.group
                ))
            })?;
        *object = converted;
        Ok(())
    }

    async fn ask(&self, object: &Value, to: &str) -> Result<Value, String> {
        let versions = self.config["conversionReviewVersions"].as_array();
        if !versions.is_some_and(|all| all.iter().any(|v| v == REVIEW_VERSION)) {
            return Err("it accepts no review of version v1".to_owned());
        }
        let objects = self.objects.upgrade().ok_or("the server is stopping")?;
        let uid = uuid::Uuid::new_v4().to_string();
        let desired = meta::join_api_version(&self.group, to);
        let review = json!({
            "kind": "ConversionReview",
            "apiVersion": format!("apiextensions.k8s.io/{REVIEW_VERSION}"),
            "request": {"uid": uid, "desiredAPIVersion": desired, "objects": [object]},
        });
        let answer = post_to_webhook(&objects, &self.config, &review).await?;
        accepted(object, &desired, &uid, answer)
    }
}

/// The converted object of an answer, if the answer keeps to the rules.
fn accepted(
    original: &Value,
    desired: &str,
    uid: &str,
    mut answer: Value,
) -> Result<Value, String> {
    let response = &mut answer["response"];
    if response["uid"] != uid {
        return Err(format!("expected response.uid={uid:?}"));
    }
    if response["result"]["status"] != "Success" {
        let message = response["result"]["message"].as_str().unwrap_or_default();
        return Err(message.to_owned());
    }
    let mut converted = match response["convertedObjects"].as_array_mut() {
        Some(all) if all.len() == 1 => all.swap_remove(0),
        other => {
            return Err(format!(
                "returned {} objects, expected 1",
                other.map_or(0, |all| all.len())
            ));
        }
    };
    if meta::api_version(&converted) != desired {
        return Err(format!(
            "returned invalid converted object: invalid groupVersion (expected {desired}, received {})",
            meta::api_version(&converted)
        ));
    }
    if meta::kind(&converted) != meta::kind(original) {
        return Err(format!(
            "returned invalid converted object: invalid kind (expected {}, received {})",
            meta::kind(original),
            meta::kind(&converted)
        ));
    }
    for field in ["name", "namespace", "uid"] {
        if converted["metadata"][field] != original["metadata"][field] {
            return Err(format!("must not change metadata.{field}"));
        }
    }
    // Of the metadata a converter has a say in labels and annotations alone.
    let mut metadata = original["metadata"].clone();
    for field in ["labels", "annotations"] {
        match converted["metadata"].get(field) {
            Some(value) if !value.is_null() => metadata[field] = value.clone(),
            _ => drop(meta::as_map(&mut metadata).remove(field)),
        }
    }
    converted["metadata"] = metadata;
    Ok(converted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_change_labels_and_content_and_nothing_else() {
        let original = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "a", "resourceVersion": "7", "labels": {"x": "y"}}});
        let answer = |object: Value| json!({"response": {"uid": "u", "result": {"status": "Success"}, "convertedObjects": [object]}});
        let good = json!({"apiVersion": "g/v2", "kind": "K", "metadata": {"name": "a", "labels": {"z": "1"}}, "b": 1});
        let out = accepted(&original, "g/v2", "u", answer(good.clone())).unwrap();
        assert_eq!(out["metadata"]["resourceVersion"], "7");
        assert_eq!(out["metadata"]["labels"], json!({"z": "1"}));
        assert_eq!(out["b"], 1);
        assert!(accepted(&original, "g/v3", "u", answer(good.clone())).is_err());
        assert!(accepted(&original, "g/v2", "other", answer(good.clone())).is_err());
        let mut renamed = good;
        renamed["metadata"]["name"] = json!("b");
        assert!(accepted(&original, "g/v2", "u", answer(renamed)).is_err());
    }
}
