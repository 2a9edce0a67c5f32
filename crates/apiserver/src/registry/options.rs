//! The options of a request, from its query (and, for deletes, its body), checked as upstream
//! checks them.

use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::status::Status;
use keelson_machinery::{go, meta};
use serde_json::{Value, json};

use crate::admission::Operation;
use crate::request::{Query, RequestContext};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// CreateOptions, UpdateOptions and PatchOptions, which differ by one field.
#[derive(Debug, Clone)]
pub(crate) struct WriteOptions {
    pub(crate) dry_run: bool,
    /// Drawn from the client's name when it gives none.
    pub(crate) field_manager: String,
    /// What of the text the client itself gave, for admission.
    pub(crate) given: Vec<(&'static str, String)>,
    pub(crate) field_validation: FieldValidation,
    pub(crate) force: Option<bool>,
}

impl WriteOptions {
    pub(crate) fn parse(ctx: &RequestContext, kind: &'static str) -> Result<Self, Status> {
        let query = ctx.query();
        let mut errors = ErrorList::new();
        let manager = query.get("fieldManager").unwrap_or_default();
        if manager.len() > 128 {
            errors.push(FieldError::too_long(&Path::new("fieldManager"), 128));
        }
        let mut strange = manager
            .char_indices()
            .filter(|(_, c)| !go::is_printable(*c));
        if let Some((at, c)) = strange.next() {
            errors.push(FieldError::invalid(
                &Path::new("fieldManager"),
                manager,
                format!(
                    "invalid character U+{:04X} (at position {at})",
                    u32::from(c)
                ),
            ));
        }
        let dry_run = dry_run(query.all("dryRun").map(str::to_owned), &mut errors);
        let given = query.get("fieldValidation").unwrap_or_default();
        let field_validation = match given {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                let allowed = ["", "Ignore", "Strict", "Warn"];
                errors.push(FieldError::not_supported(
                    &Path::new("fieldValidation"),
                    other,
                    &allowed,
                ));
                FieldValidation::Warn
            }
        };
        if !errors.is_empty() {
            return Err(Status::invalid("meta.k8s.io", kind, "", &errors));
        }
        Ok(Self {
            dry_run,
            given: ["fieldManager", "fieldValidation"]
                .into_iter()
                .filter_map(|key| Some((key, query.get(key)?.to_owned())))
                .filter(|(_, value)| !value.is_empty())
                .collect(),
            field_manager: if manager.is_empty() {
                manager_from_agent(ctx)
            } else {
                manager.to_owned()
            },
            field_validation,
            force: query.get("force").map(|_| query.flag("force")),
        })
    }

    /// What admission is shown: a patch is an update, or the creation of what was not there.
    pub(crate) fn to_json(&self, operation: Operation) -> Value {
        let kind = match operation {
            Operation::Update => "UpdateOptions",
            Operation::Delete => "DeleteOptions",
            Operation::Create | Operation::Connect => "CreateOptions",
        };
        let mut out = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        for (key, value) in &self.given {
            out[*key] = json!(value);
        }
        if self.dry_run {
            out["dryRun"] = json!(["All"]);
        }
        out
    }
}

/// The program's name from `User-Agent: name/version (…)`, printable and bounded.
fn manager_from_agent(ctx: &RequestContext) -> String {
    let agent = ctx.header("user-agent").unwrap_or_default();
    let name = agent.split('/').next().unwrap_or_default();
    let name: String = name.chars().filter(|c| !c.is_control()).take(128).collect();
    if name.is_empty() {
        "unknown".to_owned()
    } else {
        name
    }
}

