//! Formats of texts that schemas may name; a format that is none of these is no rule.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use keelson_machinery::{time, validation};
use regex::Regex;

const FORMATS: &[(&str, fn(&str) -> bool)] = &[
    ("bsonobjectid", |s| s.len() == 24 && is_hex(s)),
    ("uri", is_uri),
    ("email", is_email),
    ("hostname", is_hostname),
    ("ipv4", |s| is_ipv4(s)),
    ("ipv6", |s| s.contains(':') && s.parse::<Ipv6Addr>().is_ok()),
    ("cidr", is_cidr),
    ("mac", is_mac),
    ("uuid", |s| is_uuid(s, None)),
    ("uuid3", |s| is_uuid(s, Some('3'))),
    ("uuid4", |s| is_uuid(s, Some('4'))),
    ("uuid5", |s| is_uuid(s, Some('5'))),
    ("isbn", |s| is_isbn10(s) || is_isbn13(s)),
    ("isbn10", is_isbn10),
    ("isbn13", is_isbn13),
    ("creditcard", is_credit_card),
    ("ssn", |s| SSN.is_match(s)),
    ("hexcolor", |s| HEX_COLOR.is_match(s)),
    ("rgbcolor", |s| RGB_COLOR.is_match(s)),
    ("byte", |s| BASE64.is_match(s)),
    ("password", |_| true),
    ("date", is_date),
    ("duration", |s| DURATION.is_match(s) || UNITS.is_match(s)),
    ("datetime", is_date_time),
    ("k8sshortname", |s| {
        validation::is_dns1123_label(s).is_empty()
    }),
    ("k8slongname", |s| {
        validation::is_dns1123_subdomain(s).is_empty()
    }),
];

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a valid pattern")
}

static SSN: LazyLock<Regex> = LazyLock::new(|| pattern(r"^[0-9]{3}[- ]?[0-9]{2}[- ]?[0-9]{4}$"));
static HEX_COLOR: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$"));
static RGB_COLOR: LazyLock<Regex> = LazyLock::new(|| {
    const PART: &str = r"\s*(0|[1-9][0-9]?|1[0-9][0-9]?|2[0-4][0-9]|25[0-5])\s*";
    pattern(&format!(r"^rgb\({PART},{PART},{PART}\)$"))
});
static BASE64: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{4})$")
});
/// A duration as Go writes it.
static DURATION: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^[-+]?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$"));
/// `3 days`: whatever else stands around it.
static UNITS: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?i)[0-9]+\s*(ns|nanosecond|us|µs|micro|microsecond|ms|milli|millisecond|s|sec|second|m|min|minute|h|hr|hour|d|day|w|wk|week)",
    )
});
static HOSTNAME: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"^([a-zA-Z0-9\p{S}\p{L}]((-?[a-zA-Z0-9\p{S}\p{L}]{0,62})?)|([a-zA-Z0-9\p{S}\p{L}](([a-zA-Z0-9\-\p{S}\p{L}]{0,61}[a-zA-Z0-9\p{S}\p{L}])?)(\.)){1,}([a-zA-Z\p{L}]){2,63})$",
    )
});
static TIME: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"^([0-9]{2}):([0-9]{2}):([0-9]{2})(\.[0-9]+)?(z|([+-][0-9]{2}:[0-9]{2}))$")
});

/// Whether a text of type string has this format.
pub(super) fn conforms(format: &str, text: &str) -> bool {
    find(format).is_none_or(|check| check(text))
}

fn find(format: &str) -> Option<fn(&str) -> bool> {
    let name = format.replace('-', "");
    let found = FORMATS.iter().find(|(known, _)| *known == name);
    found.map(|(_, check)| *check)
}

