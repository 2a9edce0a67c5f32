//! Cron schedules: the five fields, their names and steps, and the `@` forms. Pure.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use thiserror::Error;

#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub(crate) struct ScheduleError(String);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Schedule {
    Every(i64),
    Fields(Box<Fields>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fields {
    minute: u64,
    hour: u64,
    day: u64,
    month: u64,
    weekday: u64,
    /// A day matches either day field when both are restricted, and both when one is `*`.
    day_is_star: bool,
    weekday_is_star: bool,
}

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// No schedule is looked for further ahead: 29 February comes within eight years.
const HORIZON_DAYS: usize = 8 * 366;

impl Schedule {
    pub(crate) fn parse(text: &str) -> Result<Self, ScheduleError> {
        let text = text.trim();
        let fields = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            _ => match text.strip_prefix("@every ") {
                Some(span) => return every(span),
                None => text,
            },
        };
        let parts: Vec<&str> = fields.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = parts[..] else {
            return Err(ScheduleError(format!(
                "expected exactly 5 fields, found {}: {parts:?}",
                parts.len()
            )));
        };
        let (weekday_bits, weekday_is_star) = field(weekday, 0, 7, &DAYS, 0)?;
        let (day_bits, day_is_star) = field(day, 1, 31, &[], 0)?;
        Ok(Self::Fields(Box::new(Fields {
            minute: field(minute, 0, 59, &[], 0)?.0,
            hour: field(hour, 0, 23, &[], 0)?.0,
            day: day_bits,
            month: field(month, 1, 12, &MONTHS, 1)?.0,
            // Sunday is 0 and 7.
            weekday: weekday_bits | (weekday_bits >> 7),
            day_is_star,
            weekday_is_star,
        })))
    }

    /// The first time after `after`, or `None` when there is none in sight.
    pub(crate) fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Every(seconds) => {
                let at = after
                    .checked_add(SignedDuration::from_secs(*seconds))
                    .ok()?;
                Timestamp::from_second(at.as_second()).ok()
            }
            Self::Fields(fields) => fields.next(after, zone),
        }
    }
}

impl Fields {
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let local = after.to_zoned(zone.clone()).datetime();
        let mut date = local.date();
        for _ in 0..HORIZON_DAYS {
            if self.matches_day(date) {
                for hour in bits(self.hour) {
                    for minute in bits(self.minute) {
                        let civil: DateTime = date.at(hour, minute, 0, 0);
                        // Times that a clock change skips move forward, as a late run does.
                        let at = civil.to_zoned(zone.clone()).ok()?.timestamp();
                        if at > after {
                            return Some(at);
                        }
                    }
                }
            }
            date = date.checked_add(1.day()).ok()?;
        }
        None
    }

    fn matches_day(&self, date: Date) -> bool {
        let has = |bits: u64, n: i8| n >= 0 && bits & (1 << n) != 0;
        if !has(self.month, date.month()) {
            return false;
        }
        let day = has(self.day, date.day());
        let weekday = has(self.weekday, date.weekday().to_sunday_zero_offset());
        if self.day_is_star || self.weekday_is_star {
            day && weekday
        } else {
            day || weekday
        }
    }
}

fn bits(set: u64) -> impl Iterator<Item = i8> {
    (0..60).filter(move |n| set & (1 << n) != 0)
}

fn every(span: &str) -> Result<Schedule, ScheduleError> {
    let bad = || ScheduleError(format!("failed to parse duration @every {span}"));
    let mut seconds = 0_i64;
    let mut number = String::new();
    let mut seen = false;
    for c in span.trim().chars() {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        let unit = match c {
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return Err(bad()),
        };
        let count: i64 = number.parse().map_err(|_| bad())?;
        seconds = count
            .checked_mul(unit)
            .and_then(|n| seconds.checked_add(n))
            .ok_or_else(bad)?;
        number.clear();
        seen = true;
    }
    if !seen || !number.is_empty() {
        return Err(bad());
    }
    Ok(Schedule::Every(seconds.max(1)))
}

