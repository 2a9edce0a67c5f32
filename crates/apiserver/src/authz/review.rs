//! `authorization.k8s.io`: the four access reviews.

use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use super::{Attributes, Authorizer, Decision};
use crate::request::UserInfo;

const GROUP: &str = "authorization.k8s.io";

/// SubjectAccessReview, and LocalSubjectAccessReview when a namespace is given.
pub(crate) async fn subject_access_review(
    authorizer: &Authorizer,
    mut review: Value,
    namespace: Option<&str>,
) -> Result<Value, Status> {
    let spec = review["spec"].clone();
    let resource = match namespace {
        Some(_) => "localsubjectaccessreviews",
        None => "subjectaccessreviews",
    };
    if let Some(namespace) = namespace {
        meta::set_namespace(&mut review, namespace);
    }
    check(resource, &review)?;
    let user = UserInfo {
        username: text(&spec["user"]).to_owned(),
        uid: text(&spec["uid"]).to_owned(),
        groups: texts(&spec["groups"]),
        extra: spec["extra"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, values)| (key.to_lowercase(), texts(values)))
            .collect(),
    };
    review["status"] = decide(authorizer, &user, &spec).await;
    Ok(review)
}

pub(crate) async fn self_subject_access_review(
    authorizer: &Authorizer,
    user: &UserInfo,
    mut review: Value,
) -> Result<Value, Status> {
    let spec = review["spec"].clone();
    check("selfsubjectaccessreviews", &review)?;
    review["status"] = decide(authorizer, user, &spec).await;
    Ok(review)
}

pub(crate) fn self_subject_rules_review(
    authorizer: &Authorizer,
    user: &UserInfo,
    mut review: Value,
) -> Result<Value, Status> {
    let namespace = text(&review["spec"]["namespace"]).to_owned();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in authorizer.rbac().rules_for(user, &namespace) {
        let list = if rule.paths.is_empty() {
            &mut resources
        } else {
            &mut paths
        };
        let rule = rule.to_json();
        if !list.contains(&rule) {
            list.push(rule);
        }
    }
    // The answer does not repeat the question.
    review["spec"] = json!({});
    review["status"] =
        json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false});
    let is_node = user.in_group("system:nodes") && user.username.starts_with("system:node:");
    if authorizer.has_webhook() {
        review["status"]["incomplete"] = json!(true);
        review["status"]["evaluationError"] =
            json!("webhook authorizer does not support user rule resolution");
    } else if is_node {
        review["status"]["incomplete"] = json!(true);
        review["status"]["evaluationError"] =
            json!("node authorizer does not support user rule resolution");
    }
    Ok(review)
}

/// The rules of the review's kind. Upstream names no kind in its refusal.
fn check(resource: &str, review: &Value) -> Result<(), Status> {
    let errors = (keelson_kinds::kind(GROUP, resource).validate)(review);
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(GROUP, "", "", &errors))
}

async fn decide(authorizer: &Authorizer, user: &UserInfo, spec: &Value) -> Value {
    let resource = &spec["resourceAttributes"];
    let other = &spec["nonResourceAttributes"];
    let is_resource = resource.is_object();
    let (fields, labels) = (field_selector(resource), label_selector(resource));
    let attributes = Attributes {
        user,
        verb: text(if is_resource {
            &resource["verb"]
        } else {
            &other["verb"]
        }),
        group: text(&resource["group"]),
        version: text(&resource["version"]),
        resource: text(&resource["resource"]),
        subresource: text(&resource["subresource"]),
        namespace: text(&resource["namespace"]),
        name: text(&resource["name"]),
        is_resource,
        path: text(&other["path"]),
        field_selector: &fields,
        label_selector: &labels,
    };
    let verdict = authorizer.authorize(&attributes).await;
    let (mut status, reason) = match verdict.decision {
        Decision::Allow(reason) => (json!({"allowed": true}), reason),
        Decision::Deny(reason) => (json!({"allowed": false, "denied": true}), reason),
        Decision::NoOpinion(reason) => (json!({"allowed": false}), reason),
    };
    if !reason.is_empty() {
        status["reason"] = json!(reason);
    }
    if let Some(error) = verdict.error {
        status["evaluationError"] = json!(error);
    }
    status
}

/// The selector of a question as text: as it was written, or put together from requirements. A
/// term that is not understood is left out, which asks for more, never for less.
fn field_selector(resource: &Value) -> String {
    let selector = &resource["fieldSelector"];
    if let Some(raw) = selector["rawSelector"].as_str() {
        return raw.to_owned();
    }
    let terms = selector["requirements"].as_array().into_iter().flatten();
    let term = |r: &Value| match (r["operator"].as_str(), texts(&r["values"]).as_slice()) {
        (Some("In"), [one]) => Some(format!("{}={one}", text(&r["key"]))),
        (Some("NotIn"), [one]) => Some(format!("{}!={one}", text(&r["key"]))),
        _ => None,
    };
    terms.filter_map(term).collect::<Vec<_>>().join(",")
}

fn label_selector(resource: &Value) -> String {
    let selector = &resource["labelSelector"];
    if let Some(raw) = selector["rawSelector"].as_str() {
        return raw.to_owned();
    }
    let terms = selector["requirements"].as_array().into_iter().flatten();
    let term = |r: &Value| {
        let (key, values) = (text(&r["key"]), texts(&r["values"]).join(","));
        match r["operator"].as_str()? {
            "In" => Some(format!("{key} in ({values})")),
            "NotIn" => Some(format!("{key} notin ({values})")),
            "Exists" => Some(key.to_owned()),
            "DoesNotExist" => Some(format!("!{key}")),
            _ => None,
        }
    };
    terms.filter_map(term).collect::<Vec<_>>().join(",")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn texts(value: &Value) -> Vec<String> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v.as_str().map(ToOwned::to_owned))
        .collect()
}