/// Whether a format means anything for values of this type.
pub(crate) fn is_recognized(format: &str, kind: &str) -> bool {
    match kind {
        "" | "string" => find(format).is_some(),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A request's target: an absolute URI or an absolute path.
fn is_uri(text: &str) -> bool {
    let fine = |c: char| !c.is_control() && c != ' ';
    if text.is_empty() || !text.chars().all(fine) {
        return false;
    }
    if text.starts_with('/') {
        return true;
    }
    let scheme = |s: &str| {
        s.starts_with(|c: char| c.is_ascii_alphabetic())
            && s.chars()
                .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    };
    text.split_once(':').is_some_and(|(s, _)| scheme(s))
}

fn is_email(text: &str) -> bool {
    let address = match text.trim_end().strip_suffix('>') {
        Some(rest) => match rest.rsplit_once('<') {
            Some((_, address)) => address,
            None => return false,
        },
        None => text,
    };
    let part = |s: &str| {
        !s.is_empty()
            && !s.starts_with('.')
            && !s.ends_with('.')
            && !s.contains("..")
            && !s.contains(|c: char| c.is_whitespace() || "()<>[]:;@\\,\"".contains(c))
    };
    address
        .rsplit_once('@')
        .is_some_and(|(local, domain)| part(local) && part(domain))
}

fn is_hostname(text: &str) -> bool {
    HOSTNAME.is_match(text) && text.len() <= 255 && text.split('.').all(|part| part.len() <= 63)
}

/// Leading zeros are read as decimal.
fn is_ipv4(text: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && p.bytes().all(|b| b.is_ascii_digit())
            && p.parse::<u32>().is_ok_and(|n| n < 256)
    };
    let mapped = text.contains(':') && text.parse::<Ipv6Addr>().is_ok();
    text.parse::<Ipv4Addr>().is_ok()
        || text.split('.').count() == 4 && text.split('.').all(part)
        || text.contains('.') && mapped
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else {
        return false;
    };
    let most = if is_ipv4(address) {
        32
    } else if address.parse::<Ipv6Addr>().is_ok() {
        128
    } else {
        return false;
    };
    let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    digits && length.parse::<u32>().is_ok_and(|n| n <= most)
}

fn is_mac(text: &str) -> bool {
    let separated = |separator: char, width: usize| {
        let parts: Vec<_> = text.split(separator).collect();
        parts.iter().all(|part| part.len() == width && is_hex(part))
            && matches!(parts.len() * width / 2, 6 | 8 | 20)
    };
    separated(':', 2) || separated('-', 2) || separated('.', 4)
}

/// Dashes may be left out; the variant is told by versions 4 and 5.
fn is_uuid(text: &str, version: Option<char>) -> bool {
    let mut rest = text;
    for (i, width) in [8, 4, 4, 4, 12].into_iter().enumerate() {
        if i > 0 {
            rest = rest.strip_prefix('-').unwrap_or(rest);
        }
        let Some(part) = rest.get(..width).filter(|part| is_hex(part)) else {
            return false;
        };
        let right = match (i, version) {
            (2, Some(version)) => part.starts_with(version),
            (3, Some('4' | '5')) => part.starts_with(['8', '9', 'a', 'b', 'A', 'B']),
            _ => true,
        };
        if !right {
            return false;
        }
        rest = &rest[width..];
    }
    rest.is_empty()
}

fn digits_of(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, ' ' | '-')).collect()
}

fn is_isbn10(text: &str) -> bool {
    let digits = digits_of(text);
    let worth = |(i, c): (usize, char)| match c {
        'X' if i == 9 => Some(10),
        _ => c.to_digit(10),
    };
    let worths: Option<Vec<u32>> = digits.chars().enumerate().map(worth).collect();
    worths.is_some_and(|all| {
        let sum: u32 = (1..).zip(&all).map(|(weight, worth)| weight * worth).sum();
        all.len() == 10 && sum.is_multiple_of(11)
    })
}

fn is_isbn13(text: &str) -> bool {
    let worths: Option<Vec<u32>> = digits_of(text).chars().map(|c| c.to_digit(10)).collect();
    worths.is_some_and(|all| {
        let weights = [1, 3].into_iter().cycle();
        let sum: u32 = weights
            .zip(&all)
            .map(|(weight, worth)| weight * worth)
            .sum();
        all.len() == 13 && sum.is_multiple_of(10)
    })
}

fn is_credit_card(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
    let doubled = |(i, digit): (usize, &u32)| match i % 2 {
        0 => *digit,
        _ => digit * 2 / 10 + digit * 2 % 10,
    };
    let sum: u32 = digits.iter().rev().enumerate().map(doubled).sum();
    (13..=16).contains(&digits.len()) && sum.is_multiple_of(10)
}

fn is_date(text: &str) -> bool {
    text.len() == 10 && time::parse(&format!("{text}T00:00:00Z")).is_some()
}

fn is_date_time(text: &str) -> bool {
    let text = text.to_lowercase();
    let Some((date, rest)) = text.split_once('t') else {
        return false;
    };
    is_date(date)
        && TIME
            .captures(rest)
            .is_some_and(|found| &found[1] <= "23" && &found[2] <= "59" && &found[3] <= "59")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_tell_good_from_bad() {
        for (format, good, bad) in [
            ("uri", "https://a.b/c", "a b"),
            ("email", "a@b.c", "a@"),
            ("hostname", "a.example", "-a"),
            ("ipv4", "10.0.0.1", "10.0.0"),
            ("ipv6", "fd00::1", "10.0.0.1"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("mac", "00:11:22:33:44:55", "00:11:22"),
            (
                "uuid4",
                "f47ac10b-58cc-4372-a567-0e02b2c3d479",
                "f47ac10b-58cc-3372-a567-0e02b2c3d479",
            ),
            ("isbn10", "0321751043", "0321751044"),
            ("isbn13", "978-0321751041", "978-0321751042"),
            ("hexcolor", "#fff", "#ffff"),
            ("rgbcolor", "rgb(1, 2, 3)", "rgb(1,2,333)"),
            ("byte", "YQ==", "YQ="),
            ("date", "2020-02-29", "2021-02-29"),
            ("date-time", "2020-01-01T00:00:00Z", "2020-01-01T24:00:00Z"),
            ("duration", "1h3m", "1x"),
            ("k8s-short-name", "a-b", "A"),
        ] {
            assert!(conforms(format, good), "{format} {good}");
            assert!(!conforms(format, bad), "{format} {bad}");
        }
        assert!(conforms("no such format", "anything"));
    }
}
