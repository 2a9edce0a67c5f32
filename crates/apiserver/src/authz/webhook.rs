//! An authorizer elsewhere, asked by SubjectAccessReview. Its answers are kept for a while.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use keelson_machinery::labels::{Operator, Selector};
use serde_json::{Value, json};

use super::conditions::Conditions;
use super::{Attributes, Decision, Verdict};
use crate::remote::Remote;

/// Answers kept at once, and how long a question's own text may be to be kept at all: callers
/// choose it, and must not fill the memory with it.
const CACHED: usize = 8192;
const MAX_CACHED_BYTES: usize = 10_000;

pub(super) struct Settings {
    pub(super) name: String,
    /// Zero keeps no such answer.
    pub(super) allowed_ttl: Duration,
    pub(super) refused_ttl: Duration,
    pub(super) timeout: Duration,
    pub(super) version: String,
    pub(super) deny_on_failure: bool,
    /// Under which the service is asked at all.
    pub(super) conditions: Conditions,
}

pub(super) struct Webhook {
    remote: Remote,
    settings: Settings,
    answers: Mutex<HashMap<String, (Instant, Verdict)>>,
}

impl Webhook {
    pub(super) fn new(remote: Remote, settings: Settings) -> Self {
        Self {
            remote,
            settings,
            answers: Mutex::default(),
        }
    }

    pub(super) async fn authorize(&self, a: &Attributes<'_>) -> Verdict {
        let spec = spec(a);
        match self.settings.conditions.hold(&spec) {
            Ok(true) => {}
            Ok(false) => return Decision::NoOpinion(String::new()).into(),
            Err(error) => return self.failed(error),
        }
        let key = spec.to_string();
        if let Some(verdict) = self.kept(&key) {
            return verdict;
        }
        match self.ask(&spec).await {
            Ok(verdict) => {
                self.keep(key, &verdict);
                verdict
            }
            Err(error) => {
                tracing::error!(authorizer = self.settings.name, %error, "asking the authorization webhook");
                self.failed(error.to_string())
            }
        }
    }

    /// What a question that got no answer comes to.
    fn failed(&self, error: String) -> Verdict {
        let decision = if self.settings.deny_on_failure {
            Decision::Deny(String::new())
        } else {
            Decision::NoOpinion(String::new())
        };
        Verdict {
            decision,
            error: Some(error),
        }
    }

    async fn ask(&self, spec: &Value) -> Result<Verdict, crate::remote::Error> {
        let review = json!({
            "apiVersion": format!("authorization.k8s.io/{}", self.settings.version),
            "kind": "SubjectAccessReview",
            "metadata": {},
            "spec": if self.settings.version == "v1beta1" { old_form(spec) } else { spec.clone() },
        });
        let answer = self.remote.ask(&review, self.settings.timeout).await?;
        Ok(verdict(&answer["status"]))
    }

    fn kept(&self, key: &str) -> Option<Verdict> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, verdict) = answers.get(key)?;
        (Instant::now() < *until).then(|| verdict.clone())
    }

    fn keep(&self, key: String, verdict: &Verdict) {
        let ttl = match verdict.decision {
            Decision::Allow(_) => self.settings.allowed_ttl,
            _ => self.settings.refused_ttl,
        };
        if ttl.is_zero() || key.len() > MAX_CACHED_BYTES {
            return;
        }
        let now = Instant::now();
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= CACHED {
            answers.retain(|_, (until, _)| now < *until);
        }
        if answers.len() >= CACHED {
            answers.clear();
        }
        answers.insert(key, (now + ttl, verdict.clone()));
    }
}

fn verdict(status: &Value) -> Verdict {
    let reason = status["reason"].as_str().unwrap_or_default().to_owned();
    match (status["denied"] == true, status["allowed"] == true) {
        (true, true) => Verdict {
            decision: Decision::Deny(reason),
            error: Some(
                "webhook subject access review returned both allow and deny response".to_owned(),
            ),
        },
        (true, false) => Decision::Deny(reason).into(),
        (false, true) => Decision::Allow(reason).into(),
        (false, false) => Decision::NoOpinion(reason).into(),
    }
}

