//! Between bytes and objects: request bodies in their encodings, the stored form, and the
//! place in it where the store stamps the resourceVersion. Adding an encoding is adding it here.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use keelson_api::Schema;
use keelson_machinery::cbor::{self, CborError};
use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::status::Status;
use keelson_machinery::{decode, default, go, json_text, meta, protobuf};
use keelson_store::{Revision, Value as StoreValue};
use serde_json::Value;

use super::negotiate::{Encoding, Offered};
use super::options::FieldValidation;
use super::resources::ResourceEntry;
use crate::request::{RequestContext, Response, Warnings};

/// Bodies larger than this are refused before they are decoded.
pub(crate) const BODY_LIMIT: usize = 3 << 20;

/// A request's body as a tree, before any schema is looked at.
pub(crate) fn body_value(body: &Bytes, encoding: Encoding) -> Result<Value, Status> {
    body_value_as(body, encoding, None)
}

/// The same where the type is known, which tells bytes from texts in CBOR.
pub(crate) fn body_value_as(
    body: &Bytes,
    encoding: Encoding,
    schema: Option<&Schema>,
) -> Result<Value, Status> {
    check_size(body)?;
    match encoding {
        Encoding::Json => {
            let value = json_text::parse(body).map_err(json_error)?;
            check_envelope(&value)?;
            Ok(value)
        }
        Encoding::Yaml => yaml(body),
        Encoding::Protobuf => protobuf::decode(body, protobuf_type)
            .map_err(|err| Status::bad_request(err.to_string())),
        Encoding::Cbor => cbor::decode(body, schema)
            .map(|decoded| decoded.object)
            .map_err(|err| cbor_error(&err)),
    }
}

fn cbor_error(err: &CborError) -> Status {
    Status::bad_request(match err {
        CborError::Malformed(problem) => {
            format!("unable to determine group/version/kind: {problem}")
        }
        CborError::Value(problem) => problem.clone(),
    })
}

/// The message of a type as clients name it. A few types of meta/v1 go by any group's version.
fn protobuf_type(api_version: &str, kind: &str) -> Option<&'static str> {
    match kind {
        "DeleteOptions" => Some("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"),
        "Status" => Some("io.k8s.apimachinery.pkg.apis.meta.v1.Status"),
        "APIVersions" => Some("io.k8s.apimachinery.pkg.apis.meta.v1.APIVersions"),
        "APIResourceList" => Some("io.k8s.apimachinery.pkg.apis.meta.v1.APIResourceList"),
        "PartialObjectMetadata" => {
            Some("io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata")
        }
        "PartialObjectMetadataList" => {
            Some("io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadataList")
        }
        _ => {
            let (group, version) = meta::split_api_version(api_version);
            keelson_api::kind_type(group, version, kind)
        }
    }
}

/// The encoding of a media type, when objects come in it.
pub(crate) fn encoding_of(media_type: &str) -> Option<Encoding> {
    Encoding::of(media_type, Offered::ALL)
}

/// What a client sent, for the audit log: an object or a patch as it came; nothing when it cannot
/// be read.
pub(crate) fn sent_object(ctx: &RequestContext, body: &Bytes) -> Option<Value> {
    if body.is_empty() {
        return None;
    }
    let media_type = ctx.header("content-type").unwrap_or_default();
    if media_type.contains("patch+cbor") {
        return cbor::decode_map(body).ok().map(Value::Object);
    }
    if media_type.contains("patch+") {
        return yaml(body).ok();
    }
    body_value(body, super::negotiate::input(ctx, true).ok()?).ok()
}

/// An object, list, Status or partial object with its envelope.
pub(crate) fn to_protobuf(value: &Value) -> Result<Bytes, Status> {
    let (api_version, kind) = (meta::api_version(value), meta::kind(value));
    let type_name = protobuf_type(api_version, kind).ok_or_else(|| {
        Status::not_acceptable(format!("{kind} in {api_version} has no protobuf form"))
    })?;
    protobuf::encode(value, type_name)
        .map(Bytes::from)
        .map_err(Status::internal)
}

/// The same in CBOR; what no built-in type describes is sent as it is.
pub(crate) fn to_cbor(value: &Value) -> Bytes {
    let schema =
        protobuf_type(meta::api_version(value), meta::kind(value)).and_then(keelson_api::schema);
    cbor::encode(value, schema).into()
}

