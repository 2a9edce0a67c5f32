//! URLs.

use super::Row;
use super::declare::Binding::Own;
use crate::value::{EvalError, MapEntries, Opaque, Value, ValueResult};
use keelson_machinery::go::quote;
use std::any::Any;

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    Row("url", "string_to_url", "(string) -> kubernetes.URL", Own(url)),
    Row("getScheme", "url_get_scheme", "kubernetes.URL.() -> string", Own(get_scheme)),
    Row("getHost", "url_get_host", "kubernetes.URL.() -> string", Own(get_host)),
    Row("getHostname", "url_get_hostname", "kubernetes.URL.() -> string", Own(get_hostname)),
    Row("getPort", "url_get_port", "kubernetes.URL.() -> string", Own(get_port)),
    Row("getEscapedPath", "url_get_escaped_path", "kubernetes.URL.() -> string", Own(get_escaped_path)),
    Row("getQuery", "url_get_query", "kubernetes.URL.() -> map(string, list(string))", Own(get_query)),
    Row("isURL", "is_url_string", "(string) -> bool", Own(is_url)),
];

#[derive(Debug, Clone, Default, PartialEq)]
struct Url {
    scheme: String,
    opaque: String,
    user: String,
    /// With its port.
    host: String,
    /// Escaped.
    path: String,
    query: String,
    fragment: String,
}

impl Opaque for Url {
    fn type_name(&self) -> &str {
        "kubernetes.URL"
    }

    fn equals(&self, other: &dyn Opaque) -> bool {
        other.as_any().downcast_ref::<Url>() == Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Whether a text can be the target of a request: an absolute URL or an absolute path. The error
/// is upstream's.
pub(super) fn check(s: &str) -> Result<(), String> {
    parse(s, true)
        .map(drop)
        .map_err(|e| format!("parse {}: {e}", quote(s)))
}

fn parse_with_fragment(s: &str) -> Result<Url, String> {
    let (rest, fragment) = s.split_once('#').unwrap_or((s, ""));
    let mut url = parse(rest, false).map_err(|e| format!("parse {}: {e}", quote(s)))?;
    url.fragment = fragment.to_owned();
    Ok(url)
}

fn parse(s: &str, of_request: bool) -> Result<Url, String> {
    if s.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return Err("net/url: invalid control character in URL".to_owned());
    }
    if s.is_empty() && of_request {
        return Err("empty url".to_owned());
    }
    let (scheme, rest) = scheme(s)?;
    let (mut rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut url = Url {
        scheme: scheme.to_ascii_lowercase(),
        query: query.to_owned(),
        ..Url::default()
    };
    if s == "*" {
        url.path = "*".to_owned();
        return Ok(url);
    }
    if !rest.starts_with('/') {
        if !scheme.is_empty() {
            url.opaque = rest.to_owned();
            return Ok(url);
        }
        if of_request {
            return Err("invalid URI for request".to_owned());
        }
        if rest
            .split('/')
            .next()
            .is_some_and(|first| first.contains(':'))
        {
            return Err("first path segment in URL cannot contain colon".to_owned());
        }
    }
    let authority = !scheme.is_empty() || (!of_request && !rest.starts_with("///"));
    if let (true, Some(after)) = (authority, rest.strip_prefix("//")) {
        let end = after.find('/').unwrap_or(after.len());
        let (authority, path) = after.split_at(end);
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        if !user.bytes().all(user_byte) {
            return Err("net/url: invalid userinfo".to_owned());
        }
        unescape(user)?;
        url.user = user.to_owned();
        url.host = parse_host(host)?;
        rest = path;
    }
    let path = unescape(rest)?;
    url.path = if rest.bytes().all(encoded_byte) {
        rest.to_owned()
    } else {
        escape_path(&path)
    };
    Ok(url)
}

fn scheme(s: &str) -> Result<(&str, &str), String> {
    for (i, c) in s.bytes().enumerate() {
        match c {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if i > 0 => {}
            b':' if i == 0 => return Err("missing protocol scheme".to_owned()),
            b':' => return Ok((&s[..i], &s[i + 1..])),
            _ => break,
        }
    }
    Ok(("", s))
}

fn user_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&b)
}

