//! Durations as Go writes them: `1h30m`, `-1.5s`, `300ms`. Specified by Go's `time.ParseDuration`.

use keelson_machinery::go::quote;
use thiserror::Error;

/// The texts are those of Go.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DurationError {
    #[error("time: invalid duration {}", quote(.0))]
    Invalid(String),
    #[error("time: missing unit in duration {}", quote(.0))]
    MissingUnit(String),
    #[error("time: unknown unit {} in duration {}", quote(.unit), quote(.text))]
    UnknownUnit { unit: String, text: String },
}

/// Nanoseconds of each unit; the micro sign and the Greek letter are both in use.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// The duration in nanoseconds.
pub fn parse_ns(text: &str) -> Result<i64, DurationError> {
    let invalid = || DurationError::Invalid(text.to_owned());
    let (negative, magnitude) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if magnitude == "0" {
        return Ok(0);
    }
    if magnitude.is_empty() {
        return Err(invalid());
    }
    let mut sum = 0_u128;
    let mut rest = magnitude;
    while !rest.is_empty() {
        let (whole, after_whole) = digits(rest);
        let (fraction, after) = match after_whole.strip_prefix('.') {
            Some(after_point) => digits(after_point),
            None => ("", after_whole),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let end = after
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(after.len());
        let unit = &after[..end];
        if unit.is_empty() {
            return Err(DurationError::MissingUnit(text.to_owned()));
        }
        let Some((_, unit_ns)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(DurationError::UnknownUnit {
                unit: unit.to_owned(),
                text: text.to_owned(),
            });
        };
        let unit_ns = u128::from(*unit_ns);
        let whole: u128 = if whole.is_empty() {
            0
        } else {
            whole.parse().map_err(|_| invalid())?
        };
        let part = scaled(fraction, unit_ns as f64) as u128;
        sum = whole
            .checked_mul(unit_ns)
            .and_then(|ns| ns.checked_add(part))
            .and_then(|ns| ns.checked_add(sum))
            .ok_or_else(invalid)?;
        rest = &after[end..];
    }
    let sum = i128::try_from(sum).map_err(|_| invalid())?;
    i64::try_from(if negative { -sum } else { sum }).map_err(|_| invalid())
}

/// The fraction of a unit, in floating point as Go has it: 0.3333333333333333333h is 20 minutes.
/// Digits beyond the range of an integer are dropped.
fn scaled(fraction: &str, unit_ns: f64) -> f64 {
    let (mut number, mut scale) = (0_u64, 1.0);
    for digit in fraction.bytes().map(|byte| u64::from(byte - b'0')) {
        if number > i64::MAX as u64 / 10 {
            break;
        }
        number = number * 10 + digit;
        scale *= 10.0;
    }
    number as f64 * (unit_ns / scale)
}

fn digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(end)
}

/// A duration that may not be negative.
pub fn parse(text: &str) -> Result<std::time::Duration, DurationError> {
    let ns = parse_ns(text)?;
    let ns = u64::try_from(ns).map_err(|_| DurationError::Invalid(text.to_owned()))?;
    Ok(std::time::Duration::from_nanos(ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each line is what Go's own parser said: the quoted text, then nanoseconds or its error.
    #[test]
    fn durations_are_read_as_go_reads_them() {
        let mut seen = 0;
        for line in include_str!("cases/durations.tsv").lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let text: String = serde_json::from_str(fields[0]).unwrap();
            match fields[1..] {
                ["error", message] => {
                    assert_eq!(parse_ns(&text).unwrap_err().to_string(), message, "{text}");
                }
                [ns] => assert_eq!(parse_ns(&text), Ok(ns.parse().unwrap()), "{text}"),
                _ => panic!("{line}"),
            }
            seen += 1;
        }
        assert_eq!(seen, 31);
    }

    #[test]
    fn waiting_times_are_not_negative() {
        assert_eq!(parse("1m"), Ok(std::time::Duration::from_secs(60)));
        assert!(parse("-1m").is_err());
    }
}