pub(crate) fn check_size(body: &Bytes) -> Result<(), Status> {
    if body.len() > BODY_LIMIT {
        return Err(Status::request_entity_too_large(format!(
            "limit is {BODY_LIMIT}"
        )));
    }
    Ok(())
}

/// Before the type of an object is known, upstream looks for its version and kind alone.
pub(crate) fn json_error(message: impl std::fmt::Display) -> Status {
    Status::bad_request(format!(
        "couldn't get version/kind; json parse error: {message}"
    ))
}

/// Go's anonymous struct for version and kind, as it prints its type.
const ENVELOPE: &str = r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;

fn check_envelope(value: &Value) -> Result<(), Status> {
    let kind = go::json_kind(value);
    let Some(fields) = value.as_object() else {
        return match value {
            Value::Null => Ok(()),
            _ => Err(json_error(format!(
                "json: cannot unmarshal {kind} into Go value of type {ENVELOPE}"
            ))),
        };
    };
    for name in ["apiVersion", "kind"] {
        match fields.get(name) {
            None | Some(Value::Null | Value::String(_)) => {}
            Some(other) => {
                return Err(json_error(format!(
                    "json: cannot unmarshal {} into Go struct field .{name} of type string",
                    go::json_kind(other)
                )));
            }
        }
    }
    let api_version = meta::api_version(value);
    if api_version.matches('/').count() > 1 {
        return Err(Status::bad_request(format!(
            "unexpected GroupVersion string: {api_version}"
        )));
    }
    Ok(())
}

/// Upstream's words for a body whose type cannot be told, with its beginning.
fn unrecognized(entry: &ResourceEntry, body: &[u8], status: &Status) -> Status {
    const SHOWN: usize = 30;
    let shown = &body[..body.len().min(SHOWN)];
    let more = if body.len() > SHOWN { " ..." } else { "" };
    let summary = match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(shown)),
        Some(_) => {
            let hex: String = shown.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{hex}{more}")
        }
    };
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): {} ({summary})",
        entry.kind, status.message
    ))
}

pub(crate) fn yaml(body: &[u8]) -> Result<Value, Status> {
    let value = yaml_tree(body).map_err(Status::bad_request)?;
    check_envelope(&value)?;
    Ok(value)
}

/// A YAML document as JSON has it; the error is one line.
pub(crate) fn yaml_tree(body: &[u8]) -> Result<Value, String> {
    // Most YAML that programs send is JSON, which is read many times faster as what it is.
    if let Some((value, _)) = as_json(body) {
        return Ok(integral_floats(value));
    }
    let text = std::str::from_utf8(body).map_err(|err| format!("yaml: {err}"))?;
    let options = serde_saphyr::options! {
        legacy_octal_numbers: true,
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
    };
    let value = serde_saphyr::from_str_with_options(text, options).map_err(|err| {
        let text = err.without_snippet().to_string();
        let line = text.lines().next().unwrap_or_default();
        format!("error converting YAML to JSON: yaml: {line}")
    })?;
    Ok(integral_floats(value))
}

/// A YAML body that is a JSON object, and its repeated keys.
fn as_json(body: &[u8]) -> Option<(Value, Vec<String>)> {
    let looks_like_it = body.trim_ascii_start().starts_with(b"{");
    (looks_like_it && std::str::from_utf8(body).is_ok())
        .then(|| json_text::parse_strict(body).ok())
        .flatten()
}

/// What a strict decoder says of a YAML body that decodes: its first repeated key.
pub(crate) fn yaml_problem(body: &[u8]) -> Option<String> {
    if as_json(body).is_some_and(|(_, repeated)| repeated.is_empty()) {
        return None;
    }
    let text = std::str::from_utf8(body).ok()?;
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let error = serde_saphyr::from_str_with_options::<Value>(text, options).err()?;
    let serde_saphyr::Error::DuplicateMappingKey { key, location } = error.without_snippet() else {
        return None;
    };
    Some(format!(
        "yaml: unmarshal errors:\n  line {}: key {:?} already set in map",
        location.line(),
        key.as_deref().unwrap_or_default()
    ))
}

/// YAML's `1e3` is a number like any other; JSON integers are what the schema expects.
fn integral_floats(value: Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 9e15 => {
                Value::from(float as i64)
            }
            _ => Value::Number(number),
        },
        Value::Array(items) => items.into_iter().map(integral_floats).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(k, v)| (k, integral_floats(v)))
            .collect(),
        other => other,
    }
}

