//! The only place that reads the wall clock; plans receive the instant as an argument.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// An API timestamp. The API keeps whole seconds, so a status that is computed twice within one
/// second compares equal to what was stored.
pub(crate) fn stamp(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// `at + seconds`, saturating at the end of time.
pub(crate) fn after(at: Timestamp, seconds: i64) -> Timestamp {
    at.checked_add(SignedDuration::from_secs(seconds))
        .unwrap_or(Timestamp::MAX)
}

/// How long from `now` until `at`, or `None` when it has passed.
pub(crate) fn until(now: Timestamp, at: Timestamp) -> Option<Duration> {
    let left = at.duration_since(now);
    if left.is_positive() {
        Duration::try_from(left).ok()
    } else {
        None
    }
}

/// The sooner of two optional delays.
pub(crate) fn sooner(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
