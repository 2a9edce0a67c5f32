//! What a webhook is sent and what it may answer: AdmissionReview of both versions.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::go;
use keelson_machinery::meta;
use keelson_machinery::status::{Status, StatusDetails};
use serde_json::{Value, json};

use crate::admission::Attributes;
use crate::admission::matching::{Form, Versioned};

const GROUP: &str = "admission.k8s.io";

/// The first version that the webhook understands and this server speaks.
pub(super) fn version(webhook: &Value) -> Result<&'static str, String> {
    let versions = webhook["admissionReviewVersions"].as_array();
    let mut versions = versions.into_iter().flatten().filter_map(Value::as_str);
    versions
        .find_map(|version| ["v1", "v1beta1"].into_iter().find(|own| *own == version))
        .ok_or_else(|| {
            "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)"
                .to_owned()
        })
}

pub(super) fn request(
    attrs: &Attributes,
    form: &Form,
    objects: &Versioned,
    (version, uid): (&str, &str),
) -> Value {
    let requested = Form::requested(attrs);
    let mut request = json!({
        "uid": uid,
        "kind": form.kind_json(), "resource": form.resource_json(),
        "requestKind": requested.kind_json(), "requestResource": requested.resource_json(),
        "operation": attrs.operation.as_str(),
        "userInfo": attrs.user.to_json(),
        "object": objects.object.as_deref(),
        "oldObject": objects.old_object.as_deref(),
        "dryRun": attrs.dry_run,
        "options": attrs.options,
    });
    for (key, value) in [("name", &attrs.name), ("namespace", &attrs.namespace)] {
        if !value.is_empty() {
            request[key] = json!(value);
        }
    }
    if !attrs.subresource.is_empty() {
        request["subResource"] = json!(attrs.subresource);
        request["requestSubResource"] = json!(attrs.subresource);
    }
    json!({"apiVersion": format!("{GROUP}/{version}"), "kind": "AdmissionReview", "request": request})
}

/// An answer that keeps to the rules.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Response {
    pub allowed: bool,
    pub patch: Vec<u8>,
    pub patch_type: String,
    /// Null when there is none.
    pub status: Value,
    pub warnings: Vec<String>,
    pub audit_annotations: Vec<(String, String)>,
}

/// Reads an answer; the error says what it does not keep to.
pub(super) fn response(
    answer: &Value,
    (version, uid): (&str, &str),
    mutating: bool,
) -> Result<Response, String> {
    let (given, kind) = (meta::api_version(answer), meta::kind(answer));
    check_kind(answer, version)?;
    let found = &answer["response"];
    let response = decode(found)?;
    let invalid = |reason: &str| Err(format!("received invalid webhook response: {reason}"));
    if !found.is_object() {
        return invalid("webhook response was absent");
    }
    let has_type = found["patchType"].is_string();
    if version == "v1beta1" {
        let patch_type = if response.patch.is_empty() {
            ""
        } else {
            "JSONPatch"
        };
        return Ok(Response {
            patch_type: patch_type.to_owned(),
            ..response
        });
    }
    let answered = found["uid"].as_str().unwrap_or_default();
    if answered != uid {
        return invalid(&format!(
            "expected response.uid={}, got {}",
            go::quote(uid),
            go::quote(answered)
        ));
    }
    if given.is_empty() || kind.is_empty() {
        let (group, own) = meta::split_api_version(given);
        return invalid(&format!(
            "expected webhook response of {GROUP}/{version}, Kind=AdmissionReview, got {group}/{own}, Kind={kind}"
        ));
    }
    match (mutating, response.patch.is_empty(), has_type) {
        (true, false, false) => {
            invalid("webhook returned response.patch but not response.patchType")
        }
        (true, true, true) => invalid("webhook returned response.patchType but not response.patch"),
        (true, false, true) if response.patch_type.is_empty() => {
            invalid("webhook returned invalid response.patchType of \"\"")
        }
        (false, false, _) => invalid("validating webhook may not return response.patch"),
        (false, true, true) => invalid("validating webhook may not return response.patchType"),
        _ => Ok(response),
    }
}

/// A document without a kind is taken for what was asked for.
fn check_kind(answer: &Value, version: &str) -> Result<(), String> {
    let (given, kind) = (meta::api_version(answer), meta::kind(answer));
    let asked = format!("{GROUP}/{version}");
    if given.is_empty() && kind.is_empty() || given == asked && kind == "AdmissionReview" {
        return Ok(());
    }
    if (given, kind) == ("v1", "Status") {
        return Err(unconvertible("v1.Status", version));
    }
    let (group, other) = meta::split_api_version(given);
    if group == GROUP && kind == "AdmissionReview" && matches!(other, "v1" | "v1beta1") {
        return Err(unconvertible(&format!("{other}.AdmissionReview"), version));
    }
    Err(format!(
        "failed to call webhook: no kind {} is registered for version {} in scheme \"k8s.io/apiserver/pkg/util/webhook/client.go:71\"",
        go::quote(kind),
        go::quote(given)
    ))
}