/// Decodes an object of this entry: strict as asked, its type checked against the path, defaults
/// filled. The result is in the entry's version.
pub(crate) fn decode_object(
    entry: &ResourceEntry,
    body: &Bytes,
    encoding: Encoding,
    validation: FieldValidation,
    warnings: &Warnings,
) -> Result<Value, Status> {
    check_size(body)?;
    if entry.custom {
        check_custom_envelope(entry, body, encoding)?;
    }
    let mut value = match encoding {
        Encoding::Json => {
            super::strict::json(entry, body, validation, warnings).or_else(|err| {
                // Only a body that is refused is looked at twice.
                body_value(body, encoding).map_err(|err| unrecognized(entry, body, &err))?;
                Err(err)
            })?
        }
        Encoding::Yaml => {
            let value =
                body_value(body, encoding).map_err(|err| unrecognized(entry, body, &err))?;
            super::strict::yaml(entry, value, yaml_problem(body), validation, warnings)?
        }
        Encoding::Protobuf => {
            let value =
                body_value(body, encoding).map_err(|err| unrecognized(entry, body, &err))?;
            super::strict::value(entry, value, validation, warnings)?
        }
        Encoding::Cbor => {
            let schema = (!entry.custom).then_some(&*entry.schema);
            let decoded = cbor::decode(body, schema).map_err(|err| match err {
                CborError::Malformed(_) => unrecognized(entry, body, &cbor_error(&err)),
                CborError::Value(problem) => Status::bad_request(decode::cannot_handle(
                    &entry.kind,
                    &entry.version,
                    &problem,
                )),
            })?;
            super::strict::cbor(entry, decoded, validation, warnings)?
        }
    };
    finish_object(entry, &mut value)?;
    Ok(value)
}

/// Type check and defaults for an object in the entry's version.
pub(crate) fn finish_object(entry: &ResourceEntry, value: &mut Value) -> Result<(), Status> {
    check_type(entry, value)?;
    meta::set_type(value, &entry.api_version(), &entry.kind);
    if !entry.custom {
        default::apply(value, &entry.schema);
    }
    entry.rules.default(value);
    Ok(())
}

/// Upstream decodes custom objects without knowing their type, so that they have to say what they
/// are: a kind, of whatever name, and the version of the path.
fn check_custom_envelope(
    entry: &ResourceEntry,
    body: &Bytes,
    encoding: Encoding,
) -> Result<(), Status> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Envelope<'a> {
        #[serde(borrow, default)]
        api_version: Cow<'a, str>,
        #[serde(borrow, default)]
        kind: Cow<'a, str>,
    }
    let read = (encoding == Encoding::Json && body.trim_ascii_start().starts_with(b"{"))
        .then(|| serde_json::from_slice::<Envelope<'_>>(body).ok())
        .flatten()
        .map(|read| (read.api_version.into_owned(), read.kind.into_owned()));
    let (api_version, kind) = match read {
        Some(read) => read,
        None => {
            let value =
                body_value(body, encoding).map_err(|err| unrecognized(entry, body, &err))?;
            (
                meta::api_version(&value).to_owned(),
                meta::kind(&value).to_owned(),
            )
        }
    };
    if kind.is_empty() {
        let problem = Status::bad_request(no_kind(body));
        return Err(unrecognized(entry, body, &problem));
    }
    if api_version.matches('/').count() > 1 {
        let problem = format!("unexpected GroupVersion string: {api_version}");
        return Err(unrecognized(entry, body, &Status::bad_request(problem)));
    }
    let expected = entry.api_version();
    if api_version != expected {
        return Err(Status::bad_request(format!(
            "{MISMATCH} ({api_version}) does not match the expected API version ({expected})"
        )));
    }
    Ok(())
}

/// What upstream says of an object without a kind; it shows all of it.
pub(crate) fn no_kind(body: &[u8]) -> String {
    format!(
        "Object 'Kind' is missing in '{}'",
        String::from_utf8_lossy(body)
    )
}

