//! The four kinds of patch. A patch is applied to the object in the request's version; the result
//! goes the way of an update.

use std::sync::Arc;

use bytes::Bytes;
use keelson_api::Schema;
use keelson_machinery::field::{FieldError, Path};
use keelson_machinery::status::Status;
use keelson_machinery::{cbor, decode, go, json_text, meta, patch};
use serde_json::{Map, Value};

use super::Call;
use super::codec;
use super::managed;
use super::options::{FieldValidation, WriteOptions};
use super::resources::{ResourceEntry, Resources};
use crate::request::Warnings;

const CUSTOM_TYPES: &str =
    "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";

const APPLY_CBOR: &str = "application/apply-patch+cbor";

pub(crate) struct Patch<'a> {
    entry: &'a ResourceEntry,
    subresource: &'a str,
    name: &'a str,
    kind: PatchKind,
    validation: FieldValidation,
    warnings: &'a Warnings,
    yaml_problem: YamlProblem,
    problems: Vec<String>,
    manager: String,
    force: bool,
    /// Of an apply: other managers may have spoken another version.
    forms: Vec<Arc<ResourceEntry>>,
}

pub(crate) enum PatchKind {
    Json(Value),
    Merge(Value),
    Strategic(Value),
    Apply(Value),
}

/// What only a strict decoder minds in the body of an apply.
type YamlProblem = Option<String>;

impl PatchKind {
    pub(crate) fn parse(
        call: &Call<'_>,
        options: &WriteOptions,
        body: &Bytes,
    ) -> Result<Self, Status> {
        codec::check_size(body)?;
        let media_type = media_type(call);
        let with_cbor = call.ctx.features.cbor_serving_and_storage;
        let custom = call.entry.custom && media_type == "application/strategic-merge-patch+json";
        let apply =
            media_type == "application/apply-patch+yaml" || with_cbor && media_type == APPLY_CBOR;
        if !apply && options.force.is_some() {
            return Err(options_error(
                "force",
                "may not be specified for non-apply patch",
            ));
        }
        let json = || {
            json_text::parse(body)
                .map_err(|err| Status::bad_request(format!("error decoding patch: {err}")))
        };
        match media_type.as_str() {
            "application/json-patch+json" => Ok(Self::Json(json()?)),
            "application/merge-patch+json" => Ok(Self::Merge(json()?)),
            "application/strategic-merge-patch+json" if !custom => json_text::parse(body)
                .map(Self::Strategic)
                .map_err(Status::bad_request),
            _ if apply => {
                if call
                    .ctx
                    .query()
                    .get("fieldManager")
                    .unwrap_or_default()
                    .is_empty()
                {
                    return Err(options_error("fieldManager", "is required for apply patch"));
                }
                Ok(Self::Apply(match media_type.as_str() {
                    APPLY_CBOR => applied_cbor(body)?,
                    _ => applied(body)?,
                }))
            }
            // Custom kinds are told what they can do, built-in ones are stopped by the router.
            other if call.entry.custom || other == "application/strategic-merge-patch+json" => {
                let cbor = if with_cbor {
                    ", application/apply-patch+cbor"
                } else {
                    ""
                };
                Err(Status::unsupported_media_type(format!(
                    "the body of the request was in an unknown format - accepted media types include: {CUSTOM_TYPES}{cbor}"
                )))
            }
            _ => Err(
                Status::unsupported_media_type("415: Unsupported Media Type")
                    .with_details("", "", ""),
            ),
        }
    }

    /// What a strict decoder minds in the patch itself.
    fn problems(&self, body: &Bytes) -> Vec<String> {
        let mut problems = match self {
            Self::Json(patch) => patch::json::problems(patch),
            _ => Vec::new(),
        };
        let duplicates = json_text::parse_strict(body).map(|(_, problems)| problems);
        problems.extend(duplicates.unwrap_or_default());
        problems
    }
}

fn options_error(field: &str, detail: &str) -> Status {
    let path = Path::new(field);
    let error = match field {
        "fieldManager" => FieldError::required(&path, detail),
        _ => FieldError::forbidden(&path, detail),
    };
    Status::invalid("meta.k8s.io", "PatchOptions", "", &vec![error])
}

