//! Checks of names, labels and other texts; each returns every complaint in upstream's words.

use crate::go;
use std::net::IpAddr;

pub use crate::object_meta::{
    TOTAL_ANNOTATION_SIZE_BYTES, name_is_dns_label, name_is_dns_subdomain, name_is_dns1035_label,
    name_is_path_segment, validate_annotations, validate_field_manager, validate_immutable_field,
    validate_label_selector, validate_labels, validate_managed_fields, validate_object_meta,
    validate_object_meta_update,
};

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const KEY: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

fn max_length(n: usize) -> String {
    format!("must be no more than {n} characters")
}

fn max_bytes(n: usize) -> String {
    format!("must be no more than {n} bytes")
}

/// A complaint about a text that does not match a pattern.
pub fn regex_error(msg: &str, pattern: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{msg} (regex used for validation is '{pattern}')");
    }
    let quoted: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!(
        "{msg} (e.g. {}regex used for validation is '{pattern}')",
        quoted.join(" or ")
    )
}

pub fn inclusive_range_error(lo: i64, hi: i64) -> String {
    format!("must be between {lo} and {hi}, inclusive")
}

fn lower_or_digit(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn ends_with_kind(b: &[u8], ok: fn(u8) -> bool) -> bool {
    matches!((b.first(), b.last()), (Some(f), Some(l)) if ok(*f) && ok(*l))
}

fn label_shape(b: &[u8]) -> bool {
    ends_with_kind(b, lower_or_digit) && b.iter().all(|c| lower_or_digit(*c) || *c == b'-')
}

fn subdomain_shape(b: &[u8]) -> bool {
    b.split(|c| *c == b'.').all(label_shape)
}

pub fn is_dns1123_label(v: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if v.len() > 63 {
        errs.push(max_length(63));
    }
    if !label_shape(v.as_bytes()) {
        if subdomain_shape(v.as_bytes()) {
            errs.push("must not contain dots".into());
        } else {
            errs.push(regex_error(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
                LABEL,
                &["my-name", "123-abc"],
            ));
        }
    }
    errs
}

pub fn is_dns1123_subdomain(v: &str) -> Vec<String> {
    subdomain(v, max_length)
}

fn subdomain(v: &str, too_long: fn(usize) -> String) -> Vec<String> {
    let mut errs = Vec::new();
    if v.len() > 253 {
        errs.push(too_long(253));
    }
    if !subdomain_shape(v.as_bytes()) {
        errs.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            SUBDOMAIN,
            &["example.com"],
        ));
    }
    errs
}

/// As [`is_dns1123_subdomain`], each label may also have underscores.
pub fn is_dns1123_subdomain_with_underscore(v: &str) -> Vec<String> {
    let shaped = v.as_bytes().split(|c| *c == b'.').all(|l| {
        let core = l.strip_prefix(b"_").unwrap_or(l);
        ends_with_kind(core, lower_or_digit)
            && core
                .iter()
                .all(|c| lower_or_digit(*c) || matches!(c, b'-' | b'_'))
    });
    let mut errs = Vec::new();
    if v.len() > 253 {
        errs.push(max_length(253));
    }
    if !shaped {
        let label = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
        errs.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character",
            &format!("{label}(\\.{label})*"),
            &["example.com"],
        ));
    }
    errs
}

