//! What requests a webhook, a policy or a binding wants: rules, selectors, and the form of the
//! resource in which a rule names it.

use std::sync::Arc;

use keelson_machinery::labels::Selector;
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use super::{Attributes, Cluster, Operation};

pub(super) const GROUP: &str = "admissionregistration.k8s.io";

/// Kinds that configure admission; nothing configured may keep them from being changed.
const CONFIGURATIONS: &[&str] = &[
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
    "mutatingwebhookconfigurations",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "validatingwebhookconfigurations",
];

/// Whether the request is about how admission is configured.
pub(super) fn is_configuration(attrs: &Attributes) -> bool {
    attrs.group == GROUP && CONFIGURATIONS.contains(&attrs.resource.as_str())
}

/// One served form of a resource, and of the objects sent to it (which differ for subresources
/// with a kind of their own).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Form {
    pub group: String,
    pub version: String,
    pub resource: String,
    pub kind_group: String,
    pub kind_version: String,
    pub kind: String,
}

impl Form {
    /// The form the request itself speaks.
    pub(super) fn requested(attrs: &Attributes) -> Self {
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
        Self {
            group: attrs.group.clone(),
            version: attrs.version.clone(),
            resource: attrs.resource.clone(),
            kind_group: group.to_owned(),
            kind_version: version.to_owned(),
            kind: attrs.kind.clone(),
        }
    }

    pub(super) fn resource_json(&self) -> Value {
        json!({"group": self.group, "version": self.version, "resource": self.resource})
    }

    pub(super) fn kind_json(&self) -> Value {
        json!({"group": self.kind_group, "version": self.kind_version, "kind": self.kind})
    }
}

/// The form in which one of the rules names the request's resource. With match policy Equivalent
/// a rule may name another served form of it.
pub(super) fn rules_match(
    attrs: &Attributes,
    cluster: &Cluster,
    rules: &Value,
    policy: &Value,
) -> Option<Form> {
    let rules = || rules.as_array().into_iter().flatten();
    let own = Form::requested(attrs);
    if rules().any(|rule| rule_matches(attrs, &own, rule)) {
        return Some(own);
    }
    if policy != "Equivalent" {
        return None;
    }
    let others = equivalents(attrs, cluster, &own);
    rules().find_map(|rule| {
        others
            .iter()
            .find(|form| rule_matches(attrs, form, rule))
            .cloned()
    })
}

/// The other forms in which the resource is served.
fn equivalents(attrs: &Attributes, cluster: &Cluster, own: &Form) -> Vec<Form> {
    let forms = cluster.objects.forms(&attrs.group, &attrs.resource);
    let main_kind = forms
        .iter()
        .find(|entry| entry.version == attrs.version && entry.group == attrs.group)
        .is_none_or(|entry| entry.kind == own.kind);
    forms
        .iter()
        .filter(|entry| entry.version != own.version || entry.group != own.group)
        .filter(|entry| {
            attrs.subresource.is_empty() || entry.subresource(&attrs.subresource).is_some()
        })
        .map(|entry| {
            let (kind_group, kind_version, kind) = if main_kind {
                (&entry.group, &entry.version, &entry.kind)
            } else {
                (&own.kind_group, &own.kind_version, &own.kind)
            };
            Form {
                group: entry.group.clone(),
                version: entry.version.clone(),
                resource: entry.resource.clone(),
                kind_group: kind_group.clone(),
                kind_version: kind_version.clone(),
                kind: kind.clone(),
            }
        })
        .collect()
}

