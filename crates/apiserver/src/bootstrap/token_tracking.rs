//! `kube-system/kube-apiserver-legacy-service-account-token-tracking`: since when the use of tokens
//! that stand in Secrets is noted, by which the controller that cleans them up knows what an
//! absent note means.

use std::sync::Arc;

use keelson_machinery::status::Status;
use keelson_machinery::time;
use serde_json::json;

use crate::authn::legacy;
use crate::objects::Objects;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-apiserver-legacy-service-account-token-tracking";

/// Creates the object, or mends a day that is none.
pub(crate) async fn publish(objects: &Arc<dyn Objects>) -> Result<(), Status> {
    let today = legacy::day(time::now_unix());
    let found = objects.read("", "configmaps", NAMESPACE, NAME).await?;
    let outcome = match found {
        None => {
            let wanted = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": NAME, "namespace": NAMESPACE},
                "data": {"since": today},
            });
            objects.create("", "configmaps", NAMESPACE, wanted).await
        }
        Some(found) if is_day(found["data"]["since"].as_str().unwrap_or_default()) => return Ok(()),
        Some(mut found) => {
            found["data"]["since"] = json!(today);
            objects.update("", "configmaps", NAMESPACE, found).await
        }
    };
    match outcome {
        // Another server was faster.
        Err(status) if !status.is_already_exists() && !status.is_conflict() => Err(status),
        _ => Ok(()),
    }
}

fn is_day(text: &str) -> bool {
    text.len() == 10 && time::parse_unix(&format!("{text}T00:00:00Z")).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_told_from_other_texts() {
        assert!(is_day("2026-02-28"));
        for other in ["", "2026-02-30", "yesterday", "2026-1-1", "2026-02-28T"] {
            assert!(!is_day(other), "{other}");
        }
    }
}
