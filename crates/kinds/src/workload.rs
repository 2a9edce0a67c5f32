//! What workloads have in common: a selector, a template that it matches, counted replicas.

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::{Map, Value};

use crate::cell;
use crate::check::{At, IMMUTABLE};
use crate::core::pod;
use crate::tree::{Tree, TreeMut};

/// Whether a label selector, already checked, selects these labels.
pub(crate) fn selects(selector: &Value, labels: &Map<String, Value>) -> bool {
    let value = |key: &str| labels.get(key).and_then(Value::as_str);
    selector
        .map("matchLabels")
        .iter()
        .all(|(k, v)| value(k) == v.as_str())
        && selector.list("matchExpressions").iter().all(|e| {
            let found = value(e.text("key"));
            let listed = found.is_some_and(|f| e.list("values").iter().any(|v| v == f));
            match e.text("operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}

/// The selector must be there, be sound and not select everything. False if it is not sound, so
/// that nothing can be said of what it selects.
pub(crate) fn selector(spec: &At, empty: &str, e: &mut ErrorList) -> bool {
    let selector = spec.at("selector");
    if !selector.exists() {
        e.push(selector.required(""));
        return true;
    }
    let sound = label_selector(&selector, e);
    if selects_all(&selector) {
        e.push(selector.invalid(empty));
    }
    sound
}

/// The rules of a label selector; whether it follows them.
pub(crate) fn label_selector(selector: &At, e: &mut ErrorList) -> bool {
    let before = e.len();
    selector.label_selector(e);
    e.len() == before
}

/// A selector that is there and asks for nothing.
pub(crate) fn selects_all(selector: &At) -> bool {
    selector.exists()
        && selector.at("matchLabels").is_empty()
        && selector.at("matchExpressions").is_empty()
}

/// The template's labels must be among those selected; no selector selects nothing.
pub(crate) fn template_is_selected(spec: &At, e: &mut ErrorList) {
    let labels = spec.at("template").at("metadata").at("labels");
    let selector = spec.at("selector");
    if !selector.exists() || !selects(selector.value, spec.value.map("template.metadata.labels")) {
        e.push(labels.invalid("`selector` does not match template `labels`"));
    }
}

/// The selector and the template of pods that run until they are stopped. With a broken selector
/// the template is not looked at.
pub(crate) fn selector_and_template(spec: &At, kind: &str, empty: &str, e: &mut ErrorList) {
    if !selector(spec, empty, e) {
        return e.push(spec.at("selector").invalid("invalid label selector"));
    }
    template_is_selected(spec, e);
    lasting_template(spec, kind, e);
}

/// A template of pods that run until they are stopped.
pub(crate) fn lasting_template(spec: &At, kind: &str, e: &mut ErrorList) {
    let template = spec.at("template");
    pod::pod_template(&template, e);
    only_lasting(&template, kind, e);
}

/// Pods of this kind get their names from its name.
pub(crate) fn name_warning(obj: &Value, old: Option<&Value>) -> Option<String> {
    if old.is_some() {
        return None;
    }
    let problems = validation::is_dns1123_label(obj.text("metadata.name"));
    (!problems.is_empty()).then(|| {
        format!(
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [{}]",
            problems.join(" ")
        )
    })
}

/// The template's remarks and the one about the name.
pub(crate) fn warnings(obj: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out: Vec<_> = name_warning(obj, old).into_iter().collect();
    out.extend(template_warnings(obj, old));
    out
}

pub(crate) fn only_lasting(template: &At, kind: &str, e: &mut ErrorList) {
    let pod = template.at("spec");
    let restart = pod.at("restartPolicy");
    if restart.text() != "Always" {
        e.push(FieldError::not_supported(
            &restart.path,
            restart.text(),
            &["Always"],
        ));
    }
    if pod.has("activeDeadlineSeconds") {
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        e.push(pod.at("activeDeadlineSeconds").forbidden(detail));
    }
}

/// A count or a share: `3` or `25%`.
pub(crate) fn int_or_percent(at: &At, e: &mut ErrorList) {
    if at.value.is_string() {
        at.conforms(e, validation::is_percent);
    } else {
        at.non_negative(e);
    }
}

/// The number in front of the percent sign, or the count.
pub(crate) fn int_or_percent_value(value: &Value) -> i64 {
    match value {
        Value::String(s) => s.strip_suffix('%').unwrap_or(s).parse().unwrap_or(0),
        other => other.as_i64().unwrap_or(0),
    }
}

pub(crate) fn at_most_all(at: &At, e: &mut ErrorList) {
    if validation::is_percent(at.text()).is_empty() && int_or_percent_value(at.value) > 100 {
        e.push(at.invalid("must not be greater than 100%"));
    }
}

/// Counters of a status: none negative, and none above the replicas they are part of.
pub(crate) fn status_counts(
    obj: &Value,
    counters: &[&str],
    within: &[(&str, &str, &str)],
) -> ErrorList {
    let mut e = ErrorList::new();
    let status = At::new(obj, "status");
    for counter in counters {
        status.at(counter).non_negative(&mut e);
    }
    for (part, whole, detail) in within {
        let part = status.at(part);
        if part.num() > status.value.num(whole) {
            e.push(part.invalid(*detail));
        }
    }
    e
}

pub(crate) const WITHIN_REPLICAS: &str = "cannot be greater than status.replicas";

/// A counter that only grows.
pub(crate) fn not_decremented(new: &Value, old: &Value, path: &str, e: &mut ErrorList) {
    let now = new.num(path);
    if old.int(path).is_some_and(|before| now < before) {
        let path = keelson_machinery::field::Path::new(path);
        e.push(FieldError::invalid(&path, now, "cannot be decremented"));
    }
}

pub(crate) fn immutable(new: &Value, old: &Value, path: &str, e: &mut ErrorList) {
    if !crate::check::same(new.at(path), old.at(path)) {
        let at = keelson_machinery::field::Path::new(path);
        // A text that is gone is an empty one.
        let shown = match (new.at(path), old.at(path)) {
            (Value::Null, Value::String(_)) => Value::from(""),
            (shown, _) => shown.clone(),
        };
        e.push(FieldError::invalid(&at, shown, IMMUTABLE));
    }
}

/// As [`immutable`] for a text that may be absent, which is not the same as an empty one.
pub(crate) fn immutable_optional(new: &Value, old: &Value, path: &str, e: &mut ErrorList) {
    let (now, before) = (new.at(path), old.at(path));
    if now != before {
        let at = keelson_machinery::field::Path::new(path);
        e.push(FieldError::invalid(&at, now.clone(), IMMUTABLE));
    }
}

/// The cells that `-o wide` adds to a workload's row.
pub(crate) fn wide_cells(obj: &Value, template: &str) -> [Value; 2] {
    let (names, images) = cell::containers(obj.at(template).at("spec"));
    [names.into(), images.into()]
}

/// The template's remarks, for kinds whose template sits at `spec.template`.
pub(crate) fn template_warnings(obj: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some_and(|old| old.at("spec.template") == obj.at("spec.template")) {
        return Vec::new();
    }
    pod::template_warnings(&At::new(obj, "spec").at("template"))
}

/// The scale of a workload, written back: the replicas and nothing else.
pub(crate) fn keep_all_but_replicas(new: &mut Value, old: &Value) {
    let replicas = new.at("spec.replicas").clone();
    new.keep("spec", old);
    new.put("spec.replicas", replicas);
    new.keep("status", old);
}
