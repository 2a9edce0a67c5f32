//! AppArmor profiles in annotations, which came before the fields: they are checked, copied to the
//! fields of new pods and held to what the fields say.

use keelson_machinery::field::{ErrorList, FieldError};
use serde_json::{Map, Value, json};

use super::default::CONTAINER_LISTS;
use crate::check::At;
use crate::tree::{Tree, TreeMut};

const PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";
const LOCALHOST: &str = "localhost/";
const MAX_PROFILE: usize = 4095;

/// The field that says the same as an annotation; `None` if it says nothing that is valid.
fn field_of(annotation: &str) -> Option<Value> {
    match annotation {
        "unconfined" => Some(json!({"type": "Unconfined"})),
        "runtime/default" => Some(json!({"type": "RuntimeDefault"})),
        _ => {
            let profile = annotation.strip_prefix(LOCALHOST)?;
            let valid =
                !profile.is_empty() && profile.trim() == profile && profile.len() <= MAX_PROFILE;
            valid.then(|| json!({"type": "Localhost", "localhostProfile": profile}))
        }
    }
}

fn annotation<'a>(annotations: &'a Map<String, Value>, container: &Value) -> Option<&'a str> {
    let key = format!("{PREFIX}{}", container.text("name"));
    annotations.get(&key).and_then(Value::as_str)
}

/// A new pod's containers get the profiles that its annotations name.
pub(super) fn copy_to_fields(pod: &mut Value) {
    if pod.text("spec.os.name") == "windows" {
        return;
    }
    let annotations = pod.map("metadata.annotations").clone();
    let own = pod.at("spec.securityContext.appArmorProfile").clone();
    for list in CONTAINER_LISTS {
        for container in pod.list_mut(&format!("spec.{list}")) {
            let field = annotation(&annotations, container).and_then(field_of);
            if let Some(field) = field.filter(|f| *f != own) {
                container.fill("securityContext.appArmorProfile", field);
            }
        }
    }
}

/// What a client is told whose pod names profiles in annotations. The pod has its fields already.
pub(super) fn pod_warnings(pod: &Value, out: &mut Vec<String>) {
    if pod.text("spec.os.name") == "windows" {
        return;
    }
    let annotations = pod.map("metadata.annotations");
    for list in CONTAINER_LISTS {
        for container in pod.at("spec").list(list) {
            let Some(text) = annotation(annotations, container) else {
                continue;
            };
            let field = container.at("securityContext.appArmorProfile");
            let said = field_of(text);
            if said.is_none() && field.is_null() || said.is_some_and(|s| s == *field) {
                out.push(deprecated("metadata", container));
            }
        }
    }
}

/// As [`pod_warnings`] for a template, whose annotations stay where they are.
pub(super) fn template_warnings(metadata: &At, container: &At, own: &Value, out: &mut Vec<String>) {
    if container.value.has("securityContext.appArmorProfile") {
        return;
    }
    let annotations = metadata.value.map("annotations");
    if let Some(text) = annotation(annotations, container.value)
        && (own.is_null() || field_of(text).is_none_or(|field| field != *own))
    {
        out.push(deprecated(&metadata.path.to_string(), container.value));
    }
}

fn deprecated(metadata: &str, container: &Value) -> String {
    format!(
        "{metadata}.annotations[{PREFIX}{}]: deprecated since v1.30; use the \"appArmorProfile\" field instead",
        container.text("name")
    )
}

/// Annotations name containers of the pod and profiles of a known form.
pub(super) fn annotations(annotations: &At, spec: &At, e: &mut ErrorList) {
    for (key, at) in annotations.entries() {
        let Some(name) = key.strip_prefix(PREFIX) else {
            continue;
        };
        if !super::each_container(spec).any(|c| c.value.text("name") == name) {
            e.push(FieldError::invalid(&at.path, name, "container not found"));
        }
        let text = at.text();
        if !matches!(text, "" | "runtime/default" | "unconfined") && !text.starts_with(LOCALHOST) {
            e.push(at.invalid(format!("invalid AppArmor profile name: {text:?}")));
        }
    }
}

/// Annotation and field of a container agree.
pub(super) fn fields_match(annotations: &Value, spec: &At, e: &mut ErrorList) {
    if spec.value.text("os.name") == "windows" {
        return;
    }
    let own = spec.value.at("securityContext.appArmorProfile");
    let Some(annotations) = annotations.as_object() else {
        return;
    };
    for container in super::each_container(spec) {
        let field = match container.value.at("securityContext.appArmorProfile") {
            Value::Null => own,
            field => field,
        };
        let Some(text) = annotation(annotations, container.value) else {
            continue;
        };
        let at = container.at("securityContext").at("appArmorProfile");
        let same_type = match field.text("type") {
            "Unconfined" => text == "unconfined",
            "RuntimeDefault" => text == "runtime/default",
            "Localhost" => text.starts_with(LOCALHOST),
            _ => continue,
        };
        if !same_type {
            let detail = "apparmor type in annotation and field must match";
            e.push(at.at("type").forbidden(detail));
        } else if let Some(profile) = text.strip_prefix(LOCALHOST)
            && field.at("localhostProfile") != profile
        {
            let detail = "apparmor profile in annotation and field must match";
            e.push(at.at("localhostProfile").forbidden(detail));
        }
    }
}