fn rule_matches(attrs: &Attributes, form: &Form, rule: &Value) -> bool {
    let has = |key: &str, wanted: &str| texts(&rule[key]).any(|v| v == "*" || v == wanted);
    let cluster_wide = attrs.namespace.is_empty() || attrs.is_any("", "namespaces");
    let scope = match rule["scope"].as_str() {
        Some("Cluster") => cluster_wide,
        Some("Namespaced") => !cluster_wide,
        _ => true,
    };
    let resource = texts(&rule["resources"]).any(|pattern| {
        let (resource, subresource) = pattern.split_once('/').unwrap_or((pattern, ""));
        (resource == "*" || resource == form.resource)
            && (subresource == "*" || subresource == attrs.subresource)
    });
    let mut names = texts(&rule["resourceNames"]).peekable();
    let named = names.peek().is_none() || names.any(|name| name == attrs.name);
    scope
        && has("operations", attrs.operation.as_str())
        && has("apiGroups", &form.group)
        && has("apiVersions", &form.version)
        && resource
        && named
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

/// Whether the `namespaceSelector` and the `objectSelector` hold for the request.
pub(super) async fn selects(
    attrs: &Attributes,
    cluster: &Cluster,
    wanted: &Value,
) -> Result<bool, Status> {
    Ok(
        selects_namespace(attrs, cluster, &wanted["namespaceSelector"]).await?
            && selects_object(attrs, &wanted["objectSelector"])?,
    )
}

/// Nothing when everything is selected.
fn selector(value: &Value) -> Result<Option<Selector>, Status> {
    if value.as_object().is_none_or(serde_json::Map::is_empty) {
        return Ok(None);
    }
    let selector = Selector::from_label_selector(value).map_err(Status::internal)?;
    Ok(Some(selector).filter(|s| !s.is_empty()))
}

async fn selects_namespace(
    attrs: &Attributes,
    cluster: &Cluster,
    wanted: &Value,
) -> Result<bool, Status> {
    if attrs.namespace.is_empty() && attrs.resource != "namespaces" {
        return Ok(true);
    }
    let Some(selector) = selector(wanted)? else {
        return Ok(true);
    };
    let written = matches!(attrs.operation, Operation::Create | Operation::Update);
    if attrs.is("", "namespaces")
        && written
        && let Some(namespace) = &attrs.object
    {
        return Ok(selector.matches_object(namespace));
    }
    let namespace = namespace(cluster, &attrs.namespace).await?;
    Ok(selector.matches_object(&namespace))
}

/// The namespace of that name, from the store when the cache does not know it yet.
pub(super) async fn namespace(cluster: &Cluster, name: &str) -> Result<Arc<Value>, Status> {
    if let Some(namespace) = cluster.objects.get("", "namespaces", "", name) {
        return Ok(namespace);
    }
    cluster
        .objects
        .read("", "namespaces", "", name)
        .await?
        .map(Arc::new)
        .ok_or_else(|| Status::not_found("", "namespaces", name))
}

fn selects_object(attrs: &Attributes, wanted: &Value) -> Result<bool, Status> {
    let Some(selector) = selector(wanted)? else {
        return Ok(true);
    };
    Ok([attrs.object.as_ref(), attrs.old_object.as_deref()]
        .into_iter()
        .flatten()
        .any(|object| selector.matches_object(object)))
}

/// An object of the request in another form of its resource.
pub(super) fn converted(
    attrs: &Attributes,
    cluster: &Cluster,
    object: &Value,
    form: &Form,
) -> Result<Value, Status> {
    convert(
        cluster,
        object.clone(),
        (&attrs.group, &attrs.version),
        (&form.group, &form.version),
        &attrs.resource,
        &form.resource,
    )
}

/// The way back of [`converted`].
pub(super) fn restored(
    attrs: &Attributes,
    cluster: &Cluster,
    object: Value,
    form: &Form,
) -> Result<Value, Status> {
    convert(
        cluster,
        object,
        (&form.group, &form.version),
        (&attrs.group, &attrs.version),
        &form.resource,
        &attrs.resource,
    )
}

fn convert(
    cluster: &Cluster,
    mut object: Value,
    from: (&str, &str),
    to: (&str, &str),
    from_resource: &str,
    to_resource: &str,
) -> Result<Value, Status> {
    let entry = |(group, version): (&str, &str), resource: &str| {
        cluster
            .objects
            .resource(group, version, resource)
            .ok_or_else(|| {
                Status::internal(format!(
                    "unable to convert to {}, Resource={resource}: unknown kind",
                    meta::join_api_version(group, version)
                ))
            })
    };
    entry(from, from_resource)?.to_storage(&mut object)?;
    entry(to, to_resource)?.from_storage(&mut object)?;
    Ok(object)
}

/// The request's objects as a webhook or policy that matched in `form` sees them.
pub(super) struct Versioned {
    pub object: Option<Arc<Value>>,
    pub old_object: Option<Arc<Value>>,
}

impl Versioned {
    pub(super) fn new(attrs: &Attributes, cluster: &Cluster, form: &Form) -> Result<Self, Status> {
        let own = Form::requested(attrs);
        let same = (&own.kind_group, &own.kind_version) == (&form.kind_group, &form.kind_version);
        let view = |object: &Value| converted(attrs, cluster, object, form).map(Arc::new);
        let object = match &attrs.object {
            Some(object) if same => Some(Arc::new(object.clone())),
            Some(object) => Some(view(object)?),
            None => None,
        };
        let old_object = match &attrs.old_object {
            Some(object) if same => Some(Arc::clone(object)),
            Some(object) => Some(view(object)?),
            None => None,
        };
        Ok(Self { object, old_object })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn attrs(resource: &str, subresource: &str, namespace: &str) -> Attributes {
        Attributes {
            operation: Operation::Create,
            group: "apps".to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            kind: "Deployment".to_owned(),
            namespace: namespace.to_owned(),
            name: "web".to_owned(),
            object: None,
            old_object: None,
            user: Arc::default(),
            dry_run: false,
            options: Value::Null,
            warnings: Default::default(),
            annotations: Default::default(),
            rounds: Default::default(),
        }
    }

    #[test]
    fn rules_name_resources_and_their_subresources() {
        let rule = |resources: Value, more: Value| {
            let mut rule = json!({"operations": ["CREATE"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": resources});
            keelson_machinery::meta::as_map(&mut rule)
                .extend(more.as_object().cloned().unwrap_or_default());
            rule
        };
        let main = attrs("deployments", "", "ns");
        let scale = attrs("deployments", "scale", "ns");
        let holds =
            |attrs: &Attributes, rule: &Value| rule_matches(attrs, &Form::requested(attrs), rule);
        for (resources, on_main, on_scale) in [
            (json!(["deployments"]), true, false),
            (json!(["deployments/scale"]), false, true),
            (json!(["*"]), true, false),
            (json!(["*/*"]), true, true),
            (json!(["*/scale"]), false, true),
            (json!(["pods"]), false, false),
        ] {
            let rule = rule(resources.clone(), json!({}));
            assert_eq!(holds(&main, &rule), on_main, "{resources}");
            assert_eq!(holds(&scale, &rule), on_scale, "{resources}");
        }
        let all = || json!(["*"]);
        assert!(holds(&main, &rule(all(), json!({"scope": "Namespaced"}))));
        assert!(!holds(&main, &rule(all(), json!({"scope": "Cluster"}))));
        assert!(holds(
            &main,
            &rule(all(), json!({"resourceNames": ["web"]}))
        ));
        assert!(!holds(
            &main,
            &rule(all(), json!({"resourceNames": ["db"]}))
        ));
        assert!(!holds(
            &main,
            &rule(all(), json!({"operations": ["DELETE"]}))
        ));
    }
}
