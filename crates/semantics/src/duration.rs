//! Durations as Go writes them (`1h30m`, `-1.5s`, `300ms`; specified by Go's `time.ParseDuration`),
//! and as tables show them to people (`5d3h`).

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

/// A duration as kubectl shows it: two units at most, the smaller one dropped as it grows.
pub fn human(seconds: i64) -> String {
    let pair = |big: i64, big_unit: char, small: i64, small_unit: char| {
        if small == 0 {
            format!("{big}{big_unit}")
        } else {
            format!("{big}{big_unit}{small}{small_unit}")
        }
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    match seconds {
        s if s < -1 => "<invalid>".to_owned(),
        s if s < 0 => "0s".to_owned(),
        s if s < 120 => format!("{s}s"),
        s if minutes < 10 => pair(minutes, 'm', s % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => pair(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 24 * 8 => pair(days, 'd', hours % 24, 'h'),
        _ if hours < 24 * 365 * 2 => format!("{days}d"),
        _ if hours < 24 * 365 * 8 => pair(years, 'y', days % 365, 'd'),
        _ => format!("{years}y"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_show_two_units_at_most() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (599, "9m59s"),
            (600, "10m"),
            (179 * 60, "179m"),
            (180 * 60, "3h"),
            (185 * 60, "3h5m"),
            (9 * 3600, "9h"),
            (47 * 3600, "47h"),
            (48 * 3600, "2d"),
            (50 * 3600, "2d2h"),
            (9 * 86400, "9d"),
            (3 * 365 * 86400, "3y"),
            (3 * 365 * 86400 + 86400 * 4, "3y4d"),
        ] {
            assert_eq!(human(seconds), text, "{seconds}");
        }
    }

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
