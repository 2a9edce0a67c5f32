//! Indexes of a job's pods as one text: `0-2,5`.

use keelson_machinery::field::{ErrorList, FieldError};
use serde_json::Value;

use crate::check::At;
use crate::tree::Tree;

/// How many indexes a text such as `0-2,5` names.
pub(super) fn count(text: &str, completions: i64) -> Result<i64, String> {
    let (mut total, mut last) = (0, None);
    if text.is_empty() {
        return Ok(0);
    }
    let number = |s: &str| {
        s.parse::<i64>()
            .map_err(|_| format!("cannot convert string to integer for index: {s:?}"))
            .and_then(|n| {
                if n < 0 || n >= completions {
                    Err("too large index: ".to_owned() + &format!("{s:?}"))
                } else {
                    Ok(n)
                }
            })
    };
    for interval in text.split(',') {
        let (x, y) = match interval.split('-').collect::<Vec<_>>()[..] {
            [one] => (number(one)?, number(one)?),
            [from, to] => (number(from)?, number(to)?),
            _ => {
                return Err(format!(
                    "the fragment {interval:?} violates the requirement that an index interval can have at most two parts separated by '-'"
                ));
            }
        };
        if x > y || interval.contains('-') && x == y {
            return Err(format!("non-increasing order, previous: {x}, current: {y}"));
        }
        if last.is_some_and(|l| x <= l) {
            return Err(format!(
                "non-increasing order, previous: {}, current: {x}",
                last.unwrap_or(0)
            ));
        }
        total += y - x + 1;
        last = Some(y);
    }
    Ok(total)
}

/// Which indexes are done and which failed, as far as the update changes them.
pub(super) fn changed(new: &Value, old: &Value, status: &At, e: &mut ErrorList) {
    let (completed, failed) = (status.at("completedIndexes"), status.at("failedIndexes"));
    let completed_changed = completed.text() != old.text("status.completedIndexes");
    let failed_changed = failed.value != old.at("status.failedIndexes");
    let completions = new.int("spec.completions");
    let per_index = new.has("spec.backoffLimitPerIndex");
    let mut parsed = |at: &At, name: &str| {
        let counted = count(at.text(), completions.unwrap_or(0));
        if let Err(detail) = counted {
            e.push(FieldError::invalid(
                &at.path,
                at.text(),
                format!("error parsing {name}: {detail}"),
            ));
        }
    };
    if completed_changed && completions.is_some() {
        parsed(&completed, "completedIndexes");
    }
    if failed_changed && completions.is_some() && per_index && failed.exists() {
        parsed(&failed, "failedIndexes");
    }
    if completed_changed && !completed.is_empty() && new.text("spec.completionMode") != "Indexed" {
        let detail = "cannot set non-empty completedIndexes when non-indexed completion mode";
        e.push(completed.invalid(detail));
    }
    if failed_changed && !per_index && failed.exists() {
        let detail = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        e.push(failed.invalid(detail));
    }
    if (failed_changed || completed_changed)
        && failed.exists()
        && let Some(both) = overlap(completed.text(), failed.text())
    {
        e.push(failed.invalid(format!(
            "failedIndexes and completedIndexes overlap at index: {both}"
        )));
    }
}

/// The first index that two texts both name. What cannot be read was reported before.
fn overlap(completed: &str, failed: &str) -> Option<i64> {
    let intervals = |text: &str| -> Vec<(i64, i64)> {
        let interval = |part: &str| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            Some((from.parse().ok()?, to.parse().ok()?))
        };
        text.split(',').filter_map(interval).collect()
    };
    let (a, b) = (intervals(completed), intervals(failed));
    let shared = a.iter().flat_map(|(from, to)| {
        let meets = b.iter().filter(move |(f, t)| f <= to && from <= t);
        meets.map(move |(f, _)| *from.max(f))
    });
    shared.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_counted() {
        assert_eq!(count("0-2,5", 6), Ok(4));
        assert!(count("5,0", 6).is_err());
        assert!(count("6", 6).is_err());
    }

    #[test]
    fn shared_indexes_are_found() {
        assert_eq!(overlap("0-3,7", "5-9"), Some(7));
        assert_eq!(overlap("0-3", "4"), None);
    }
}