fn dry_run(values: impl Iterator<Item = String>, errors: &mut ErrorList) -> bool {
    let values: Vec<String> = values.collect();
    if values.iter().any(|value| value != "All") {
        errors.push(FieldError::not_supported(
            &Path::new("dryRun"),
            json!(values),
            &["All"],
        ));
    }
    values.iter().any(|value| value == "All")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Propagation {
    Orphan,
    Background,
    Foreground,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct DeleteOptions {
    pub(crate) dry_run: bool,
    pub(crate) grace_period_seconds: Option<i64>,
    pub(crate) propagation: Option<Propagation>,
    pub(crate) orphan_dependents: Option<bool>,
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    /// As given, for admission.
    pub(crate) raw: Value,
    pub(crate) of_collection: bool,
}

impl DeleteOptions {
    /// A body wins over the query, as upstream has it.
    pub(crate) fn parse(query: &Query, body: Option<Value>) -> Result<Self, Status> {
        let raw = match body {
            Some(body) => {
                let kind = body
                    .get("kind")
                    .and_then(Value::as_str)
                    .unwrap_or("DeleteOptions");
                if kind != "DeleteOptions" {
                    let given = body.get("apiVersion").and_then(Value::as_str);
                    return Err(Status::bad_request(format!(
                        "no kind {} is registered for version {} in scheme \"k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:27\"",
                        go::quote(kind),
                        go::quote(given.unwrap_or("meta.k8s.io/v1"))
                    )));
                }
                typed(&body, "preconditions", Value::as_object, "v1.Preconditions")?;
                let mut body = body;
                meta::set_type(&mut body, "meta.k8s.io/v1", "DeleteOptions");
                body
            }
            None => from_query(query)?,
        };
        let mut errors = ErrorList::new();
        let listed = raw
            .get("dryRun")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let dry_run = dry_run(
            listed.iter().filter_map(Value::as_str).map(str::to_owned),
            &mut errors,
        );
        let orphan_dependents = typed(&raw, "orphanDependents", Value::as_bool, "bool")?;
        let policy = typed(
            &raw,
            "propagationPolicy",
            |v| v.as_str().map(str::to_owned),
            "DeletionPropagation",
        )?;
        let propagation = match policy.as_deref() {
            None => None,
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(other) => {
                let allowed = ["Foreground", "Background", "Orphan", "nil"];
                errors.push(FieldError::not_supported(
                    &Path::new("propagationPolicy"),
                    other,
                    &allowed,
                ));
                None
            }
        };
        if policy.is_some() && orphan_dependents.is_some() {
            errors.push(FieldError::invalid(
                &Path::new("propagationPolicy"),
                policy.clone().unwrap_or_default(),
                "orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        if !errors.is_empty() {
            return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &errors));
        }
        let precondition = |name: &str| {
            raw.get("preconditions")
                .and_then(|p| p.get(name))
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        Ok(Self {
            dry_run,
            // Negative periods are treated as the shortest one.
            grace_period_seconds: typed(&raw, "gracePeriodSeconds", Value::as_i64, "int64")?
                .map(|s| if s < 0 { 1 } else { s }),
            propagation,
            orphan_dependents,
            uid: precondition("uid"),
            resource_version: precondition("resourceVersion"),
            raw,
            of_collection: false,
        })
    }
}

fn typed<'v, T>(
    raw: &'v Value,
    name: &str,
    read: impl Fn(&'v Value) -> Option<T>,
    kind: &str,
) -> Result<Option<T>, Status> {
    match raw.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(Status::bad_request(format!(
                "json: cannot unmarshal {} into Go struct field DeleteOptions.{name} of type {kind}",
                go::json_kind(value)
            ))),
        },
    }
}

fn from_query(query: &Query) -> Result<Value, Status> {
    let mut raw = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
    let dry_run: Vec<&str> = query.all("dryRun").collect();
    if !dry_run.is_empty() {
        raw["dryRun"] = json!(dry_run);
    }
    if let Some(seconds) = query.get("gracePeriodSeconds").filter(|s| !s.is_empty()) {
        let seconds: i64 = seconds.parse().map_err(|_| invalid_number(seconds))?;
        raw["gracePeriodSeconds"] = json!(seconds);
    }
    if let Some(policy) = query.get("propagationPolicy").filter(|s| !s.is_empty()) {
        raw["propagationPolicy"] = json!(policy);
    }
    if query.get("orphanDependents").is_some() {
        raw["orphanDependents"] = json!(query.flag("orphanDependents"));
    }
    Ok(raw)
}

fn invalid_number(text: &str) -> Status {
    Status::bad_request(format!(
        "strconv.ParseInt: parsing {text:?}: invalid syntax"
    ))
}

/// The resourceVersion of a get; 0 when unset.
pub(crate) fn revision_of_get(ctx: &RequestContext) -> Result<u64, Status> {
    let text = ctx.query().get("resourceVersion").unwrap_or_default();
    parse_revision(text).map_err(Status::unclassified)
}

fn parse_revision(text: &str) -> Result<u64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| {
        let value = go::quote(text);
        format!(
            "resourceVersion: Invalid value: {value}: strconv.ParseUint: parsing {value}: invalid syntax"
        )
    })
}

