//! `serviceaccounts/token`: issues a bound token.

use std::sync::Arc;

use keelson_machinery::field::{FieldError, Path};
use keelson_machinery::status::Status;
use keelson_machinery::{meta, names, time};
use serde_json::{Value, json};

use super::token::{Claims, Private, Reference, TokenIssuer};
use crate::objects::Objects;
use crate::request::RequestContext;

const DEFAULT_SECONDS: i64 = 3600;
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;
/// The lifetime that admission writes into pods, told from every other by its last seven seconds.
const POD_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 86_400;

/// Fills in what the request does not say.
pub(crate) fn default(request: &mut Value) {
    let seconds = &mut request["spec"]["expirationSeconds"];
    if seconds.is_null() {
        *seconds = json!(DEFAULT_SECONDS);
    }
}

/// Answers a TokenRequest for the service account in the path.
pub(crate) async fn create(
    issuer: &TokenIssuer,
    objects: &Arc<dyn Objects>,
    context: &RequestContext,
    mut request: Value,
) -> Result<Value, Status> {
    let (namespace, name) = (context.info.namespace.as_str(), context.info.name.as_str());
    let account = objects
        .read("", "serviceaccounts", namespace, name)
        .await?
        .ok_or_else(|| Status::not_found("", "serviceaccounts", name))?;
    for (field, given, expected) in [
        ("name", meta::name(&request), name),
        ("namespace", meta::namespace(&request), namespace),
    ] {
        if !given.is_empty() && given != expected {
            return Err(Status::bad_request(format!(
                "metadata.{field} does not match the URL: expected {expected:?}, got {given:?}"
            )));
        }
    }
    let uid = meta::uid(&request);
    if !uid.is_empty() && uid != meta::uid(&account) {
        return Err(Status::conflict(
            "authentication.k8s.io",
            "TokenRequest",
            name,
            format!(
                "the UID in the token request ({uid}) does not match the UID of the service account ({})",
                meta::uid(&account)
            ),
        ));
    }
    let seconds = validate(&request)?;
    let mut audiences: Vec<String> = request["spec"]["audiences"]
        .as_array()
        .map(|all| {
            all.iter()
                .filter_map(|a| a.as_str().map(ToOwned::to_owned))
                .collect()
        })
        .unwrap_or_default();
    if audiences.is_empty() {
        audiences = issuer.audiences().to_vec();
    }
    let mut private = Private {
        namespace: namespace.to_owned(),
        serviceaccount: Reference {
            name: name.to_owned(),
            uid: meta::uid(&account).to_owned(),
        },
        ..Private::default()
    };
    let bound = &request["spec"]["boundObjectRef"];
    if bound.is_object() {
        bind(&**objects, namespace, name, bound, &mut private).await?;
    }
    let now = time::now_unix();
    // What pods get by default lives on for a year: clients that read their token once and never
    // again are not locked out, only noted.
    let own_audience = audiences.iter().all(|a| issuer.audiences().contains(a));
    let extended = seconds == POD_SECONDS && private.pod.is_some() && own_audience;
    if extended {
        private.warnafter = Some(now + seconds);
    }
    let claims = Claims {
        aud: audiences.clone(),
        exp: now + if extended { EXTENDED_SECONDS } else { seconds },
        iat: now,
        iss: issuer.issuer().to_owned(),
        jti: names::new_uid(),
        private,
        nbf: now,
        sub: format!("system:serviceaccount:{namespace}:{name}"),
    };
    let token = issuer
        .sign(&claims)
        .map_err(|e| Status::internal(format!("{e}")))?;
    meta::set_type(&mut request, "authentication.k8s.io/v1", "TokenRequest");
    meta::set_name(&mut request, name);
    meta::set_namespace(&mut request, namespace);
    request["metadata"]["uid"] = json!(meta::uid(&account));
    if request["spec"]["boundObjectRef"].is_null() {
        // Upstream says that there is none.
        request["spec"]["boundObjectRef"] = Value::Null;
    }
    meta::set_creation_timestamp(&mut request, &time::format_unix(now));
    request["spec"]["audiences"] = json!(audiences);
    request["spec"]["expirationSeconds"] = json!(seconds);
    request["status"] =
        json!({"token": token, "expirationTimestamp": time::format_unix(now + seconds)});
    Ok(request)
}

fn validate(request: &Value) -> Result<i64, Status> {
    let spec = &request["spec"];
    let path = Path::new("spec").child("expirationSeconds");
    let seconds = spec["expirationSeconds"]
        .as_i64()
        .unwrap_or(DEFAULT_SECONDS);
    let detail = if seconds < MIN_SECONDS {
        "may not specify a duration less than 10 minutes"
    } else if seconds > MAX_SECONDS {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(seconds);
    };
    let errors = vec![FieldError::invalid(&path, seconds, detail)];
    Err(Status::invalid(
        "authentication.k8s.io",
        "TokenRequest",
        "",
        &errors,
    ))
}

async fn bind(
    objects: &dyn Objects,
    namespace: &str,
    account: &str,
    bound: &Value,
    private: &mut Private,
) -> Result<(), Status> {
    let text = |key: &str| bound[key].as_str().unwrap_or_default();
    let (api_version, kind, name, uid) =
        (text("apiVersion"), text("kind"), text("name"), text("uid"));
    let (resource, scope) = match (api_version, kind) {
        ("v1", "Pod") => ("pods", namespace),
        ("v1", "Secret") => ("secrets", namespace),
        ("v1", "Node") => ("nodes", ""),
        _ => {
            // The core group has an empty name in front of its version.
            let group_version = match api_version.contains('/') {
                true => api_version.to_owned(),
                false => format!("/{api_version}"),
            };
            return Err(Status::bad_request(format!(
                "cannot bind token to object of type {group_version}, Kind={kind}"
            )));
        }
    };
    let object = objects
        .read("", resource, scope, name)
        .await?
        .ok_or_else(|| Status::not_found("", resource, name))?;
    if !uid.is_empty() && uid != meta::uid(&object) {
        return Err(Status::conflict(
            "",
            resource,
            name,
            format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            ),
        ));
    }
    let reference = Reference {
        name: name.to_owned(),
        uid: meta::uid(&object).to_owned(),
    };
    match kind {
        "Pod" => {
            if object["spec"]["serviceAccountName"]
                .as_str()
                .unwrap_or_default()
                != account
            {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                )));
            }
            if let Some(node) = object["spec"]["nodeName"]
                .as_str()
                .filter(|n| !n.is_empty())
            {
                let uid = objects
                    .get("", "nodes", "", node)
                    .map(|n| meta::uid(&n).to_owned())
                    .unwrap_or_default();
                private.node = Some(Reference {
                    name: node.to_owned(),
                    uid,
                });
            }
            private.pod = Some(reference);
        }
        "Secret" => private.secret = Some(reference),
        _ => private.node = Some(reference),
    }
    Ok(())
}
