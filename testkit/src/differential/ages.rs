//! Ages in tables, which grow from day to day: each is replaced by the time that it was counted
//! from, found among those that the case itself had sent.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use jiff::Timestamp;
use keelson_semantics::duration::human;
use regex::Regex;
use serde_json::Value;

use super::Case;
use super::corpus::Corpus;

static TIME: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
        .expect("a valid pattern")
});

/// The times that a case sends, to the second.
pub(super) fn times(corpus: &Corpus, case: &Case) -> BTreeSet<Timestamp> {
    let mut texts = vec![corpus.bases[&case.base].to_string()];
    texts.extend(case.before.iter().map(|setup| setup.object.to_string()));
    texts.extend(case.steps.iter().map(|step| step.body.to_string()));
    let found = texts.iter().flat_map(|text| TIME.find_iter(text));
    let times = found.filter_map(|time| time.as_str().parse::<Timestamp>().ok());
    times
        .filter_map(|time| Timestamp::from_second(time.as_second()).ok())
        .collect()
}

/// Replaces the cells of tables that say how long ago one of `times` was, `now` being that of the
/// answer (it may have been given some seconds before).
pub(super) fn name(document: &mut Value, times: &BTreeSet<Timestamp>, now: Timestamp) {
    /// A request takes no longer than a step's patience.
    const OLDEST_ANSWER_SECONDS: i64 = 30;
    let since = |cell: &str| {
        times.iter().find(|time| {
            let age = now.as_second() - time.as_second();
            (0..=OLDEST_ANSWER_SECONDS).any(|back| human(age - back) == cell)
        })
    };
    let rows = document.get_mut("rows").and_then(Value::as_array_mut);
    for row in rows.into_iter().flatten() {
        let cells = row.get_mut("cells").and_then(Value::as_array_mut);
        for cell in cells.into_iter().flatten() {
            if let Some(time) = cell.as_str().and_then(since) {
                *cell = format!("<age since {time}>").into();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_age_is_known_by_its_time_on_any_day() {
        let times = BTreeSet::from(["2020-01-01T00:00:00Z".parse().unwrap()]);
        for (day, age) in [
            (2_527, "6y337d"),
            (2_919, "7y364d"),
            (5_844, "16y"),
            (3, "3d2h"),
        ] {
            let now = Timestamp::from_second(1_577_836_800 + day * 86_400 + 2 * 3_600).unwrap();
            let mut table = json!({"rows": [{"cells": ["t", age, "<age>", "16y1d"]}]});
            name(&mut table, &times, now);
            let expected = json!(["t", "<age since 2020-01-01T00:00:00Z>", "<age>", "16y1d"]);
            assert_eq!(table["rows"][0]["cells"], expected, "{day}");
        }
        let mut table = json!({"rows": [{"cells": ["6y337d"]}]});
        name(
            &mut table,
            &BTreeSet::new(),
            Timestamp::from_second(1_796_169_600).unwrap(),
        );
        assert_eq!(table["rows"][0]["cells"], json!(["6y337d"]));
    }
}