fn unconvertible(from: &str, version: &str) -> String {
    format!(
        "failed to call webhook: converting ({from}) to ({version}.AdmissionReview): unknown conversion"
    )
}

fn decode(found: &Value) -> Result<Response, String> {
    let wrong = |field: &str, value: &Value, wanted: &str| {
        format!(
            "failed to call webhook: json: cannot unmarshal {} into Go struct field AdmissionResponse.response.{field} of type {wanted}",
            go::json_kind(value)
        )
    };
    let text = |field: &str, wanted: &str| match &found[field] {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        other => Err(wrong(field, other, wanted)),
    };
    let mut out = Response::default();
    text("uid", "types.UID")?;
    out.allowed = match &found["allowed"] {
        Value::Null => false,
        Value::Bool(allowed) => *allowed,
        other => return Err(wrong("allowed", other, "bool")),
    };
    out.patch = STANDARD
        .decode(text("patch", "[]uint8")?)
        .map_err(|error| format!("failed to call webhook: {}", base64_error(&error)))?;
    out.patch_type = text("patchType", "v1.PatchType")?;
    if let Value::Object(_) = &found["status"] {
        out.status = found["status"].clone();
    }
    let warnings = found["warnings"].as_array().into_iter().flatten();
    for warning in warnings {
        match warning {
            Value::String(text) => out.warnings.push(text.clone()),
            other => return Err(wrong("warnings", other, "string")),
        }
    }
    let annotations = found["auditAnnotations"].as_object().into_iter().flatten();
    for (key, value) in annotations {
        match value {
            Value::String(text) => out.audit_annotations.push((key.clone(), text.clone())),
            other => return Err(wrong("auditAnnotations", other, "string")),
        }
    }
    Ok(out)
}

fn base64_error(error: &base64::DecodeError) -> String {
    let at = match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => {
            *at
        }
        base64::DecodeError::InvalidLength(length) => *length,
        base64::DecodeError::InvalidPadding => 0,
    };
    format!("illegal base64 data at input byte {at}")
}

/// A denial in the webhook's own words, with what the client needs to see a failure.
pub(super) fn refusal(webhook: &str, status: &Value) -> Status {
    let text = |key: &str| status[key].as_str().unwrap_or_default();
    let by = format!(
        "admission webhook {} denied the request",
        go::quote(webhook)
    );
    let message = match (text("message"), text("reason")) {
        ("", "") => format!("{by} without explanation"),
        ("", reason) => format!("{by}: {reason}"),
        (message, _) => format!("{by}: {message}"),
    };
    let code = status["code"].as_u64().and_then(|c| u16::try_from(c).ok());
    let details = serde_json::from_value::<StatusDetails>(status["details"].clone());
    Status {
        code: code.unwrap_or_default().clamp(400, 999),
        reason: text("reason").to_owned(),
        message,
        details: details.ok().filter(|_| status["details"].is_object()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_read_as_upstream() {
        let status = refusal("w", &json!({"message": "no", "code": 409}));
        assert_eq!(
            (status.code, status.message.as_str()),
            (409, r#"admission webhook "w" denied the request: no"#)
        );
        let status = refusal("w", &Value::Null);
        assert_eq!(
            status.message,
            r#"admission webhook "w" denied the request without explanation"#
        );
        assert_eq!((status.code, status.reason.as_str()), (400, ""));
    }

    #[test]
    fn an_answer_keeps_to_the_rules() {
        let answer = |more: Value| {
            let mut response = json!({"uid": "u", "allowed": true});
            meta::as_map(&mut response).extend(more.as_object().cloned().unwrap_or_default());
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
        };
        for (more, mutating, problem) in [
            (json!({}), true, None),
            (
                json!({"patch": "e30=", "patchType": "JSONPatch"}),
                true,
                None,
            ),
            (
                json!({"patch": "e30="}),
                true,
                Some("response.patch but not response.patchType"),
            ),
            (
                json!({"patchType": "JSONPatch"}),
                true,
                Some("response.patchType but not response.patch"),
            ),
            (
                json!({"patch": "e30="}),
                false,
                Some("may not return response.patch"),
            ),
            (
                json!({"uid": "other"}),
                true,
                Some("expected response.uid=\"u\", got \"other\""),
            ),
            (json!({"allowed": 1}), true, Some("cannot unmarshal number")),
            (
                json!({"patch": "%"}),
                true,
                Some("illegal base64 data at input byte 0"),
            ),
        ] {
            let said = response(&answer(more.clone()), ("v1", "u"), mutating).err();
            let agrees = match (&said, problem) {
                (None, None) => true,
                (Some(said), Some(problem)) => said.ends_with(problem) || said.contains(problem),
                _ => false,
            };
            assert!(agrees, "{more}: {said:?}");
        }
    }
}
