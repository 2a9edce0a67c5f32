//! Strict decoding through the schema, and what a client hears of what it finds.

use bytes::Bytes;
use keelson_machinery::decode::{self, DecodeError, Decoded};
use keelson_machinery::status::Status;
use serde_json::Value;

use super::options::FieldValidation;
use super::resources::ResourceEntry;
use crate::request::Warnings;

pub(crate) fn json(
    entry: &ResourceEntry,
    body: &Bytes,
    validation: FieldValidation,
    warnings: &Warnings,
) -> Result<Value, Status> {
    let decoded = decode::decode(body, &entry.schema).map_err(|err| refuse(entry, &err))?;
    report(entry, decoded, validation, warnings)
}

pub(crate) fn value(
    entry: &ResourceEntry,
    value: Value,
    validation: FieldValidation,
    warnings: &Warnings,
) -> Result<Value, Status> {
    let decoded = decode::normalize(value, &entry.schema).map_err(|err| refuse(entry, &err))?;
    report(entry, decoded, validation, warnings)
}

/// As [`value`], with what was found before there was a tree.
pub(crate) fn yaml(
    entry: &ResourceEntry,
    value: Value,
    problem: Option<String>,
    validation: FieldValidation,
    warnings: &Warnings,
) -> Result<Value, Status> {
    let mut decoded = decode::normalize(value, &entry.schema).map_err(|err| refuse(entry, &err))?;
    decoded.problems.splice(0..0, problem);
    report(entry, decoded, validation, warnings)
}

/// As [`value`], where the reader itself has found what a strict one minds.
pub(crate) fn cbor(
    entry: &ResourceEntry,
    read: Decoded,
    validation: FieldValidation,
    warnings: &Warnings,
) -> Result<Value, Status> {
    let object = match read.object {
        Value::Null => Value::Object(serde_json::Map::new()),
        object => object,
    };
    let mut decoded =
        decode::normalize(object, &entry.schema).map_err(|err| refuse(entry, &err))?;
    decoded.problems = read.problems;
    report(entry, decoded, validation, warnings)
}

fn report(
    entry: &ResourceEntry,
    mut decoded: Decoded,
    validation: FieldValidation,
    warnings: &Warnings,
) -> Result<Value, Status> {
    if entry.custom {
        // Stable: the metadata of embedded objects is looked at after everything else.
        decoded
            .problems
            .sort_by_key(|problem| problem.contains(".metadata."));
    }
    if !decoded.problems.is_empty() {
        match validation {
            FieldValidation::Ignore => {}
            FieldValidation::Warn => decoded
                .problems
                .iter()
                .for_each(|problem| warnings.add(problem.as_str())),
            FieldValidation::Strict => {
                let error = decode::strict_error(&decoded.problems);
                return Err(Status::bad_request(decode::cannot_handle(
                    &entry.kind,
                    &entry.version,
                    &error,
                )));
            }
        }
    }
    Ok(decoded.object)
}

/// Of custom objects upstream decodes the metadata apart, and what is inside of the object is
/// looked at first.
fn refuse(entry: &ResourceEntry, err: &DecodeError) -> Status {
    match err {
        DecodeError::Syntax(message) => Status::bad_request(message),
        DecodeError::Type(message) if entry.custom => {
            let message = message
                .replace(
                    "Go struct field ObjectMeta.metadata.",
                    "Go struct field ObjectMeta.",
                )
                .replace(
                    "Go struct field .metadata of type v1.ObjectMeta",
                    "Go value of type v1.ObjectMeta",
                );
            Status::bad_request(decode::cannot_handle(&entry.kind, &entry.version, &message))
        }
        DecodeError::Type(message) => {
            Status::bad_request(decode::cannot_handle(&entry.kind, &entry.version, message))
        }
    }
}
