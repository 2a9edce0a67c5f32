//! The parameters that a binding gives to its policy.

use std::sync::Arc;

use keelson_machinery::labels::Selector;
use keelson_machinery::meta;
use serde_json::Value;

use crate::admission::{Attributes, Cluster};
use crate::registry::ResourceEntry;

/// The resource that holds a policy's parameters; the error is one of its configuration.
pub(super) fn resource(
    cluster: &Cluster,
    policy: &Value,
) -> Result<Option<Arc<ResourceEntry>>, String> {
    let kind = &policy["spec"]["paramKind"];
    if !kind.is_object() {
        return Ok(None);
    }
    let text = |key: &str| kind[key].as_str().unwrap_or_default();
    let (group, version) = meta::split_api_version(text("apiVersion"));
    cluster
        .objects
        .resource_of_kind(group, version, text("kind"))
        .map(Some)
        .ok_or_else(|| {
            format!(
                "failed to find resource referenced by paramKind: '{group}/{version}, Kind={}'",
                text("kind")
            )
        })
}

/// One evaluation of the policy is due for each of these; `None` is one without parameters.
pub(super) fn collect(
    attrs: &Attributes,
    cluster: &Cluster,
    resource: Option<&ResourceEntry>,
    binding: &Value,
) -> Result<Vec<Option<Arc<Value>>>, String> {
    let reference = &binding["spec"]["paramRef"];
    let (Some(resource), true) = (resource, reference.is_object()) else {
        return Ok(vec![None]);
    };
    let text = |key: &str| reference[key].as_str().unwrap_or_default();
    let namespace = match (resource.namespaced, text("namespace")) {
        (true, "") if attrs.namespace.is_empty() => {
            return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".to_owned());
        }
        (true, "") => attrs.namespace.as_str(),
        (true, own) => own,
        (false, "") => "",
        (false, _) => {
            return Err(
                "paramRef.namespace must not be provided for a cluster-scoped `paramKind`"
                    .to_owned(),
            );
        }
    };
    let (group, plural) = (&resource.storage_group, &resource.resource);
    let found: Vec<Arc<Value>> = match text("name") {
        "" if reference["selector"].is_object() => {
            let selector = Selector::from_label_selector(&reference["selector"])
                .map_err(|error| error.to_string())?;
            let mut all = cluster.objects.list(group, plural, namespace);
            all.retain(|object| selector.matches_object(object));
            all.sort_by(|a, b| meta::name(a).cmp(meta::name(b)));
            all
        }
        "" => return Err("one of name or selector must be provided".to_owned()),
        name => cluster
            .objects
            .get(group, plural, namespace, name)
            .into_iter()
            .collect(),
    };
    if found.is_empty() && reference["parameterNotFoundAction"] == "Deny" {
        return Err(
            "no params found for policy binding with `Deny` parameterNotFoundAction".to_owned(),
        );
    }
    found
        .into_iter()
        .map(|object| {
            if resource.is_stored_form() {
                return Ok(Some(object));
            }
            let requested = resource.requested(&object).map_err(|s| s.message)?;
            Ok(Some(Arc::new(requested)))
        })
        .collect()
}
