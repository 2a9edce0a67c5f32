//! Functions of the language and of Kubernetes.
//!
//! A library is a file with a table of its overloads and a row in [`LIBRARIES`].

mod comprehensions;
mod conversions;
mod declare;
mod optional;
pub(crate) mod regular;
mod standard;
mod times;

pub(crate) use comprehensions::insert_new;
pub(crate) use declare::{Binding, Function, Functions, Overload, Row, call};
pub(crate) use standard::set_key;

use crate::environment::Version;
use crate::value::{Value, ValueResult};

/// A set of functions that came with a version of Kubernetes.
pub(crate) struct Library {
    pub(crate) since: Version,
    pub(crate) rows: &'static [Row],
}

const fn library(minor: u16, rows: &'static [Row]) -> Library {
    let since = Version::new(1, minor);
    Library { since, rows }
}

/// Every library, with the minor version that introduced it; 0 for those that were always there.
const LIBRARIES: &[Library] = &[
    library(0, standard::ROWS),
    library(0, times::ROWS),
    library(28, optional::ROWS),
    library(32, comprehensions::ROWS),
];

/// What a call costs by a library's own reckoning.
pub(crate) fn tracked_cost(
    _overload: &str,
    _args: &[ValueResult<'_>],
    _result: &ValueResult<'_>,
) -> Option<u64> {
    None
}

/// How long the pattern of a named format can be.
pub(crate) fn format_pattern_size(_format: &Value<'_>) -> Option<u64> {
    None
}
