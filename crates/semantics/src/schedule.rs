//! Cron schedules: five fields with names, ranges and steps, the `@` forms, a time zone in front.
//! Specified by the parser that CronJob uses upstream (robfig/cron v3, `ParseStandard`); validation
//! and the controller read the same text by this one parser.

use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, ToSpan};
use keelson_machinery::go::quote;
use thiserror::Error;

use crate::duration::{self, DurationError};

/// The texts are those that clients see in `spec.schedule: Invalid value`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ScheduleError {
    #[error("empty spec string")]
    Empty,
    #[error("provided bad location {0}: unknown time zone {0}")]
    Zone(String),
    #[error("unrecognized descriptor: {0}")]
    Descriptor(String),
    #[error("failed to parse duration {descriptor}: {source}")]
    Every {
        descriptor: String,
        // Its text is a part of the message, as clients know it.
        source: DurationError,
    },
    #[error("expected exactly 5 fields, found {}: [{}]", .0.len(), .0.join(" "))]
    Fields(Vec<String>),
    #[error("too many hyphens: {0}")]
    Hyphens(String),
    #[error("too many slashes: {0}")]
    Slashes(String),
    #[error("failed to parse int from {text}: strconv.Atoi: parsing {}: {reason}", quote(.text))]
    Number { text: String, reason: &'static str },
    #[error("negative number ({number}) not allowed: {text}")]
    Negative { number: i64, text: String },
    #[error("beginning of range ({start}) below minimum ({low}): {text}")]
    Below { start: u64, low: u64, text: String },
    #[error("end of range ({end}) above maximum ({high}): {text}")]
    Above { end: u64, high: u64, text: String },
    #[error("beginning of range ({start}) beyond end of range ({end}): {text}")]
    Reversed { start: u64, end: u64, text: String },
    #[error("step of range should be a positive number: {0}")]
    Step(String),
}

/// When a CronJob is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    times: Times,
    /// That of the text itself; it wins over the CronJob's.
    zone: Option<TimeZone>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Times {
    EverySeconds(i64),
    Fields(Box<Fields>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Fields {
    minute: Set,
    hour: Set,
    day: Set,
    month: Set,
    weekday: Set,
}

/// The values of a field as bits, and whether it is unrestricted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Set {
    bits: u64,
    star: bool,
}

struct Bounds {
    low: u64,
    high: u64,
    /// Names of the values from `low` on.
    names: &'static [&'static str],
}

const MINUTES: Bounds = bounds(0, 59, &[]);
const HOURS: Bounds = bounds(0, 23, &[]);
const DAYS: Bounds = bounds(1, 31, &[]);
const MONTHS: Bounds = bounds(
    1,
    12,
    &[
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ],
);
const WEEKDAYS: Bounds = bounds(0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]);

const fn bounds(low: u64, high: u64, names: &'static [&'static str]) -> Bounds {
    Bounds { low, high, names }
}

/// No schedule is looked for further ahead.
const HORIZON_YEARS: i16 = 5;

impl Schedule {
    pub fn parse(text: &str) -> Result<Self, ScheduleError> {
        if text.is_empty() {
            return Err(ScheduleError::Empty);
        }
        let (zone, text) = match text
            .strip_prefix("TZ=")
            .or_else(|| text.strip_prefix("CRON_TZ="))
        {
            Some(rest) => {
                let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                let zone = location(name).ok_or_else(|| ScheduleError::Zone(name.to_owned()))?;
                (zone, rest.trim())
            }
            None => (None, text),
        };
        let times = match text.strip_prefix('@') {
            Some(_) => descriptor(text)?,
            None => fields(text)?,
        };
        Ok(Self { times, zone })
    }

    /// The first time after `after`, or `None` when there is none within five years. Times that
    /// the clock skips do not come; those that it repeats come twice.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match &self.times {
            Times::EverySeconds(seconds) => {
                let at = after
                    .checked_add(SignedDuration::from_secs(*seconds))
                    .ok()?;
                Timestamp::from_second(at.as_second()).ok()
            }
            Times::Fields(fields) => fields.next(after, self.zone.as_ref().unwrap_or(zone)),
        }
    }
}

