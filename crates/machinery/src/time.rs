//! Times as the API writes them: RFC 3339 in UTC, whole seconds (`Time`) or microseconds
//! (`MicroTime`).

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Now, in whole seconds.
pub fn now() -> String {
    format(Timestamp::now())
}

/// Now, in microseconds.
pub fn now_micro() -> String {
    format_micro(Timestamp::now())
}

/// Seconds since the epoch.
pub fn now_unix() -> i64 {
    Timestamp::now().as_second()
}

pub fn format(t: Timestamp) -> String {
    t.to_zoned(TimeZone::UTC)
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

pub fn format_micro(t: Timestamp) -> String {
    t.to_zoned(TimeZone::UTC)
        .strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
        .to_string()
}

pub fn format_unix(seconds: i64) -> String {
    Timestamp::from_second(seconds)
        .map(format)
        .unwrap_or_default()
}

/// An RFC 3339 time with any offset and fraction.
pub fn parse(s: &str) -> Option<Timestamp> {
    // The parser also takes what RFC 3339 does not (a space for the T, no seconds, week dates).
    let b = s.as_bytes();
    let shaped = b.len() >= 20
        && b[4] == b'-'
        && b[7] == b'-'
        && b[10] == b'T'
        && b[13] == b':'
        && b[16] == b':'
        && b[17..19].iter().all(u8::is_ascii_digit);
    if !shaped || b.len() > 64 {
        return None;
    }
    s.parse().ok()
}

pub fn parse_unix(s: &str) -> Option<i64> {
    parse(s).map(|t| t.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let t = parse("2026-01-02T03:04:05.123456789+01:00").unwrap();
        assert_eq!(format(t), "2026-01-02T02:04:05Z");
        assert_eq!(format_micro(t), "2026-01-02T02:04:05.123456Z");
        assert!(parse("2026-01-02").is_none());
        assert!(parse("2026-01-02 03:04:05Z").is_none());
        assert!(parse("").is_none());
        assert_eq!(parse_unix("1970-01-01T00:01:00Z"), Some(60));
    }
}
