//! Parts of times and durations.

use super::Row;
use super::declare::Binding::Own;
use crate::time;
use crate::value::{EvalError, Value, ValueResult};
use jiff::civil::DateTime;

#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    Row("getFullYear", "timestamp_to_year", "timestamp.() -> int", Own(full_year)),
    Row("getFullYear", "timestamp_to_year_with_tz", "timestamp.(string) -> int", Own(full_year)),
    Row("getMonth", "timestamp_to_month", "timestamp.() -> int", Own(month)),
    Row("getMonth", "timestamp_to_month_with_tz", "timestamp.(string) -> int", Own(month)),
    Row("getDayOfYear", "timestamp_to_day_of_year", "timestamp.() -> int", Own(day_of_year)),
    Row("getDayOfYear", "timestamp_to_day_of_year_with_tz", "timestamp.(string) -> int", Own(day_of_year)),
    Row("getDayOfMonth", "timestamp_to_day_of_month", "timestamp.() -> int", Own(day_of_month)),
    Row("getDayOfMonth", "timestamp_to_day_of_month_with_tz", "timestamp.(string) -> int", Own(day_of_month)),
    Row("getDate", "timestamp_to_day_of_month_1_based", "timestamp.() -> int", Own(date)),
    Row("getDate", "timestamp_to_day_of_month_1_based_with_tz", "timestamp.(string) -> int", Own(date)),
    Row("getDayOfWeek", "timestamp_to_day_of_week", "timestamp.() -> int", Own(day_of_week)),
    Row("getDayOfWeek", "timestamp_to_day_of_week_with_tz", "timestamp.(string) -> int", Own(day_of_week)),
    Row("getHours", "timestamp_to_hours", "timestamp.() -> int", Own(hours)),
    Row("getHours", "timestamp_to_hours_with_tz", "timestamp.(string) -> int", Own(hours)),
    Row("getHours", "duration_to_hours", "duration.() -> int", Own(hours)),
    Row("getMinutes", "timestamp_to_minutes", "timestamp.() -> int", Own(minutes)),
    Row("getMinutes", "timestamp_to_minutes_with_tz", "timestamp.(string) -> int", Own(minutes)),
    Row("getMinutes", "duration_to_minutes", "duration.() -> int", Own(minutes)),
    Row("getSeconds", "timestamp_to_seconds", "timestamp.() -> int", Own(seconds)),
    Row("getSeconds", "timestamp_to_seconds_tz", "timestamp.(string) -> int", Own(seconds)),
    Row("getSeconds", "duration_to_seconds", "duration.() -> int", Own(seconds)),
    Row("getMilliseconds", "timestamp_to_milliseconds", "timestamp.() -> int", Own(milliseconds)),
    Row("getMilliseconds", "timestamp_to_milliseconds_with_tz", "timestamp.(string) -> int", Own(milliseconds)),
    Row("getMilliseconds", "duration_to_milliseconds", "duration.() -> int", Own(milliseconds)),
];

/// A part of a time in the zone of the second argument, or in UTC.
fn part<'v>(args: &[Value<'v>], part: fn(DateTime) -> i64) -> ValueResult<'v> {
    let zone = match args.get(1) {
        Some(Value::String(zone)) => zone.as_str(),
        _ => "UTC",
    };
    match &args[0] {
        Value::Timestamp(t) => {
            let at = time::in_zone(*t, zone).map_err(EvalError::new)?;
            Ok(Value::Int(part(at)))
        }
        _ => Err(EvalError::no_such_overload()),
    }
}

/// A part of a time, or how often a unit of nanoseconds fits into a duration.
fn part_or_whole<'v>(
    args: &[Value<'v>],
    of_time: fn(DateTime) -> i64,
    unit: i64,
) -> ValueResult<'v> {
    match &args[0] {
        Value::Duration(d) => Ok(Value::Int(d / unit)),
        _ => part(args, of_time),
    }
}

fn full_year<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    part(args, |t| t.year().into())
}

fn month<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    part(args, |t| i64::from(t.month()) - 1)
}

fn day_of_year<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    part(args, |t| i64::from(t.day_of_year()) - 1)
}

fn day_of_month<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    part(args, |t| i64::from(t.day()) - 1)
}

fn date<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    part(args, |t| t.day().into())
}

fn day_of_week<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    part(args, |t| t.weekday().to_sunday_zero_offset().into())
}

fn hours<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    part_or_whole(args, |t| t.hour().into(), 3_600_000_000_000)
}

fn minutes<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    part_or_whole(args, |t| t.minute().into(), 60_000_000_000)
}

fn seconds<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    part_or_whole(args, |t| t.second().into(), 1_000_000_000)
}

fn milliseconds<'v>(args: &[Value<'v>]) -> ValueResult<'v> {
    part_or_whole(args, |t| t.millisecond().into(), 1_000_000)
}