/// The zone of the name, or that of the machine.
fn location(name: &str) -> Option<Option<TimeZone>> {
    match name {
        "" | "UTC" => Some(Some(TimeZone::UTC)),
        "Local" => Some(None),
        name => TimeZone::get(name).ok().map(Some),
    }
}

fn descriptor(text: &str) -> Result<Times, ScheduleError> {
    match text {
        "@yearly" | "@annually" => fields("0 0 1 1 *"),
        "@monthly" => fields("0 0 1 * *"),
        "@weekly" => fields("0 0 * * 0"),
        "@daily" | "@midnight" => fields("0 0 * * *"),
        "@hourly" => fields("0 * * * *"),
        _ => {
            let span = text
                .strip_prefix("@every ")
                .ok_or_else(|| ScheduleError::Descriptor(text.to_owned()))?;
            let ns = duration::parse_ns(span).map_err(|source| ScheduleError::Every {
                descriptor: text.to_owned(),
                source,
            })?;
            Ok(Times::EverySeconds((ns / 1_000_000_000).max(1)))
        }
    }
}

fn fields(text: &str) -> Result<Times, ScheduleError> {
    let parts: Vec<&str> = text.split_whitespace().collect();
    let [minute, hour, day, month, weekday] = parts[..] else {
        let parts = parts.into_iter().map(str::to_owned).collect();
        return Err(ScheduleError::Fields(parts));
    };
    Ok(Times::Fields(Box::new(Fields {
        minute: set(minute, &MINUTES)?,
        hour: set(hour, &HOURS)?,
        day: set(day, &DAYS)?,
        month: set(month, &MONTHS)?,
        weekday: set(weekday, &WEEKDAYS)?,
    })))
}

fn set(field: &str, bounds: &Bounds) -> Result<Set, ScheduleError> {
    let mut set = Set::default();
    for part in field.split(',').filter(|part| !part.is_empty()) {
        let own = range(part, bounds)?;
        set.bits |= own.bits;
        set.star |= own.star;
    }
    Ok(set)
}

/// `*`, `n`, `n-m`, each with `/step`; `n/step` goes on to the end.
fn range(text: &str, bounds: &Bounds) -> Result<Set, ScheduleError> {
    let owned = || text.to_owned();
    let pieces: Vec<&str> = text.split('/').collect();
    let ends: Vec<&str> = pieces[0].split('-').collect();
    let unbounded = matches!(ends[0], "*" | "?");
    let (start, mut end) = match ends[..] {
        _ if unbounded => (bounds.low, bounds.high),
        [only] => {
            let only = value(only, bounds)?;
            (only, only)
        }
        [first, last] => (value(first, bounds)?, value(last, bounds)?),
        _ => return Err(ScheduleError::Hyphens(owned())),
    };
    let step = match pieces[..] {
        [_] => 1,
        [_, step] => number(step)?,
        _ => return Err(ScheduleError::Slashes(owned())),
    };
    if pieces.len() == 2 && ends.len() == 1 {
        end = bounds.high;
    }
    if start < bounds.low {
        let low = bounds.low;
        let text = owned();
        return Err(ScheduleError::Below { start, low, text });
    }
    if end > bounds.high {
        let high = bounds.high;
        let text = owned();
        return Err(ScheduleError::Above { end, high, text });
    }
    if start > end {
        let text = owned();
        return Err(ScheduleError::Reversed { start, end, text });
    }
    if step == 0 {
        return Err(ScheduleError::Step(owned()));
    }
    let bits = (start..=end)
        .filter(|n| (n - start).is_multiple_of(step))
        .fold(0, |bits, n| bits | 1 << n);
    let star = unbounded && step == 1;
    Ok(Set { bits, star })
}