/// What may stand in an escaped path as it is.
fn encoded_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:@[]%/".contains(&b)
}

fn parse_host(host: &str) -> Result<String, String> {
    let port = if host.starts_with('[') {
        let end = host
            .rfind(']')
            .ok_or_else(|| "missing ']' in host".to_owned())?;
        &host[end + 1..]
    } else {
        host.find(':').map_or("", |i| &host[i..])
    };
    let digits = port.strip_prefix(':').unwrap_or(port);
    let starts = port.is_empty() || port.starts_with(':');
    if !starts || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("invalid port {} after host", quote(port)));
    }
    let plain =
        |b: u8| b >= 0x80 || b.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:[]<>\"%".contains(&b);
    if let Some(bad) = host.bytes().find(|b| !plain(*b)) {
        let shown = quote(&char::from(bad).to_string());
        return Err(format!("invalid character {shown} in host name"));
    }
    let bytes = unescape(host)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn unescape(s: &str) -> Result<Vec<u8>, String> {
    let b = s.as_bytes();
    let mut out = Vec::with_capacity(b.len());
    let mut i = 0;
    while i < b.len() {
        if b[i] != b'%' {
            out.push(b[i]);
            i += 1;
            continue;
        }
        let end = (i + 3).min(b.len());
        let digits = s.get(i + 1..end).filter(|d| d.len() == 2);
        match digits.and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(byte) => out.push(byte),
            None => {
                let shown = String::from_utf8_lossy(&b[i..end]).into_owned();
                return Err(format!("invalid URL escape {}", quote(&shown)));
            }
        }
        i = end;
    }
    Ok(out)
}

fn escape_path(path: &[u8]) -> String {
    let mut out = String::with_capacity(path.len());
    for b in path {
        if b.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(b) {
            out.push(char::from(*b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

/// The host's name and its port.
fn host_and_port(host: &str) -> (&str, &str) {
    if let Some(rest) = host.strip_prefix('[') {
        let (name, port) = rest.split_once(']').unwrap_or((rest, ""));
        return (name, port.trim_start_matches(':'));
    }
    host.split_once(':').unwrap_or((host, ""))
}

fn held<'a>(v: &'a Value<'_>) -> Result<&'a Url, EvalError> {
    v.downcast().ok_or_else(EvalError::no_such_overload)
}

fn text<'a>(v: &'a Value<'_>) -> &'a str {
    v.as_str().unwrap_or_default()
}

fn url<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let s = text(&args[0]);
    let refused = |e: String| {
        EvalError::new(format!(
            "URL parse error during conversion from string: {e}"
        ))
    };
    check(s).map_err(refused)?;
    parse_with_fragment(s).map(Value::opaque).map_err(refused)
}

fn is_url<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::Bool(check(text(&args[0])).is_ok()))
}

fn get_scheme<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::string(&held(&args[0])?.scheme))
}

fn get_host<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::string(&held(&args[0])?.host))
}

fn get_hostname<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::string(host_and_port(&held(&args[0])?.host).0))
}

fn get_port<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::string(host_and_port(&held(&args[0])?.host).1))
}

fn get_escaped_path<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    Ok(Value::string(&held(&args[0])?.path))
}

fn get_query<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    let mut found: Vec<(String, Vec<Value<'v>>)> = Vec::new();
    let mut places = std::collections::HashMap::new();
    let plain = |s: &str| {
        let bytes = unescape(&s.replace('+', " ")).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    let pairs = held(&args[0])?.query.split('&');
    for pair in pairs.filter(|p| !p.is_empty() && !p.contains(';')) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (Some(key), Some(value)) = (plain(key), plain(value)) else {
            continue;
        };
        let place = *places.entry(key.clone()).or_insert(found.len());
        if place == found.len() {
            found.push((key, Vec::new()));
        }
        found[place].1.push(Value::string(value));
    }
    let mut out = MapEntries::default();
    for (key, values) in found {
        out.insert(Value::string(key), Value::list(values))?;
    }
    Ok(Value::from(out))
}