/// The spec of a v1 review.
fn spec(a: &Attributes<'_>) -> Value {
    let user = a.user;
    let mut spec = json!({"user": user.username});
    if !user.uid.is_empty() {
        spec["uid"] = json!(user.uid);
    }
    if !user.groups.is_empty() {
        spec["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        spec["extra"] = json!(user.extra);
    }
    if !a.is_resource {
        spec["nonResourceAttributes"] = json!({"path": a.path, "verb": a.verb});
        return spec;
    }
    let mut resource = serde_json::Map::new();
    for (key, value) in [
        ("namespace", a.namespace),
        ("verb", a.verb),
        ("group", a.group),
        ("version", a.version),
        ("resource", a.resource),
        ("subresource", a.subresource),
        ("name", a.name),
    ] {
        if !value.is_empty() {
            resource.insert(key.to_owned(), json!(value));
        }
    }
    let fields = field_requirements(a.field_selector);
    if !fields.is_empty() {
        resource.insert("fieldSelector".to_owned(), json!({"requirements": fields}));
    }
    let labels = label_requirements(a.label_selector);
    if !labels.is_empty() {
        resource.insert("labelSelector".to_owned(), json!({"requirements": labels}));
    }
    spec["resourceAttributes"] = Value::Object(resource);
    spec
}

/// A selector only narrows what is asked for, so a term that is not understood is left out.
fn field_requirements(selector: &str) -> Vec<Value> {
    let term = |term: &str| {
        let (field, value) = term.split_once('=')?;
        let (field, operator) = match field.strip_suffix('!') {
            Some(field) => (field, "NotIn"),
            None => (field, "In"),
        };
        let value = value.strip_prefix('=').unwrap_or(value);
        Some(json!({"key": field.trim(), "operator": operator, "values": [value]}))
    };
    selector.split(',').filter_map(term).collect()
}

fn label_requirements(selector: &str) -> Vec<Value> {
    let Ok(selector) = Selector::parse(selector) else {
        return Vec::new();
    };
    let requirement = |r: &keelson_machinery::labels::Requirement| {
        let operator = match r.operator {
            Operator::In | Operator::Equals => "In",
            Operator::NotIn | Operator::NotEquals => "NotIn",
            Operator::Exists => "Exists",
            Operator::DoesNotExist => "DoesNotExist",
            _ => return None,
        };
        let mut out = json!({"key": r.key, "operator": operator});
        if !r.values.is_empty() {
            out["values"] = json!(r.values);
        }
        Some(out)
    };
    selector
        .requirements()
        .iter()
        .filter_map(requirement)
        .collect()
}

/// v1beta1 calls the groups `group`.
fn old_form(spec: &Value) -> Value {
    let mut spec = spec.clone();
    if let Some(map) = spec.as_object_mut()
        && let Some(groups) = map.remove("groups")
    {
        map.insert("group".to_owned(), groups);
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::UserInfo;

    #[test]
    fn a_question_is_told_whole() {
        let user = UserInfo::new("jane", &["dev"]);
        let a = Attributes {
            field_selector: "spec.nodeName=n,status.phase!=Failed",
            label_selector: "app in (a,b),!old",
            ..Attributes::resource(&user, "list", "", "pods", "ns", "")
        };
        assert_eq!(
            spec(&a),
            json!({"user": "jane", "groups": ["dev"], "resourceAttributes": {
                "namespace": "ns", "verb": "list", "version": "*", "resource": "pods",
                "fieldSelector": {"requirements": [
                    {"key": "spec.nodeName", "operator": "In", "values": ["n"]},
                    {"key": "status.phase", "operator": "NotIn", "values": ["Failed"]}]},
                "labelSelector": {"requirements": [
                    {"key": "app", "operator": "In", "values": ["a", "b"]},
                    {"key": "old", "operator": "DoesNotExist"}]},
            }})
        );
        assert_eq!(old_form(&spec(&a))["group"], json!(["dev"]));
    }

    #[test]
    fn a_refusal_beats_an_approval() {
        let both = json!({"allowed": true, "denied": true, "reason": "r"});
        let both = verdict(&both);
        assert_eq!(both.decision, Decision::Deny("r".to_owned()));
        assert!(both.error.is_some());
        assert_eq!(
            verdict(&json!({})),
            Decision::NoOpinion(String::new()).into()
        );
    }
}