fn value(text: &str, bounds: &Bounds) -> Result<u64, ScheduleError> {
    let lower = text.to_lowercase();
    match bounds.names.iter().position(|name| *name == lower) {
        Some(position) => Ok(bounds.low + position as u64),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u64, ScheduleError> {
    let parsed: i64 =
        text.parse()
            .map_err(|error: std::num::ParseIntError| ScheduleError::Number {
                text: text.to_owned(),
                reason: match error.kind() {
                    std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => {
                        "value out of range"
                    }
                    _ => "invalid syntax",
                },
            })?;
    u64::try_from(parsed).map_err(|_| ScheduleError::Negative {
        number: parsed,
        text: text.to_owned(),
    })
}

impl Set {
    fn has(self, value: i8) -> bool {
        u32::try_from(value).is_ok_and(|value| self.bits & (1 << value) != 0)
    }

    fn values(self) -> impl Iterator<Item = i8> {
        (0..60).filter(move |value| self.has(*value))
    }
}

impl Fields {
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let first = after.to_zoned(zone.clone()).date();
        let last_year = first.year().saturating_add(HORIZON_YEARS);
        let mut date = first;
        while date.year() <= last_year {
            if self.matches_day(date)
                && let Some(at) = self.next_of_day(date, after, zone)
            {
                return Some(at);
            }
            date = date.checked_add(1.day()).ok()?;
        }
        None
    }

    fn next_of_day(&self, date: Date, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        // Where the clock is set back, a later wall time can come before the repeated ones end.
        let mut repeated: Option<Timestamp> = None;
        for hour in self.hour.values() {
            for minute in self.minute.values() {
                let civil: DateTime = date.at(hour, minute, 0, 0);
                let offsets = zone.to_ambiguous_timestamp(civil);
                let both = match offsets.offset() {
                    AmbiguousOffset::Unambiguous { offset } => [Some(offset), None],
                    AmbiguousOffset::Fold { before, after } => [Some(before), Some(after)],
                    AmbiguousOffset::Gap { .. } => continue,
                };
                let ambiguous = both[1].is_some();
                let due = both
                    .into_iter()
                    .flatten()
                    .filter_map(|offset| offset.to_timestamp(civil).ok())
                    .filter(|at| *at > after)
                    .min();
                repeated = repeated.into_iter().chain(due).min();
                if due.is_some() && !ambiguous {
                    return repeated;
                }
            }
        }
        repeated
    }

    /// A day matches either of the two fields when both are restricted, and both otherwise.
    fn matches_day(&self, date: Date) -> bool {
        if !self.month.has(date.month()) {
            return false;
        }
        let day = self.day.has(date.day());
        let weekday = self.weekday.has(date.weekday().to_sunday_zero_offset());
        if self.day.star || self.weekday.star {
            day && weekday
        } else {
            day || weekday
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each line is what upstream's parser said: the schedule, then its error, or a zone, a time
    /// and the time that comes next (`-` for none).
    #[test]
    fn schedules_are_read_as_upstream_reads_them() {
        let mut seen = 0;
        for line in include_str!("cases/schedules.tsv").lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let text = fields[0];
            match fields[1..] {
                ["error", message] => {
                    let error = Schedule::parse(text).unwrap_err();
                    assert_eq!(error.to_string(), message, "{text:?}");
                }
                [zone, after, next] => {
                    let zone = TimeZone::get(zone).unwrap();
                    let found = Schedule::parse(text)
                        .unwrap()
                        .next(after.parse().unwrap(), &zone)
                        .map_or("-".to_owned(), |at| at.to_string());
                    assert_eq!(found, next, "{line}");
                }
                _ => panic!("{line}"),
            }
            seen += 1;
        }
        assert!(seen > 250, "{seen}");
    }

    #[test]
    fn numbers_beyond_all_bounds_are_refused() {
        for (text, message) in [
            (
                "99999999999999999999 * * * *",
                "failed to parse int from 99999999999999999999: strconv.Atoi: parsing \"99999999999999999999\": value out of range",
            ),
            ("*/-2 * * * *", "negative number (-2) not allowed: -2"),
            ("TZ=UTC", "expected exactly 5 fields, found 0: []"),
        ] {
            assert_eq!(Schedule::parse(text).unwrap_err().to_string(), message);
        }
    }
}
