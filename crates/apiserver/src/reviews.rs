//! Resources that are answered and never stored: the reviews, and tokens of service accounts.

use std::sync::Arc;

use bytes::Bytes;
use keelson_machinery::apply::{self, FieldSet, Request};
use keelson_machinery::status::Status;
use keelson_machinery::{meta, time};
use serde_json::Value;

use crate::admission::{Attributes, Operation};
use crate::authn::{Seen, review as authentication, token_request};
use crate::authz::review as authorization;
use crate::registry::codec;
use crate::registry::options::WriteOptions;
use crate::request::{RequestContext, RequestInfo, Response};
use crate::server::Server;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Review {
    Token,
    SelfSubject,
    SubjectAccess,
    LocalSubjectAccess,
    SelfSubjectAccess,
    SelfSubjectRules,
    TokenRequest,
}

impl Review {
    pub(crate) fn of(info: &RequestInfo) -> Option<Self> {
        let group = match info.group.as_str() {
            "authentication.k8s.io" | "authorization.k8s.io" => {
                info.version == "v1" && info.subresource.is_empty()
            }
            "" => info.version == "v1",
            _ => false,
        };
        if !group {
            return None;
        }
        match (
            info.group.as_str(),
            info.resource.as_str(),
            info.subresource.as_str(),
        ) {
            ("authentication.k8s.io", "tokenreviews", "") => Some(Self::Token),
            ("authentication.k8s.io", "selfsubjectreviews", "") => Some(Self::SelfSubject),
            ("authorization.k8s.io", "subjectaccessreviews", "") => Some(Self::SubjectAccess),
            ("authorization.k8s.io", "localsubjectaccessreviews", "") => {
                Some(Self::LocalSubjectAccess)
            }
            ("authorization.k8s.io", "selfsubjectaccessreviews", "") => {
                Some(Self::SelfSubjectAccess)
            }
            ("authorization.k8s.io", "selfsubjectrulesreviews", "") => Some(Self::SelfSubjectRules),
            ("", "serviceaccounts", "token") => Some(Self::TokenRequest),
            _ => None,
        }
    }

    fn kind(self) -> (&'static str, &'static str) {
        match self {
            Self::Token => ("authentication.k8s.io", "TokenReview"),
            Self::SelfSubject => ("authentication.k8s.io", "SelfSubjectReview"),
            Self::SubjectAccess => ("authorization.k8s.io", "SubjectAccessReview"),
            Self::LocalSubjectAccess => ("authorization.k8s.io", "LocalSubjectAccessReview"),
            Self::SelfSubjectAccess => ("authorization.k8s.io", "SelfSubjectAccessReview"),
            Self::SelfSubjectRules => ("authorization.k8s.io", "SelfSubjectRulesReview"),
            Self::TokenRequest => ("authentication.k8s.io", "TokenRequest"),
        }
    }
}

pub(crate) async fn answer(
    server: &Arc<Server>,
    context: &RequestContext,
    review: Review,
    body: Bytes,
) -> Result<Response, Status> {
    let info = &context.info;
    if info.verb != "create" || (review != Review::TokenRequest && !info.name.is_empty()) {
        return Err(Status::method_not_supported(
            &info.group,
            &info.resource,
            &info.verb,
        ));
    }
    let (group, kind) = review.kind();
    let mut object = codec::decode_body(context, &body, &format!("{group}/v1"), kind)?;
    if review != Review::SelfSubject && !object["spec"].is_object() {
        meta::as_map(&mut object).insert("spec".to_owned(), Value::Object(serde_json::Map::new()));
    }
    if review == Review::TokenRequest {
        token_request::default(&mut object);
        object = admitted(server, context, object).await?;
    }
    own(context, review, &mut object)?;
    let authorizer = &server.authorizer;
    let answer = match review {
        Review::Token
            if object["spec"]["token"]
                .as_str()
                .unwrap_or_default()
                .is_empty() =>
        {
            return Err(Status::bad_request(
                "token is required for TokenReview in authentication",
            ));
        }
        Review::Token => {
            let seen = Seen {
                warnings: &context.warnings,
                annotations: &context.annotations,
                metrics: &server.metrics,
            };
            authentication::token_review(&server.authenticator, object, &seen).await
        }
        Review::SelfSubject => authentication::self_subject_review(&context.user, object),
        Review::SubjectAccess => {
            authorization::subject_access_review(authorizer, object, None).await?
        }
        Review::LocalSubjectAccess => {
            authorization::subject_access_review(authorizer, object, Some(&info.namespace)).await?
        }
        Review::SelfSubjectAccess => {
            authorization::self_subject_access_review(authorizer, &context.user, object).await?
        }
        Review::SelfSubjectRules => {
            authorization::self_subject_rules_review(authorizer, &context.user, object)?
        }
        Review::TokenRequest => {
            token_request::create(&server.tokens, &server.objects, context, object).await?
        }
    };
    codec::encode_answer(context, 201, &answer)
}

/// Who asks owns the question, as the writer of any object does. Two kinds of answers are objects
/// of their own.
fn own(context: &RequestContext, review: Review, object: &mut Value) -> Result<(), Status> {
    let options = WriteOptions::parse(context, "CreateOptions")?;
    if matches!(review, Review::SelfSubject | Review::SelfSubjectRules) {
        return Ok(());
    }
    let (group, kind) = review.kind();
    let schema = keelson_api::kind_type(group, "v1", kind).and_then(keelson_api::schema);
    let Some(schema) = schema else {
        return Ok(());
    };
    let request = Request {
        schema,
        manager: &options.field_manager,
        api_version: &format!("{group}/v1"),
        kind,
        subresource: &context.info.subresource,
        now: &time::now(),
        reset: &FieldSet::default(),
        versions: None,
    };
    apply::track_update(None, object, &request);
    Ok(())
}

/// Admission of a token request, which is a create of a subresource.
async fn admitted(
    server: &Arc<Server>,
    context: &RequestContext,
    object: Value,
) -> Result<Value, Status> {
    let info = &context.info;
    let mut attributes = Attributes {
        operation: Operation::Create,
        group: info.group.clone(),
        version: info.version.clone(),
        resource: info.resource.clone(),
        subresource: info.subresource.clone(),
        kind: "TokenRequest".to_owned(),
        namespace: info.namespace.clone(),
        name: info.name.clone(),
        object: Some(object),
        old_object: None,
        user: Arc::clone(&context.user),
        dry_run: context.dry_run(),
        options: serde_json::json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"}),
        warnings: context.warnings.clone(),
        rounds: Default::default(),
        annotations: context.annotations.clone(),
    };
    server.admission.admit(&mut attributes).await?;
    server.admission.validate(&attributes).await?;
    Ok(attributes.object.unwrap_or_default())
}
