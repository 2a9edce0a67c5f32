//! Named formats of texts.

use super::Row;
use super::declare::Binding::Own;
use crate::value::{EvalError, Opaque, Value, ValueResult};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keelson_machinery::validation;
use std::any::Any;

/// Its name, how to validate, and how long the pattern is that decides what validating costs.
struct Format(&'static str, fn(&str) -> Vec<String>, u64);

const FORMATS: &[Format] = &[
    Format("dns1123Label", validation::is_dns1123_label, 30),
    Format("dns1123Subdomain", validation::is_dns1123_subdomain, 60),
    Format("dns1035Label", validation::is_dns1035_label, 30),
    Format("qualifiedName", validation::is_qualified_name, 60),
    Format(
        "dns1123LabelPrefix",
        |s| validation::is_dns1123_label(&masked(s)),
        30,
    ),
    Format(
        "dns1123SubdomainPrefix",
        |s| validation::is_dns1123_subdomain(&masked(s)),
        60,
    ),
    Format(
        "dns1035LabelPrefix",
        |s| validation::is_dns1035_label(&masked(s)),
        30,
    ),
    Format("labelValue", validation::is_valid_label_value, 40),
    Format("uri", uri, 1103),
    Format("uuid", uuid, 70),
    Format("byte", byte, 84),
    Format("date", date, 71),
    Format("datetime", datetime, 71),
];

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    Row("validate", "format-validate", "kubernetes.NamedFormat.(string) -> optional(list(string))", Own(validate)),
    Row("format.named", "format-named", "(string) -> optional(kubernetes.NamedFormat)", Own(named)),
    Row("format.dns1123Label", "format.dns1123Label", "() -> kubernetes.NamedFormat", Own(constant::<0>)),
    Row("format.dns1123Subdomain", "format.dns1123Subdomain", "() -> kubernetes.NamedFormat", Own(constant::<1>)),
    Row("format.dns1035Label", "format.dns1035Label", "() -> kubernetes.NamedFormat", Own(constant::<2>)),
    Row("format.qualifiedName", "format.qualifiedName", "() -> kubernetes.NamedFormat", Own(constant::<3>)),
    Row("format.dns1123LabelPrefix", "format.dns1123LabelPrefix", "() -> kubernetes.NamedFormat", Own(constant::<4>)),
    Row("format.dns1123SubdomainPrefix", "format.dns1123SubdomainPrefix", "() -> kubernetes.NamedFormat", Own(constant::<5>)),
    Row("format.dns1035LabelPrefix", "format.dns1035LabelPrefix", "() -> kubernetes.NamedFormat", Own(constant::<6>)),
    Row("format.labelValue", "format.labelValue", "() -> kubernetes.NamedFormat", Own(constant::<7>)),
    Row("format.uri", "format.uri", "() -> kubernetes.NamedFormat", Own(constant::<8>)),
    Row("format.uuid", "format.uuid", "() -> kubernetes.NamedFormat", Own(constant::<9>)),
    Row("format.byte", "format.byte", "() -> kubernetes.NamedFormat", Own(constant::<10>)),
    Row("format.date", "format.date", "() -> kubernetes.NamedFormat", Own(constant::<11>)),
    Row("format.datetime", "format.datetime", "() -> kubernetes.NamedFormat", Own(constant::<12>)),
];

/// A format, by its place in the table.
#[derive(Debug, PartialEq)]
struct NamedFormat(usize);

impl Opaque for NamedFormat {
    fn type_name(&self) -> &str {
        "kubernetes.NamedFormat"
    }

    fn equals(&self, other: &dyn Opaque) -> bool {
        other.as_any().downcast_ref::<NamedFormat>() == Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Prefixes of names may end in a dash, as a generated suffix follows.
fn masked(s: &str) -> String {
    match s.strip_suffix('-') {
        Some(rest) if s.len() > 1 => format!("{rest}a"),
        _ => s.to_owned(),
    }
}

fn one_message(ok: bool, message: &str) -> Vec<String> {
    if ok {
        Vec::new()
    } else {
        vec![message.to_owned()]
    }
}

fn uri(s: &str) -> Vec<String> {
    super::urls::check(s).err().into_iter().collect()
}

/// Dashes may be left out.
fn uuid(s: &str) -> Vec<String> {
    let mut rest = s;
    let mut ok = true;
    for (i, width) in [8, 4, 4, 4, 12].into_iter().enumerate() {
        if i > 0 {
            rest = rest.strip_prefix('-').unwrap_or(rest);
        }
        let part = rest.get(..width).unwrap_or_default();
        ok = ok && part.len() == width && part.bytes().all(|b| b.is_ascii_hexdigit());
        rest = rest.get(width..).unwrap_or_default();
    }
    one_message(ok && rest.is_empty(), "does not match the UUID format")
}

fn byte(s: &str) -> Vec<String> {
    one_message(
        !s.is_empty() && STANDARD.decode(s).is_ok(),
        "invalid base64",
    )
}

fn date(s: &str) -> Vec<String> {
    one_message(crate::time::parse_date(s).is_some(), "invalid date")
}

fn datetime(s: &str) -> Vec<String> {
    one_message(
        crate::time::parse_timestamp(s).is_some(),
        "invalid datetime",
    )
}

fn constant<'v, const I: usize>(_: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::opaque(NamedFormat(I)))
}

fn named<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let name = args[0].as_str().unwrap_or_default();
    let place = FORMATS.iter().position(|f| f.0 == name);
    Ok(match place {
        Some(place) => Value::some(Value::opaque(NamedFormat(place))),
        None => Value::Optional(None),
    })
}

fn held(v: &Value<'_>) -> Option<&'static Format> {
    FORMATS.get(v.downcast::<NamedFormat>()?.0)
}

/// How long the pattern of a format is.
pub(crate) fn pattern_size(v: &Value<'_>) -> Option<u64> {
    held(v).map(|f| f.2)
}

fn validate<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let format = held(&args[0]).ok_or_else(EvalError::no_such_overload)?;
    let complaints = (format.1)(args[1].as_str().unwrap_or_default());
    if complaints.is_empty() {
        return Ok(Value::Optional(None));
    }
    let complaints: Vec<Value<'v>> = complaints.into_iter().map(Value::string).collect();
    Ok(Value::some(Value::list(complaints)))
}
