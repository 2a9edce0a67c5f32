//! Times and durations as texts.

use jiff::SignedDuration;
use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::{Offset, TimeZone};
use std::cmp::Ordering;

/// Seconds of the first and the last moment that a timestamp can be: years 1 to 9999.
pub(crate) const FIRST_SECOND: i64 = -62_135_596_800;
pub(crate) const LAST_SECOND: i64 = 253_402_300_799;

const EPOCH: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);

/// A moment of the years 1 to 9999. (A `jiff::Timestamp` ends a day before the last year does.)
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    utc: DateTime,
    /// How far from UTC it was written, in seconds; shows in its text alone.
    offset: i32,
}

impl Moment {
    pub fn utc(utc: DateTime) -> Moment {
        Moment { utc, offset: 0 }
    }

    /// The moment some nanoseconds later; `None` when there is no such moment.
    pub(crate) fn after(self, nanos: i64) -> Option<Moment> {
        let utc = self
            .utc
            .checked_add(SignedDuration::from_nanos(nanos))
            .ok()?;
        Some(Moment { utc, ..self }).filter(|t| in_range(*t))
    }
}

impl PartialEq for Moment {
    fn eq(&self, other: &Moment) -> bool {
        self.utc == other.utc
    }
}

impl Eq for Moment {}

impl PartialOrd for Moment {
    fn partial_cmp(&self, other: &Moment) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Moment {
    fn cmp(&self, other: &Moment) -> Ordering {
        self.utc.cmp(&other.utc)
    }
}

/// Nanoseconds since 1970.
pub(crate) fn nanos(t: Moment) -> i128 {
    t.utc.duration_since(EPOCH).as_nanos()
}

/// Whole seconds since 1970, rounded down.
pub(crate) fn seconds(t: Moment) -> i64 {
    let since = nanos(t).div_euclid(1_000_000_000);
    i64::try_from(since).unwrap_or(i64::MAX)
}

pub(crate) fn from_seconds(s: i64) -> Option<Moment> {
    let utc = EPOCH.checked_add(SignedDuration::from_secs(s)).ok();
    utc.map(Moment::utc)
}

pub(crate) fn in_range(t: Moment) -> bool {
    (FIRST_SECOND..=LAST_SECOND).contains(&seconds(t))
}

const UNITS: &[(&str, i64)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// `1h2m3.5s` in nanoseconds.
pub(crate) fn parse_duration(s: &str) -> Option<i64> {
    let (negative, mut rest) = match s.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, s.strip_prefix('+').unwrap_or(s)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let scale = UNITS.iter().find(|(name, _)| *name == unit)?.1;
        total = total.checked_add(scaled(number, scale)?)?;
        if total > i128::from(i64::MAX) + 1 {
            return None;
        }
        rest = after;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// A decimal number of units, in nanoseconds.
fn scaled(number: &str, scale: i64) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let scale = i128::from(scale);
    let value: i128 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    // Digits beyond the eighteenth are below a nanosecond.
    let digits = &fraction[..fraction.len().min(18)];
    let part: i128 = if digits.is_empty() {
        0
    } else {
        digits.parse().ok()?
    };
    let width = u32::try_from(digits.len()).ok()?;
    value
        .checked_mul(scale)?
        .checked_add(part.checked_mul(scale)? / 10i128.pow(width))
}

/// Durations of OpenAPI: as above, or `3 days`.
pub(crate) fn parse_openapi_duration(s: &str) -> Option<i64> {
    if let Some(d) = parse_duration(s) {
        return Some(d);
    }
    let trimmed = s.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit())?;
    let count: i64 = trimmed[..end].parse().ok()?;
    let unit = match trimmed[end..].trim().to_ascii_lowercase().as_str() {
        "ns" | "nano" | "nanos" | "nanosecond" | "nanoseconds" => 1,
        "us" | "\u{b5}s" | "micro" | "micros" | "microsecond" | "microseconds" => 1_000,
        "ms" | "milli" | "millis" | "millisecond" | "milliseconds" => 1_000_000,
        "s" | "sec" | "secs" | "second" | "seconds" => 1_000_000_000,
        "m" | "min" | "mins" | "minute" | "minutes" => 60_000_000_000,
        "h" | "hr" | "hrs" | "hour" | "hours" => 3_600_000_000_000,
        "d" | "day" | "days" => 86_400_000_000_000,
        "w" | "wk" | "wks" | "week" | "weeks" => 604_800_000_000_000,
        _ => return None,
    };
    count.checked_mul(unit)
}

/// In seconds, as short as they can be written.
pub(crate) fn show_duration(nanos: i64) -> String {
    let seconds = (nanos / 1_000_000_000) as f64 + (nanos % 1_000_000_000) as f64 / 1e9;
    format!("{}s", crate::number::plain(seconds))
}

/// RFC 3339.
pub(crate) fn parse_timestamp(s: &str) -> Option<Moment> {
    let b = s.as_bytes();
    let digits = |range: std::ops::Range<usize>| {
        let text = s.get(range)?;
        text.bytes()
            .all(|c| c.is_ascii_digit())
            .then(|| text.parse::<i32>().ok())?
    };
    if b.len() < 20
        || b[4] != b'-'
        || b[7] != b'-'
        || b[10] != b'T'
        || b[13] != b':'
        || b[16] != b':'
    {
        return None;
    }
    let (mut rest, mut nanos) = (s.get(19..)?, 0);
    if let Some(fraction) = rest.strip_prefix(['.', ',']) {
        let end = fraction.find(|c: char| !c.is_ascii_digit())?;
        if end == 0 {
            return None;
        }
        let shown = format!("{:0<9}", &fraction[..end.min(9)]);
        nanos = shown.parse().ok()?;
        rest = &fraction[end..];
    }
    let date = DateTime::new(
        i16::try_from(digits(0..4)?).ok()?,
        i8::try_from(digits(5..7)?).ok()?,
        i8::try_from(digits(8..10)?).ok()?,
        i8::try_from(digits(11..13)?).ok()?,
        i8::try_from(digits(14..16)?).ok()?,
        i8::try_from(digits(17..19)?).ok()?,
        nanos,
    )
    .ok()?;
    let offset = parse_offset(rest)?.seconds();
    let utc = date.checked_sub(SignedDuration::from_secs(offset.into()));
    utc.ok().map(|utc| Moment { utc, offset })
}

/// `Z` or `±hh:mm`.
fn parse_offset(s: &str) -> Option<Offset> {
    if s == "Z" {
        return Some(Offset::UTC);
    }
    let sign = match s.chars().next()? {
        '+' => 1,
        '-' => -1,
        _ => return None,
    };
    let (hours, minutes) = s[1..].split_once(':')?;
    if hours.len() != 2 || minutes.len() != 2 {
        return None;
    }
    let hours: i32 = hours.parse().ok().filter(|h| *h <= 24)?;
    let minutes: i32 = minutes.parse().ok().filter(|m| *m < 60)?;
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok()
}

/// `2006-01-02`, at midnight UTC.
pub(crate) fn parse_date(s: &str) -> Option<Moment> {
    if s.len() != 10 {
        return None;
    }
    let date: Date = s.parse().ok()?;
    Some(Moment::utc(date.at(0, 0, 0, 0)))
}

/// RFC 3339 in UTC.
pub(crate) fn show_utc(t: Moment) -> String {
    show_timestamp(Moment::utc(t.utc))
}

/// RFC 3339, as short as it can be written, as far from UTC as it was read.
pub(crate) fn show_timestamp(t: Moment) -> String {
    let date = shifted(t.utc, t.offset);
    let mut out = format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        date.year(),
        date.month(),
        date.day(),
        date.hour(),
        date.minute(),
        date.second()
    );
    if date.subsec_nanosecond() != 0 {
        let fraction = format!("{:09}", date.subsec_nanosecond());
        out.push('.');
        out.push_str(fraction.trim_end_matches('0'));
    }
    if t.offset == 0 {
        out.push('Z');
    } else {
        let sign = if t.offset < 0 { '-' } else { '+' };
        let minutes = t.offset.abs() / 60;
        out.push_str(&format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60));
    }
    out
}

