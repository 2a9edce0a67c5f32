//! Which webhooks a write concerns.

use std::sync::Arc;

use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::Value;

use super::GROUP;
use crate::admission::expressions::{Compiled, Input, Variables, conditions_hold};
use crate::admission::matching::{self, Form, Versioned};
use crate::admission::{Attributes, Cluster};

/// One webhook of a configuration.
pub(super) struct Webhook {
    /// Of its configuration, of itself, and how many of that name came before it there.
    pub key: String,
    pub value: Arc<Value>,
    pub conditions: Arc<Vec<Compiled>>,
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
                conditions: cluster.compiled.conditions(&configuration, index),
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
    if webhook.conditions.is_empty() {
        return Ok(Some(form));
    }
    let objects = Versioned::new(attrs, cluster, &form)?;
    // Conditions are told the resource that was asked for.
    let about = Form {
        resource: attrs.resource.clone(),
        group: attrs.group.clone(),
        version: attrs.version.clone(),
        ..form.clone()
    };
    let input = Input::new(attrs, cluster, &about, objects);
    let ignore = value["failurePolicy"] == "Ignore";
    match conditions_hold(&webhook.conditions, &input, &Variables::new(), ignore) {
        Ok(hold) => Ok(Some(form).filter(|_| hold)),
        Err(error) => Err(Status::forbidden(
            &attrs.group,
            &attrs.resource,
            &attrs.name,
            error,
        )),
    }
}
