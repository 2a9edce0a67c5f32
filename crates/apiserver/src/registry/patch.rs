//! The four kinds of patch. A patch is applied to the object in the request's version; the result
//! goes the way of an update.

use bytes::Bytes;
use keelson_api::Schema;
use keelson_machinery::status::Status;
use keelson_machinery::{meta, patch};
use serde_json::Value;

use super::Call;
use super::codec;
use super::managed;
use super::options::{FieldValidation, WriteOptions};
use super::resources::ResourceEntry;
use crate::request::Warnings;

const TYPES: &str = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml";

pub(crate) struct Patch<'a> {
    entry: &'a ResourceEntry,
    subresource: &'a str,
    name: &'a str,
    kind: PatchKind,
    validation: FieldValidation,
    warnings: &'a Warnings,
    yaml_problem: YamlProblem,
    manager: String,
    force: bool,
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
        let header = call.ctx.header("content-type").unwrap_or_default();
        let media_type = header
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        let custom = call.entry.custom && media_type == "application/strategic-merge-patch+json";
        let apply = media_type == "application/apply-patch+yaml";
        if !apply && options.force.is_some() {
            return Err(options_error(
                "force",
                "may not be specified for non-apply patch",
            ));
        }
        let json = || -> Result<Value, Status> {
            serde_json::from_slice(body)
                .map_err(|err| Status::bad_request(format!("error decoding patch: {err}")))
        };
        match media_type.as_str() {
            "application/json-patch+json" => Ok(Self::Json(json()?)),
            "application/merge-patch+json" => Ok(Self::Merge(json()?)),
            "application/strategic-merge-patch+json" if !custom => Ok(Self::Strategic(json()?)),
            "application/apply-patch+yaml" => {
                if call
                    .ctx
                    .query()
                    .get("fieldManager")
                    .unwrap_or_default()
                    .is_empty()
                {
                    return Err(options_error("fieldManager", "is required for apply patch"));
                }
                Ok(Self::Apply(codec::yaml(body)?))
            }
            _ => Err(Status::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: {TYPES}"
            ))),
        }
    }
}

fn options_error(field: &str, detail: &str) -> Status {
    use keelson_machinery::field::{FieldError, Path};
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
    ) -> Result<Self, Status> {
        Ok(Self {
            entry: &call.entry,
            subresource: call.subresource,
            name: call.name,
            kind: PatchKind::parse(call, options, body)?,
            yaml_problem: match options.field_validation {
                FieldValidation::Ignore => None,
                _ => codec::yaml_problem(body),
            },
            validation: options.field_validation,
            warnings: &call.ctx.warnings,
            manager: options.field_manager.clone(),
            force: options.force == Some(true),
        })
    }

    pub(crate) fn is_apply(&self) -> bool {
        matches!(self.kind, PatchKind::Apply(_))
    }

    /// From and to the stored form.
    pub(crate) fn apply(&self, old: Option<&Value>) -> Result<Value, Status> {
        let entry = self.entry;
        let current = match old {
            Some(old) => {
                let mut current = old.clone();
                entry.from_storage(&mut current)?;
                Some(current)
            }
            None => None,
        };
        let mut object = match (&self.kind, current) {
            (PatchKind::Apply(applied), current) => self.server_side_apply(current, applied)?,
            (_, None) => return Err(Status::not_found(&entry.group, &entry.resource, self.name)),
            (kind, Some(current)) => {
                let patched = mechanism(&entry.schema, kind, &current)?;
                super::strict::value(entry, patched, self.validation, self.warnings)?
            }
        };
        codec::finish_object(entry, &mut object)?;
        if meta::name(&object).is_empty() {
            meta::set_name(&mut object, self.name);
        }
        entry.to_storage(&mut object)?;
        Ok(object)
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
        self.check_applied(applied)?;
        let merged = managed::apply(
            entry,
            current.as_ref(),
            applied,
            &self.manager,
            self.subresource,
            self.force,
        )?;
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
        if !applied.is_object() {
            return Err(Status::bad_request(
                "error decoding YAML: an applied configuration must be an object",
            ));
        }
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

/// The patched tree, before any schema looks at it.
pub(crate) fn mechanism(
    schema: &Schema,
    kind: &PatchKind,
    current: &Value,
) -> Result<Value, Status> {
    let patched = match kind {
        PatchKind::Json(patch) => patch::json::apply(current.clone(), patch),
        PatchKind::Merge(patch) => patch::merge::apply(current.clone(), patch.clone()),
        PatchKind::Strategic(patch) => {
            patch::strategic::apply(current.clone(), patch.clone(), schema)
        }
        PatchKind::Apply(_) => {
            return Err(Status::internal("an applied configuration is no patch"));
        }
    };
    patched.map_err(|err| err.status())
}