impl<'a> Patch<'a> {
    pub(crate) fn parse(
        call: &'a Call<'a>,
        options: &WriteOptions,
        body: &Bytes,
        resources: &Resources,
    ) -> Result<Self, Status> {
        let kind = PatchKind::parse(call, options, body)?;
        let strict = options.field_validation != FieldValidation::Ignore;
        let applies = matches!(kind, PatchKind::Apply(_));
        Ok(Self {
            entry: &call.entry,
            subresource: call.subresource,
            name: call.name,
            yaml_problem: if strict && applies && media_type(call) != APPLY_CBOR {
                codec::yaml_problem(body)
            } else {
                None
            },
            problems: if strict && !applies {
                kind.problems(body)
            } else {
                Vec::new()
            },
            kind,
            validation: options.field_validation,
            warnings: &call.ctx.warnings,
            manager: options.field_manager.clone(),
            force: options.force == Some(true),
            forms: match applies {
                true => resources.forms(&call.entry.group, &call.entry.resource),
                false => Vec::new(),
            },
        })
    }

    pub(crate) fn is_apply(&self) -> bool {
        matches!(self.kind, PatchKind::Apply(_))
    }

    /// From and to the stored form.
    pub(crate) fn apply(&self, old: Option<&Value>) -> Result<Value, Status> {
        let entry = self.entry;
        let current = |old: &Value| -> Result<Value, Status> {
            let mut current = old.clone();
            entry.from_storage(&mut current)?;
            Ok(current)
        };
        let mut object = match (&self.kind, old) {
            (PatchKind::Apply(applied), old) => {
                self.server_side_apply(old.map(current).transpose()?, applied)?
            }
            (_, None) => return Err(Status::not_found(&entry.group, &entry.resource, self.name)),
            (kind, Some(old)) => {
                let mut object = current(old)?;
                let untouched = self.take_untouched(&mut object);
                let patched = mechanism(&entry.schema, kind, object)?;
                let whole = || mechanism(&entry.schema, kind, current(old)?);
                let mut object = self.decode(patched, &whole)?;
                meta::as_map(&mut object).extend(untouched);
                object
            }
        };
        codec::finish_object(entry, &mut object)?;
        super::check_name(&object, self.name)?;
        entry.to_storage(&mut object)?;
        Ok(object)
    }

    /// Takes out what the patch says nothing of: it was decoded when it was stored, and need not
    /// be again.
    fn take_untouched(&self, current: &mut Value) -> Map<String, Value> {
        let (PatchKind::Merge(Value::Object(patch)) | PatchKind::Strategic(Value::Object(patch))) =
            &self.kind
        else {
            return Map::new();
        };
        // Directives concern the whole object. Custom kinds may have other schemas by now.
        if self.entry.custom || patch.keys().any(|key| key.starts_with('$')) {
            return Map::new();
        }
        let stays = |key: &str| matches!(key, "apiVersion" | "kind") || patch.contains_key(key);
        let (stay, untouched) = std::mem::take(meta::as_map(current))
            .into_iter()
            .partition(|(key, _)| stays(key));
        *current = Value::Object(stay);
        untouched
    }

    /// What came of the patch must be an object of the kind; whatever it is that it is not, the
    /// patch is to blame. `whole` is the patched object with everything it has, for the words of
    /// an error.
    fn decode(
        &self,
        mut patched: Value,
        whole: &dyn Fn() -> Result<Value, Status>,
    ) -> Result<Value, Status> {
        let entry = self.entry;
        let strategic = matches!(self.kind, PatchKind::Strategic(_));
        if strategic {
            // Decoded into the kind's own type, which has no kind to be told.
            meta::set_type(&mut patched, &entry.api_version(), &entry.kind);
        }
        let blame = |problem: String| {
            let shown = match &self.kind {
                PatchKind::Strategic(patch) => go::plain(patch),
                _ => go::json(&whole().unwrap_or_default()),
            };
            let error = FieldError::invalid(&Path::new("patch"), shown, problem);
            Status::invalid("", "", "", &vec![error])
        };
        if entry.custom {
            if meta::kind(&patched).is_empty() {
                return Err(blame(codec::no_kind(go::json(&patched).as_bytes())));
            }
            codec::check_custom_type(entry, &patched)?;
        } else {
            codec::type_problem(entry, &patched).map_err(blame)?;
        }
        let mut decoded = decode::normalize(patched, &entry.schema).map_err(|err| {
            let problem = err.to_string();
            blame(if strategic {
                in_words_of_converter(&problem)
            } else {
                problem
            })
        })?;
        decoded.problems.splice(0..0, self.problems.iter().cloned());
        if decoded.problems.is_empty() {
            return Ok(decoded.object);
        }
        match self.validation {
            FieldValidation::Ignore => {}
            FieldValidation::Warn => decoded
                .problems
                .iter()
                .for_each(|problem| self.warnings.add(problem.as_str())),
            FieldValidation::Strict => {
                return Err(blame(decode::strict_error(&decoded.problems)));
            }
        }
        Ok(decoded.object)
    }