/// ListOptions of a list, watch or deletecollection.
#[derive(Debug, Clone, Default)]
pub(crate) struct ListOptions {
    pub(crate) label_selector: String,
    pub(crate) field_selector: String,
    pub(crate) resource_version: String,
    pub(crate) resource_version_match: String,
    pub(crate) limit: usize,
    pub(crate) continue_token: String,
    pub(crate) timeout_seconds: Option<u64>,
    pub(crate) allow_watch_bookmarks: bool,
    pub(crate) send_initial_events: Option<bool>,
    pub(crate) watch: bool,
}

impl ListOptions {
    pub(crate) fn parse(ctx: &RequestContext) -> Result<Self, Status> {
        let query = ctx.query();
        let text = |name| query.get(name).unwrap_or_default().to_owned();
        let number = |name| match query.get(name).filter(|v| !v.is_empty()) {
            None => Ok(None),
            Some(value) => value
                .parse::<i64>()
                .map(Some)
                .map_err(|_| invalid_number(value)),
        };
        let options = Self {
            label_selector: text("labelSelector"),
            field_selector: text("fieldSelector"),
            resource_version: text("resourceVersion"),
            resource_version_match: text("resourceVersionMatch"),
            limit: number("limit")?
                .and_then(|n| usize::try_from(n).ok())
                .unwrap_or(0),
            continue_token: text("continue"),
            timeout_seconds: number("timeoutSeconds")?
                .and_then(|n| u64::try_from(n).ok())
                .filter(|n| *n > 0),
            allow_watch_bookmarks: query.flag("allowWatchBookmarks"),
            send_initial_events: query
                .get("sendInitialEvents")
                .map(|_| query.flag("sendInitialEvents")),
            watch: ctx.info.verb == "watch",
        };
        let errors = options.validate();
        if errors.is_empty() {
            Ok(options)
        } else {
            Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors))
        }
    }

    /// 0 when unset.
    pub(crate) fn revision(&self) -> Result<u64, Status> {
        parse_revision(&self.resource_version).map_err(|message| {
            // A watch hears of it by an error that upstream gives no reason.
            if self.watch {
                Status::unclassified(message)
            } else {
                Status::bad_request(format!("invalid resource version: {message}"))
            }
        })
    }

    fn validate(&self) -> ErrorList {
        let mut errors = ErrorList::new();
        let version_match = Path::new("resourceVersionMatch");
        let set = !self.resource_version_match.is_empty();
        let initial = Path::new("sendInitialEvents");
        if self.watch {
            if self.send_initial_events.is_some() {
                if self.resource_version_match != "NotOlderThan" {
                    errors.push(FieldError::forbidden(
                        &version_match,
                        "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                    ));
                }
                if set && self.resource_version_match != "NotOlderThan" {
                    errors.push(FieldError::not_supported(
                        &version_match,
                        self.resource_version_match.as_str(),
                        &["NotOlderThan"],
                    ));
                }
                if !self.continue_token.is_empty() {
                    errors.push(FieldError::forbidden(
                        &version_match,
                        "resourceVersionMatch is forbidden when continue is provided",
                    ));
                }
            } else if set {
                errors.push(FieldError::forbidden(
                    &version_match,
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ));
            }
            return errors;
        }
        if self.send_initial_events.is_some() {
            errors.push(FieldError::forbidden(
                &initial,
                "sendInitialEvents is forbidden for list",
            ));
        }
        if !set {
            return errors;
        }
        if self.resource_version.is_empty() {
            errors.push(FieldError::forbidden(
                &version_match,
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if !self.continue_token.is_empty() {
            errors.push(FieldError::forbidden(
                &version_match,
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
        match self.resource_version_match.as_str() {
            "Exact" if self.resource_version == "0" => errors.push(FieldError::forbidden(
                &version_match,
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            )),
            "Exact" | "NotOlderThan" => {}
            other => {
                errors.push(FieldError::not_supported(
                    &version_match,
                    other,
                    &["Exact", "NotOlderThan", ""],
                ));
            }
        }
        errors
    }
}