/// What a custom object says it is must be what its path serves.
pub(crate) fn check_custom_type(entry: &ResourceEntry, value: &Value) -> Result<(), Status> {
    let (kind, api_version) = (meta::kind(value), meta::api_version(value));
    let expected = entry.api_version();
    let mut errors = ErrorList::new();
    for (field, given, wanted) in [
        ("kind", kind, entry.kind.as_str()),
        ("apiVersion", api_version, expected.as_str()),
    ] {
        if given != wanted {
            let detail = format!("must be {wanted}");
            errors.push(FieldError::invalid(&Path::new(field), given, detail));
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(
        &entry.group,
        kind,
        meta::name(value),
        &errors,
    ))
}

pub(crate) fn check_type(entry: &ResourceEntry, value: &Value) -> Result<(), Status> {
    if entry.custom && value.is_object() {
        return check_custom_type(entry, value);
    }
    let Some(object) = value.as_object() else {
        return Err(Status::bad_request(format!(
            "json: cannot unmarshal {} into Go value of type {}.{}",
            go::json_kind(value),
            entry.version,
            entry.kind
        )));
    };
    type_problem(entry, value).map_err(|problem| {
        let expected = entry.api_version();
        let text = |name| object.get(name).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        if problem.starts_with(MISMATCH) {
            return Status::bad_request(problem);
        }
        let version = if api_version.is_empty() {
            &expected
        } else {
            api_version
        };
        let kind = if kind.is_empty() { &entry.kind } else { kind };
        Status::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {}: {problem}",
            entry.kind
        ))
    })
}

const MISMATCH: &str = "the API version in the data";

/// Why an object that says of itself what it is cannot be one of this entry.
pub(crate) fn type_problem(entry: &ResourceEntry, value: &Value) -> Result<(), String> {
    let expected = entry.api_version();
    let text = |name| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let api_version = match text("apiVersion") {
        "" => expected.as_str(),
        given => given,
    };
    let kind = match text("kind") {
        "" => entry.kind.as_str(),
        given => given,
    };
    if kind == entry.kind && api_version == expected {
        return Ok(());
    }
    let mismatch = || {
        format!("{MISMATCH} ({api_version}) does not match the expected API version ({expected})")
    };
    let (group, version) = meta::split_api_version(api_version);
    if keelson_api::kind_type(group, version, kind).is_none() {
        return Err(format!(
            "no kind {kind:?} is registered for version {api_version:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\""
        ));
    }
    if kind == entry.kind && group == entry.group {
        return Err(mismatch());
    }
    let package = match entry.group.split('.').next() {
        None | Some("") => "core",
        Some(first) => first,
    };
    Err(format!(
        "converting ({version}.{kind}) to ({package}.{}): unknown conversion",
        entry.kind
    ))
}

/// A body that is no stored kind (reviews, token requests): decoded through the schema of its
/// type, with its defaults.
pub(crate) fn decode_body(
    ctx: &RequestContext,
    body: &Bytes,
    api_version: &str,
    kind: &str,
) -> Result<Value, Status> {
    let (group, version) = meta::split_api_version(api_version);
    let schema = keelson_api::kind_type(group, version, kind)
        .and_then(keelson_api::schema)
        .ok_or_else(|| Status::internal(format!("no type {kind} in {api_version}")))?;
    let encoding = super::negotiate::input(ctx, true)?;
    let value = body_value_as(body, encoding, Some(schema))?;
    let given = |field| value.get(field).and_then(Value::as_str).unwrap_or_default();
    let (given_version, given_kind) = (given("apiVersion").to_owned(), given("kind").to_owned());
    if !given_kind.is_empty() && given_kind != kind {
        return Err(Status::bad_request(format!(
            "{given_kind} in version {given_version:?} cannot be handled as a {kind}"
        )));
    }
    if !given_version.is_empty() && given_version != api_version {
        return Err(Status::bad_request(format!(
            "the API version in the data ({given_version}) does not match the expected API version ({api_version})"
        )));
    }
    let decoded = decode::normalize(value, schema).map_err(|err| {
        Status::bad_request(decode::cannot_handle(kind, version, &err.to_string()))
    })?;
    let mut object = decoded.object;
    meta::set_type(&mut object, api_version, kind);
    Ok(object)
}

/// The answer to such a body, in the encoding that the client accepts.
pub(crate) fn encode_answer(
    ctx: &RequestContext,
    code: u16,
    value: &Value,
) -> Result<Response, Status> {
    let output = super::negotiate::answer_output(ctx)?;
    super::render::value(code, &output, value)
}

/// A stored object as a tree.
pub(crate) fn parse(bytes: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(bytes)
        .map_err(|err| Status::internal(format!("a stored object cannot be decoded: {err}")))
}

/// How the canonical bytes of an object of this type begin, so that a list can leave it out.
pub(crate) fn head(api_version: &str, kind: &str) -> String {
    let (kind, api_version) = (Value::from(kind), Value::from(api_version));
    format!("{{\"kind\":{kind},\"apiVersion\":{api_version},")
}