    fn server_side_apply(&self, current: Option<Value>, applied: &Value) -> Result<Value, Status> {
        let entry = self.entry;
        if current.is_none() && !meta::uid(applied).is_empty() {
            let uid = meta::uid(applied);
            return Err(Status::conflict(
                &entry.group,
                &entry.resource,
                self.name,
                format!(
                    "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                ),
            ));
        }
        let forms = managed::Forms {
            own: entry,
            all: &self.forms,
        };
        let merged = managed::apply(
            &forms,
            current.as_ref(),
            applied,
            &self.manager,
            self.subresource,
            self.force,
        )?;
        self.check_applied(applied)?;
        if let Some(problem) = &self.yaml_problem {
            match self.validation {
                FieldValidation::Ignore => {}
                FieldValidation::Warn => self.warnings.add(problem.as_str()),
                FieldValidation::Strict => {
                    return Err(Status::bad_request(format!(
                        "error strict decoding YAML: error converting YAML to JSON: {problem}"
                    )));
                }
            }
        }
        super::strict::value(entry, merged, FieldValidation::Ignore, self.warnings)
    }

    /// Unknown fields are no concern here: merging refuses them whatever the validation.
    fn check_applied(&self, applied: &Value) -> Result<(), Status> {
        let given = meta::name(applied);
        if !given.is_empty() && given != self.name {
            return Err(Status::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({})",
                self.name
            )));
        }
        Ok(())
    }
}

fn media_type(call: &Call<'_>) -> String {
    let header = call.ctx.header("content-type").unwrap_or_default();
    let media_type = header.split(';').next().unwrap_or_default();
    media_type.trim().to_ascii_lowercase()
}

/// Upstream calls it YAML whatever it is.
fn applied_cbor(body: &Bytes) -> Result<Value, Status> {
    cbor::decode_map(body)
        .map(Value::Object)
        .map_err(|problem| Status::bad_request(format!("error decoding YAML: {problem}")))
}

/// An applied configuration; no text at all is an empty one.
fn applied(body: &Bytes) -> Result<Value, Status> {
    let config = codec::yaml_tree(body)
        .map_err(|problem| Status::bad_request(format!("error decoding YAML: {problem}")))?;
    match config {
        Value::Object(_) => Ok(config),
        Value::Null => Ok(Value::Object(serde_json::Map::new())),
        other => Err(Status::bad_request(format!(
            "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            go::json_kind(&other)
        ))),
    }
}

/// A strategic merge ends in upstream's converter of trees, which has its own words for what
/// Go's JSON decoder says of a value of the wrong type.
fn in_words_of_converter(problem: &str) -> String {
    let Some((given, wanted)) = problem
        .strip_prefix("json: cannot unmarshal ")
        .and_then(|rest| rest.split_once(" into Go "))
        .and_then(|(given, rest)| Some((given, rest.rsplit_once(" of type ")?.1)))
    else {
        return problem.to_owned();
    };
    let from = match given.split_once(' ') {
        Some(("number", text)) if text.contains(['.', 'e', 'E']) => "float64",
        _ if given.starts_with("number") => "int64",
        _ => match given {
            "object" => "map[string]interface {}",
            "array" => "[]interface {}",
            other => other,
        },
    };
    let number = matches!(from, "int64" | "float64");
    match wanted {
        "string" if from == "int64" => format!("cannot convert {from} to string"),
        "int32" | "int64" if number => format!("cannot convert {from} to {wanted}"),
        "string" | "bool" | "int32" | "int64" | "float64" => format!("unrecognized type: {wanted}"),
        list if list.starts_with("[]") => format!("cannot restore slice from {from}"),
        map if map.starts_with("map[") => format!("cannot restore map from {from}"),
        _ => format!("cannot restore struct from: {from}"),
    }
}

/// The patched tree, before any schema looks at it.
pub(crate) fn mechanism(
    schema: &Schema,
    kind: &PatchKind,
    current: Value,
) -> Result<Value, Status> {
    let patched = match kind {
        PatchKind::Json(patch) => patch::json::apply(current, patch),
        PatchKind::Merge(patch) => patch::merge::apply(current, patch.clone()),
        PatchKind::Strategic(patch) => patch::strategic::apply(current, patch.clone(), schema),
        PatchKind::Apply(_) => {
            return Err(Status::internal("an applied configuration is no patch"));
        }
    };
    patched.map_err(|err| err.status())
}
