//! `meta/v1 Status`: how every failure reaches a client.

use crate::field::{ErrorList, aggregate};
use crate::go;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// An outcome of a request. `code` is the HTTP status.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Status {
    pub code: u16,
    pub reason: String,
    pub message: String,
    pub details: Option<StatusDetails>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusDetails {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<StatusCause>,
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

fn is_zero(v: &u32) -> bool {
    *v == 0
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusCause {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// `deployments.apps`, or the bare name in the core group.
pub fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() {
        resource.to_owned()
    } else {
        format!("{resource}.{group}")
    }
}

impl Status {
    fn failure(code: u16, reason: &str, message: impl fmt::Display) -> Status {
        Status {
            code,
            reason: reason.to_owned(),
            message: message.to_string(),
            details: None,
        }
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Status {
        let d = self.details.get_or_insert_with(StatusDetails::default);
        d.group = group.to_owned();
        d.kind = kind.to_owned();
        d.name = name.to_owned();
        self
    }

    pub fn success() -> Status {
        Status {
            code: 200,
            ..Status::default()
        }
    }

    pub fn not_found(group: &str, resource: &str, name: &str) -> Status {
        let message = format!(
            "{} {} not found",
            qualified(group, resource),
            go::quote(name)
        );
        Self::failure(404, "NotFound", message).about(group, resource, name)
    }

    /// No such path on this server.
    pub fn path_not_found() -> Status {
        let mut s = Self::failure(
            404,
            "NotFound",
            "the server could not find the requested resource",
        );
        s.details = Some(StatusDetails::default());
        s
    }

    pub fn already_exists(group: &str, resource: &str, name: &str) -> Status {
        let message = format!(
            "{} {} already exists",
            qualified(group, resource),
            go::quote(name)
        );
        Self::failure(409, "AlreadyExists", message).about(group, resource, name)
    }

    pub fn generate_name_conflict(group: &str, resource: &str, name: &str, retry_s: u32) -> Status {
        let message = format!(
            "{} {} already exists, the server was not able to generate a unique name for the object",
            qualified(group, resource),
            go::quote(name)
        );
        Self::failure(409, "AlreadyExists", message)
            .about(group, resource, name)
            .with_retry_after(retry_s)
    }

    pub fn conflict(group: &str, resource: &str, name: &str, msg: impl fmt::Display) -> Status {
        let message = format!(
            "Operation cannot be fulfilled on {} {}: {msg}",
            qualified(group, resource),
            go::quote(name)
        );
        Self::failure(409, "Conflict", message).about(group, resource, name)
    }

    /// What a server-side apply answers when other managers own the fields.
    pub fn apply_conflict(message: impl fmt::Display, causes: Vec<StatusCause>) -> Status {
        let mut s = Self::failure(409, "Conflict", message);
        s.details = Some(StatusDetails {
            causes,
            ..StatusDetails::default()
        });
        s
    }

    pub fn invalid(group: &str, kind: &str, name: &str, errors: &ErrorList) -> Status {
        let mut message = format!("{} {} is invalid", qualified(group, kind), go::quote(name));
        if !errors.is_empty() {
            message.push_str(": ");
            message.push_str(&aggregate(errors));
        }
        let mut s = Self::failure(422, "Invalid", message).about(group, kind, name);
        if let Some(d) = &mut s.details {
            d.causes = errors
                .iter()
                .map(|e| StatusCause {
                    reason: e.kind.cause().to_owned(),
                    message: e.body(),
                    field: e.field.clone(),
                })
                .collect();
        }
        s
    }

    pub fn bad_request(msg: impl fmt::Display) -> Status {
        Self::failure(400, "BadRequest", msg)
    }

    pub fn forbidden(group: &str, resource: &str, name: &str, msg: impl fmt::Display) -> Status {
        let message = if group.is_empty() && resource.is_empty() {
            format!("forbidden: {msg}")
        } else if name.is_empty() {
            format!("{} is forbidden: {msg}", qualified(group, resource))
        } else {
            format!(
                "{} {} is forbidden: {msg}",
                qualified(group, resource),
                go::quote(name)
            )
        };
        Self::failure(403, "Forbidden", message).about(group, resource, name)
    }

    pub fn unauthorized() -> Status {
        Self::failure(401, "Unauthorized", "Unauthorized")
    }

    pub fn method_not_allowed(msg: impl fmt::Display) -> Status {
        let mut s = Self::failure(405, "MethodNotAllowed", msg);
        s.details = Some(StatusDetails::default());
        s
    }

    /// The verb exists, this resource does not have it.
    pub fn method_not_supported(group: &str, resource: &str, action: &str) -> Status {
        let message = format!(
            "{action} is not supported on resources of kind {}",
            go::quote(&qualified(group, resource))
        );
        Self::failure(405, "MethodNotAllowed", message).about(group, resource, "")
    }

    pub fn not_acceptable(msg: impl fmt::Display) -> Status {
        Self::failure(406, "NotAcceptable", msg)
    }

    pub fn unsupported_media_type(msg: impl fmt::Display) -> Status {
        Self::failure(415, "UnsupportedMediaType", msg)
    }

    pub fn request_entity_too_large(msg: impl fmt::Display) -> Status {
        Self::failure(
            413,
            "RequestEntityTooLarge",
            format_args!("Request entity too large: {msg}"),
        )
    }

    pub fn gone(msg: impl fmt::Display) -> Status {
        Self::failure(410, "Gone", msg)
    }

    /// The resource version asked for was compacted away.
    pub fn expired(msg: impl fmt::Display) -> Status {
        Self::failure(410, "Expired", msg)
    }

    pub fn internal(msg: impl fmt::Display) -> Status {
        let text = msg.to_string();
        let mut s = Self::failure(
            500,
            "InternalError",
            format_args!("Internal error occurred: {text}"),
        );
        s.details = Some(StatusDetails {
            causes: vec![StatusCause {
                message: text,
                ..StatusCause::default()
            }],
            ..StatusDetails::default()
        });
        s
    }

    /// What upstream answers with for an error that has no reason of its own.
    pub fn unclassified(msg: impl fmt::Display) -> Status {
        Status {
            code: 500,
            reason: String::new(),
            message: msg.to_string(),
            details: None,
        }
    }

    pub fn service_unavailable(msg: impl fmt::Display) -> Status {
        Self::failure(503, "ServiceUnavailable", msg)
    }

    pub fn timeout(msg: impl fmt::Display) -> Status {
        let mut s = Self::failure(504, "Timeout", format_args!("Timeout: {msg}"));
        s.details = Some(StatusDetails::default());
        s
    }

    /// A transient failure; the client should try again.
    pub fn server_timeout(group: &str, resource: &str, operation: &str, retry_s: u32) -> Status {
        let message = format!(
            "The {operation} operation against {} could not be completed at this time, please try again.",
            qualified(group, resource)
        );
        Self::failure(500, "ServerTimeout", message)
            .about(group, resource, operation)
            .with_retry_after(retry_s)
    }

    pub fn too_many_requests(msg: impl fmt::Display, retry_s: u32) -> Status {
        Self::failure(429, "TooManyRequests", msg).with_retry_after(retry_s)
    }

    pub fn with_cause(
        mut self,
        reason: impl Into<String>,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> Status {
        let d = self.details.get_or_insert_with(StatusDetails::default);
        d.causes.push(StatusCause {
            reason: reason.into(),
            message: message.into(),
            field: field.into(),
        });
        self
    }

    pub fn with_retry_after(mut self, seconds: u32) -> Status {
        self.details
            .get_or_insert_with(StatusDetails::default)
            .retry_after_seconds = seconds;
        self
    }

    pub fn with_details(mut self, group: &str, kind: &str, name: &str) -> Status {
        self = self.about(group, kind, name);
        self
    }

    pub fn with_uid(mut self, uid: &str) -> Status {
        self.details.get_or_insert_with(StatusDetails::default).uid = uid.to_owned();
        self
    }

    pub fn is_success(&self) -> bool {
        self.code < 400
    }

    pub fn is_not_found(&self) -> bool {
        self.reason == "NotFound"
    }

    pub fn is_conflict(&self) -> bool {
        self.reason == "Conflict"
    }

    pub fn is_already_exists(&self) -> bool {
        self.reason == "AlreadyExists"
    }

    pub fn has_cause(&self, reason: &str) -> bool {
        self.details
            .as_ref()
            .is_some_and(|d| d.causes.iter().any(|c| c.reason == reason))
    }

    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl Serialize for Status {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut out = s.serialize_struct("Status", 8)?;
        out.serialize_field("kind", "Status")?;
        out.serialize_field("apiVersion", "v1")?;
        out.serialize_field("metadata", &serde_json::Map::new())?;
        out.serialize_field(
            "status",
            if self.is_success() {
                "Success"
            } else {
                "Failure"
            },
        )?;
        if !self.message.is_empty() {
            out.serialize_field("message", &self.message)?;
        }
        if !self.reason.is_empty() {
            out.serialize_field("reason", &self.reason)?;
        }
        if let Some(d) = &self.details {
            out.serialize_field("details", d)?;
        }
        if !self.is_success() || self.code != 200 {
            out.serialize_field("code", &self.code)?;
        }
        out.end()
    }
}

impl<'de> Deserialize<'de> for Status {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Status, D::Error> {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Wire {
            status: String,
            message: String,
            reason: String,
            details: Option<StatusDetails>,
            code: Option<u16>,
        }
        let w = Wire::deserialize(d)?;
        let code = w
            .code
            .unwrap_or(if w.status == "Failure" { 500 } else { 200 });
        Ok(Status {
            code,
            reason: w.reason,
            message: w.message,
            details: w.details,
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() {
            write!(f, "{} {}", self.code, self.reason)
        } else {
            f.write_str(&self.message)
        }
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::{FieldError, Path};

    #[test]
    fn wire_form() {
        let s = Status::not_found("apps", "deployments", "x");
        assert_eq!(s.message, "deployments.apps \"x\" not found");
        let v = s.to_value();
        assert_eq!(v["kind"], "Status");
        assert_eq!(v["apiVersion"], "v1");
        assert_eq!(v["status"], "Failure");
        assert_eq!(v["code"], 404);
        assert_eq!(v["details"]["group"], "apps");
        let back: Status = serde_json::from_value(v).unwrap();
        assert_eq!(back, s);
    }

    #[test]
    fn invalid_lists_every_cause() {
        let errs = vec![
            FieldError::required(&Path::new("spec").child("a"), ""),
            FieldError::invalid(&Path::new("spec").child("b"), "x", "bad"),
        ];
        let s = Status::invalid("", "Pod", "p", &errs);
        assert_eq!(
            s.message,
            "Pod \"p\" is invalid: [spec.a: Required value, spec.b: Invalid value: \"x\": bad]"
        );
        assert_eq!(s.details.as_ref().unwrap().causes.len(), 2);
        assert_eq!(
            s.details.unwrap().causes[1].message,
            "Invalid value: \"x\": bad"
        );
    }
}
