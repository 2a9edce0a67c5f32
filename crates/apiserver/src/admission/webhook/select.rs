//! Which webhooks a write concerns.

use std::sync::Arc;

use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::Value;

use super::GROUP;
use crate::admission::matching::{self, Form};
use crate::admission::{Attributes, Cluster};

/// One webhook of a configuration.
pub(super) struct Webhook {
    /// Of its configuration, of itself, and how many of that name came before it there.
    pub key: String,
    pub value: Arc<Value>,
}

/// The webhooks of all configurations, by configuration name and in its order.
pub(super) fn all(attrs: &Attributes, cluster: &Cluster, resource: &str) -> Vec<Webhook> {
    if matching::is_configuration(attrs) {
        return Vec::new();
    }
    let mut configurations = cluster.objects.list(GROUP, resource, "");
    configurations.sort_by(|a, b| meta::name(a).cmp(meta::name(b)));
    let mut out = Vec::new();
    for configuration in configurations {
        let name = meta::name(&configuration);
        let webhooks = configuration["webhooks"].as_array().into_iter().flatten();
        for (index, webhook) in webhooks.enumerate() {
            out.push(Webhook {
                key: format!("{name}/{}/{index}", super::name_of(webhook)),
                value: Arc::new(webhook.clone()),
            });
        }
    }
    out
}

/// The form in which the webhook wants the request, if it does.
pub(super) async fn wants(
    attrs: &Attributes,
    cluster: &Cluster,
    webhook: &Webhook,
) -> Result<Option<Form>, Status> {
    let value = &webhook.value;
    let Some(form) = matching::rules_match(attrs, cluster, &value["rules"], &value["matchPolicy"])
    else {
        return Ok(None);
    };
    if !matching::selects(attrs, cluster, value).await? {
        return Ok(None);
    }
    if value["matchConditions"]
        .as_array()
        .is_none_or(Vec::is_empty)
    {
        return Ok(Some(form));
    }
    if value["failurePolicy"] == "Ignore" {
        return Ok(None);
    }
    // Asking or not asking could both be wrong, so neither is done silently.
    Err(Status::internal(format!(
        "webhook {} has matchConditions, which this server does not evaluate",
        value["name"]
    )))
}