/// The canonical bytes of an object without its resourceVersion, and where the store puts it. The
/// type comes first, as [`head`] has it, then the other fields by name.
pub(crate) fn stamped(mut object: Value) -> Result<StoreValue, Status> {
    meta::metadata_mut(&mut object).insert("resourceVersion".into(), Value::String(String::new()));
    // The store copies it to its exact size.
    let mut out = Vec::with_capacity(4096);
    let mut stamp_at = None;
    let fields = object
        .as_object()
        .ok_or_else(|| Status::internal("an object is no JSON object"))?;
    let typed = ["kind", "apiVersion"];
    let first = typed.iter().filter_map(|name| fields.get_key_value(*name));
    let others = fields
        .iter()
        .filter(|(name, _)| !typed.contains(&name.as_str()));
    write_map(&mut out, first.chain(others), |out, key, value| {
        if key != "metadata" {
            return write(out, value);
        }
        let Some(metadata) = value.as_object() else {
            return write(out, value);
        };
        write_map(out, metadata.iter(), |out, key, value| {
            if key == "resourceVersion" {
                out.extend_from_slice(b"\"\"");
                stamp_at = u32::try_from(out.len() - 1).ok();
                return Ok(());
            }
            write(out, value)
        })
    })?;
    Ok(StoreValue {
        bytes: out.into(),
        stamp_at,
    })
}

fn write_map<'a>(
    out: &mut Vec<u8>,
    fields: impl Iterator<Item = (&'a String, &'a Value)>,
    mut field: impl FnMut(&mut Vec<u8>, &str, &Value) -> Result<(), Status>,
) -> Result<(), Status> {
    out.push(b'{');
    for (index, (key, value)) in fields.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, key)?;
        out.push(b':');
        field(out, key, value)?;
    }
    out.push(b'}');
    Ok(())
}

fn write(out: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) -> Result<(), Status> {
    serde_json::to_writer(out, value).map_err(Status::internal)
}

/// What the store would hold after writing at this revision.
pub(crate) fn stamped_at(value: &StoreValue, revision: Revision) -> Result<Bytes, Status> {
    splice(value, revision.to_string().as_bytes())
}

/// A dry run's object: it has no version.
pub(crate) fn unstamped(value: &StoreValue) -> Result<Bytes, Status> {
    let mut object = parse(&value.bytes)?;
    meta::metadata_mut(&mut object).remove("resourceVersion");
    serde_json::to_vec(&object)
        .map(Bytes::from)
        .map_err(Status::internal)
}

/// Whether writing this would change nothing but the version.
pub(crate) fn is_same(value: &StoreValue, stored: &[u8], revision: Revision) -> bool {
    let digits = revision.to_string();
    let Some(at) = value.stamp_at.map(|at| at as usize) else {
        return value.bytes == stored;
    };
    value.bytes.len() + digits.len() == stored.len()
        && value.bytes[..at] == stored[..at]
        && &stored[at..at + digits.len()] == digits.as_bytes()
        && value.bytes[at..] == stored[at + digits.len()..]
}

fn splice(value: &StoreValue, digits: &[u8]) -> Result<Bytes, Status> {
    let Some(at) = value.stamp_at.map(|at| at as usize) else {
        return Ok(value.bytes.clone());
    };
    let mut out = BytesMut::with_capacity(value.bytes.len() + digits.len());
    out.put_slice(&value.bytes[..at]);
    out.put_slice(digits);
    out.put_slice(&value.bytes[at..]);
    Ok(out.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_keys_in_yaml_are_for_strict_readers_to_mind() {
        let json = br#"{"spec": {"foo": "one", "foo": "two", "bar": 1e3}}"#;
        assert_eq!(yaml(json).unwrap()["spec"]["foo"], "two");
        assert!(yaml(json).unwrap()["spec"]["bar"].is_i64());
        assert!(yaml_problem(json).unwrap().contains("already set in map"));
        let body = b"a: 1\nspec:\n  foo: one\n  foo: two\n";
        assert_eq!(yaml(body).unwrap()["spec"]["foo"], "two");
        assert_eq!(
            yaml_problem(body).unwrap(),
            "yaml: unmarshal errors:\n  line 4: key \"foo\" already set in map"
        );
        assert_eq!(yaml_problem(b"a: 1\n"), None);
    }
}