/// A time in a zone: a name of the time zone database, or an offset `±hh:mm`.
pub(crate) fn in_zone(t: Moment, zone: &str) -> Result<DateTime, String> {
    let Some((hours, minutes)) = zone.split_once(':') else {
        let zone = match zone {
            "" | "UTC" => return Ok(t.utc),
            "Local" => TimeZone::system(),
            name => TimeZone::get(name).map_err(|_| format!("unknown time zone {name}"))?,
        };
        let at = Timestamp::from_nanosecond(nanos(t)).unwrap_or(Timestamp::MAX);
        return Ok(shifted(t.utc, zone.to_offset(at).seconds()));
    };
    let number = |s: &str| {
        s.parse::<i32>()
            .map_err(|_| format!("strconv.Atoi: parsing {s:?}: invalid syntax"))
    };
    let hours = number(hours)?;
    let minutes = number(minutes)?;
    let negative = zone.starts_with('-');
    let minutes = if negative { -minutes } else { minutes };
    let seconds = hours
        .checked_mul(3600)
        .and_then(|h| h.checked_add(minutes.checked_mul(60)?));
    match seconds.filter(|s| s.abs() <= 100 * 3600) {
        Some(seconds) => Ok(shifted(t.utc, seconds)),
        None => Err(format!("unknown time zone {zone}")),
    }
}

fn shifted(t: DateTime, seconds: i32) -> DateTime {
    t.checked_add(SignedDuration::from_secs(seconds.into()))
        .unwrap_or(t)
}