pub fn is_dns1035_label(v: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if v.len() > 63 {
        errs.push(max_length(63));
    }
    let starts = v.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    if !(starts && label_shape(v.as_bytes())) {
        errs.push(regex_error(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    errs
}

pub fn is_wildcard_dns1123_subdomain(v: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if v.len() > 253 {
        errs.push(max_length(253));
    }
    if !v
        .strip_prefix("*.")
        .is_some_and(|r| subdomain_shape(r.as_bytes()))
    {
        errs.push(regex_error(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            &format!("\\*\\.{SUBDOMAIN}"),
            &["*.example.com"],
        ));
    }
    errs
}

/// At least three labels.
pub fn is_fully_qualified_name(v: &str) -> Vec<String> {
    let errs = is_dns1123_subdomain(v);
    if errs.is_empty() && v.split('.').count() < 3 {
        return vec!["should be a domain with at least three segments separated by dots".into()];
    }
    errs
}

fn key_shape(b: &[u8]) -> bool {
    ends_with_kind(b, |c| c.is_ascii_alphanumeric())
        && b.iter()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// `[prefix/]name`, the form of label keys, annotation keys, finalizers and resource names.
pub fn is_qualified_name(v: &str) -> Vec<String> {
    let shape = || {
        regex_error(
            "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            KEY,
            &["MyName", "my.name", "123-abc"],
        )
    };
    let mut errs = Vec::new();
    let mut parts = v.split('/');
    let name = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, _) => name,
        (Some(prefix), Some(name), None) => {
            if prefix.is_empty() {
                errs.push("prefix part must be non-empty".to_owned());
            } else {
                errs.extend(
                    subdomain(prefix, max_bytes)
                        .into_iter()
                        .map(|e| format!("prefix part {e}")),
                );
            }
            name
        }
        _ => {
            return vec![format!(
                "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                shape()
            )];
        }
    };
    if name.is_empty() {
        errs.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        errs.push(format!("name part {}", max_bytes(63)));
    }
    if !key_shape(name.as_bytes()) {
        errs.push(format!("name part {}", shape()));
    }
    errs
}

pub fn is_valid_label_value(v: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if v.len() > 63 {
        errs.push(max_bytes(63));
    }
    if !v.is_empty() && !key_shape(v.as_bytes()) {
        errs.push(regex_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            &format!("({KEY})?"),
            &["MyValue", "my_value", "12345"],
        ));
    }
    errs
}

pub fn is_valid_port_num(port: i64) -> Vec<String> {
    is_in_range(port, 1, 65535)
}

pub fn is_in_range(v: i64, lo: i64, hi: i64) -> Vec<String> {
    if (lo..=hi).contains(&v) {
        Vec::new()
    } else {
        vec![inclusive_range_error(lo, hi)]
    }
}

/// User and group ids.
pub fn is_valid_id(v: i64) -> Vec<String> {
    is_in_range(v, 0, i64::from(i32::MAX))
}

pub fn is_valid_port_name(v: &str) -> Vec<String> {
    let mut errs: Vec<String> = Vec::new();
    if v.len() > 15 {
        errs.push(max_length(15));
    }
    let b = v.as_bytes();
    if b.is_empty() || !b.iter().all(|c| lower_or_digit(*c) || *c == b'-') {
        errs.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !b.iter().any(u8::is_ascii_lowercase) {
        errs.push("must contain at least one letter (a-z)".into());
    }
    if v.contains("--") {
        errs.push("must not contain consecutive hyphens".into());
    }
    if v.starts_with('-') || v.ends_with('-') {
        errs.push("must not begin or end with a hyphen".into());
    }
    errs
}

/// Parses as the standard library does: no leading zeros, no zone.
pub fn is_valid_ip(v: &str) -> Vec<String> {
    match v.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => {
            vec!["must not be an IPv4-mapped IPv6 address".into()]
        }
        Ok(_) => Vec::new(),
        Err(_) => {
            vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()]
        }
    }
}

/// An address and a prefix length.
pub fn parse_cidr(v: &str) -> Option<(IpAddr, u8)> {
    let (ip, len) = v.split_once('/')?;
    let ip: IpAddr = ip.parse().ok()?;
    if len.is_empty() || len.len() > 3 || (len.len() > 1 && len.starts_with('0')) {
        return None;
    }
    if !len.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let bits: u8 = len.parse().ok()?;
    (bits <= if ip.is_ipv4() { 32 } else { 128 }).then_some((ip, bits))
}

pub fn is_valid_cidr(v: &str) -> Vec<String> {
    if parse_cidr(v).is_some() {
        Vec::new()
    } else {
        vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".into()]
    }
}

fn chdir_prefix(v: &str) -> Option<String> {
    match v {
        "." => Some("must not be '.'".into()),
        ".." => Some("must not be '..'".into()),
        _ if v.starts_with("..") => Some("must not start with '..'".into()),
        _ => None,
    }
}

/// The classic rule; since 1.34 environment variables take [`is_relaxed_env_var_name`].
pub fn is_env_var_name(v: &str) -> Vec<String> {
    let mut errs = Vec::new();
    let b = v.as_bytes();
    let ok = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_');
    if b.is_empty() || b[0].is_ascii_digit() || !b.iter().all(ok) {
        errs.push(regex_error(
            "a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or '.', and must not start with a digit",
            "[-._a-zA-Z][-._a-zA-Z0-9]*",
            &["my.env-name", "MY_ENV.NAME", "MyEnvName1"],
        ));
    }
    errs.extend(chdir_prefix(v));
    errs
}

