//! Functions of the language and of Kubernetes.
//!
//! A library is a file with a table of its overloads and a row in [`LIBRARIES`].

mod addresses;
mod authorization;
mod comprehensions;
mod conversions;
mod declare;
mod extended_lists;
pub(crate) mod formatting;
mod lists;
mod named_formats;
mod optional;
pub(crate) mod patches;
mod pattern;
mod quantities;
pub(crate) mod regular;
mod sets;
mod standard;
mod strings;
mod times;
mod urls;
mod versions;

pub(crate) use comprehensions::insert_new;
pub(crate) use declare::{Binding, Function, Functions, Overload, Row, call};
pub(crate) use named_formats::pattern_size as format_pattern_size;
pub use regular::regular_expression;
pub(crate) use standard::set_key;

use crate::environment::Version;
use crate::value::ValueResult;

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
    library(0, urls::ROWS),
    library(0, regular::ROWS),
    library(0, lists::ROWS),
    library(27, authorization::ROWS),
    library(28, optional::ROWS),
    library(28, quantities::ROWS),
    library(29, strings::ROWS),
    library(29, sets::ROWS),
    library(30, addresses::IP_ROWS),
    library(30, addresses::CIDR_ROWS),
    library(31, named_formats::ROWS),
    library(31, authorization::SELECTOR_ROWS),
    library(32, comprehensions::ROWS),
    library(33, versions::ROWS),
    library(34, extended_lists::ROWS),
];

/// What a call costs by a library's own reckoning.
pub(crate) fn tracked_cost(
    overload: &str,
    args: &[ValueResult<'_>],
    result: &ValueResult<'_>,
) -> Option<u64> {
    extended_lists::cost(overload, args, result).or_else(|| sets::cost(overload, args))
}
