//! Sets of completion indexes in the notation of Job statuses: `1,3-5`. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;

use crate::pod;

pub(crate) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

pub(crate) fn index_of(p: &Pod) -> Option<i32> {
    pod::annotation(&p.metadata, INDEX)?
        .parse()
        .ok()
        .filter(|n| *n >= 0)
}

/// Reads the notation; what lies at or above `limit` is left out, so that a hostile status cannot
/// make the set large.
pub(crate) fn parse(text: &str, limit: i32) -> BTreeSet<i32> {
    let mut set = BTreeSet::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            set.extend(first.max(0)..=last.min(limit - 1));
        }
    }
    set
}

pub(crate) fn write(set: &BTreeSet<i32>) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut numbers = set.iter().copied().peekable();
    while let Some(first) = numbers.next() {
        let mut last = first;
        while numbers.peek() == Some(&(last + 1)) {
            last += 1;
            numbers.next();
        }
        parts.push(match last - first {
            0 => first.to_string(),
            1 => format!("{first},{last}"),
            _ => format!("{first}-{last}"),
        });
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notation_round_trips() {
        for text in ["", "0", "0,1", "1,3-5", "0-9,12"] {
            assert_eq!(write(&parse(text, 100)), text);
        }
        assert_eq!(write(&parse("0-1000000000", 3)), "0-2");
        assert_eq!(write(&parse("x,2,-", 5)), "2");
    }
}