pub fn is_relaxed_env_var_name(v: &str) -> Vec<String> {
    if v.is_empty() {
        return vec!["environment variable name must be non-empty".into()];
    }
    if v.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".into()]
}

pub fn is_config_map_key(v: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if v.len() > 253 {
        errs.push(max_length(253));
    }
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if v.is_empty() || !v.bytes().all(ok) {
        errs.push(regex_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    errs.extend(chdir_prefix(v));
    errs
}

pub fn is_c_identifier(v: &str) -> Vec<String> {
    let b = v.as_bytes();
    let ok = |c: &u8| c.is_ascii_alphanumeric() || *c == b'_';
    if !b.is_empty() && !b[0].is_ascii_digit() && b.iter().all(ok) {
        return Vec::new();
    }
    vec![regex_error(
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'",
        "[A-Za-z_][A-Za-z0-9_]*",
        &["my_name", "MY_NAME", "MyName"],
    )]
}

pub fn is_http_header_name(v: &str) -> Vec<String> {
    if !v.is_empty() && v.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Vec::new();
    }
    vec![regex_error(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

pub fn is_percent(v: &str) -> Vec<String> {
    let digits = v.strip_suffix('%').unwrap_or("");
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return Vec::new();
    }
    vec![regex_error(
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    )]
}

/// What may stand as one segment of a URL path: names of roles and a few others.
pub fn is_path_segment_name(v: &str) -> Vec<String> {
    if v == "." || v == ".." {
        return vec![format!("may not be '{v}'")];
    }
    is_path_segment_prefix(v)
}

pub fn is_path_segment_prefix(v: &str) -> Vec<String> {
    ["/", "%"]
        .iter()
        .filter(|c| v.contains(**c))
        .map(|c| format!("may not contain '{c}'"))
        .collect()
}

/// Complaints about characters that do not print, for field managers.
pub(crate) fn unprintable(v: &str) -> Vec<String> {
    v.char_indices()
        .filter(|(_, c)| !go::is_printable(*c))
        .map(|(i, c)| format!("invalid character U+{:04X} (at position {i})", c as u32))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "a-b", "0a", "a0"] {
            assert!(is_dns1123_label(good).is_empty(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", &"a".repeat(64)] {
            assert!(!is_dns1123_label(bad).is_empty(), "{bad}");
        }
        assert_eq!(is_dns1123_label("a.b"), ["must not contain dots"]);
        assert!(is_dns1123_subdomain("a.b-c.d").is_empty());
        assert!(!is_dns1123_subdomain("a..b").is_empty());
        assert!(!is_dns1123_subdomain("").is_empty());
        assert!(!is_dns1035_label("1a").is_empty());
        assert_eq!(
            is_dns1123_label("A"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
    }

    #[test]
    fn keys_and_values() {
        for good in ["a", "A.b_c-d", "example.com/x", "1"] {
            assert!(is_qualified_name(good).is_empty(), "{good}");
        }
        for bad in ["", "/a", "a/", "a/b/c", "-a", "Ex.com/a", "a b"] {
            assert!(!is_qualified_name(bad).is_empty(), "{bad}");
        }
        assert!(is_valid_label_value("").is_empty());
        assert!(!is_valid_label_value("-").is_empty());
        assert!(!is_valid_label_value(&"a".repeat(64)).is_empty());
    }

    #[test]
    fn others() {
        assert!(is_valid_port_name("http-1").is_empty());
        for bad in ["", "-a", "a--b", "12", "toolongportname16", "A"] {
            assert!(!is_valid_port_name(bad).is_empty(), "{bad}");
        }
        assert!(is_valid_port_num(0).len() == 1 && is_valid_port_num(65535).is_empty());
        assert!(is_valid_ip("10.0.0.1").is_empty() && is_valid_ip("::1").is_empty());
        assert!(!is_valid_ip("10.0.0.01").is_empty() && !is_valid_ip("x").is_empty());
        assert!(is_valid_cidr("10.0.0.0/8").is_empty() && !is_valid_cidr("10.0.0.0/33").is_empty());
        assert!(is_config_map_key("a.b").is_empty() && !is_config_map_key("..a").is_empty());
        assert!(is_percent("5%").is_empty() && !is_percent("%").is_empty());
        assert!(is_relaxed_env_var_name("a b").is_empty());
        assert!(!is_relaxed_env_var_name("a=b").is_empty());
    }
}