/// One field as a set of bits, and whether it is unrestricted.
fn field(
    text: &str,
    low: u32,
    high: u32,
    names: &[&str],
    base: u32,
) -> Result<(u64, bool), ScheduleError> {
    let mut set = 0_u64;
    let mut star = false;
    for part in text.split(',') {
        let bad = |why: &str| ScheduleError(format!("{why}: {part}"));
        let (range, step) = part
            .split_once('/')
            .map_or((part, None), |(range, step)| (range, Some(step)));
        let number = |word: &str| -> Result<u32, ScheduleError> {
            let lower = word.to_ascii_lowercase();
            if let Some(position) = names.iter().position(|n| *n == lower) {
                return Ok(u32::try_from(position).unwrap_or(0) + base);
            }
            word.parse().map_err(|_| bad("failed to parse int"))
        };
        let (first, last) = if range == "*" || range == "?" {
            star |= step.is_none();
            // Seven is only another name for Sunday.
            (low, if names.len() == 7 { 6 } else { high })
        } else if let Some((first, last)) = range.split_once('-') {
            (number(first)?, number(last)?)
        } else {
            let first = number(range)?;
            (first, if step.is_some() { high } else { first })
        };
        if first < low || last > high || first > last {
            return Err(bad("value out of range"));
        }
        let step: u32 = match step {
            None => 1,
            Some(step) => step
                .parse()
                .ok()
                .filter(|s| *s > 0)
                .ok_or_else(|| bad("bad step"))?,
        };
        let mut n = first;
        while n <= last {
            set |= 1 << n;
            n = n.saturating_add(step);
        }
    }
    Ok((set, star))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str) -> String {
        let schedule = Schedule::parse(schedule).unwrap();
        schedule
            .next(after.parse().unwrap(), &TimeZone::UTC)
            .unwrap()
            .to_string()
    }

    #[test]
    fn next_times() {
        let cases = [
            (
                "*/5 * * * *",
                "2026-01-01T00:03:00Z",
                "2026-01-01T00:05:00Z",
            ),
            (
                "*/5 * * * *",
                "2026-01-01T00:05:00Z",
                "2026-01-01T00:10:00Z",
            ),
            ("0 0 * * *", "2026-01-01T12:00:00Z", "2026-01-02T00:00:00Z"),
            ("@hourly", "2026-01-01T12:30:00Z", "2026-01-01T13:00:00Z"),
            ("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            (
                "0 9 * * MON-FRI",
                "2026-01-02T10:00:00Z",
                "2026-01-05T09:00:00Z",
            ),
            (
                "0 0 13 * fri",
                "2026-01-01T00:00:00Z",
                "2026-01-02T00:00:00Z",
            ),
            (
                "0 0 * jan 7",
                "2026-01-01T00:00:00Z",
                "2026-01-04T00:00:00Z",
            ),
            (
                "@every 1h30m",
                "2026-01-01T00:00:00Z",
                "2026-01-01T01:30:00Z",
            ),
            (
                "59 23 31 12 *",
                "2026-12-31T23:59:00Z",
                "2027-12-31T23:59:00Z",
            ),
        ];
        for (schedule, after, wanted) in cases {
            assert_eq!(next(schedule, after), wanted, "{schedule}");
        }
    }

    #[test]
    fn zones_shift_the_time() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let at = Schedule::parse("0 1 * * *")
            .unwrap()
            .next("2026-01-01T00:00:00Z".parse().unwrap(), &zone)
            .unwrap();
        assert_eq!(at.to_string(), "2026-01-01T23:00:00Z");
    }

    #[test]
    fn bad_schedules_are_refused() {
        for text in [
            "",
            "* * * *",
            "60 * * * *",
            "* * 0 * *",
            "a * * * *",
            "*/0 * * * *",
            "5-1 * * * *",
            "@every x",
            "@every 5",
        ] {
            assert!(Schedule::parse(text).is_err(), "{text}");
        }
        assert!(
            Schedule::parse("0 0 31 2 *")
                .unwrap()
                .next("2026-01-01T00:00:00Z".parse().unwrap(), &TimeZone::UTC)
                .is_none()
        );
    }
}
