//! The figures of a run, as a table for people and one line of JSON for programs.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::statistics::Samples;

#[derive(Debug, Default)]
pub(crate) struct Report {
    title: String,
    rows: Vec<Row>,
    facts: Map<String, Value>,
}

#[derive(Debug)]
struct Row {
    /// The key in the JSON line; ends in its unit.
    key: String,
    what: String,
    value: f64,
    unit: &'static str,
    note: String,
}

impl Report {
    pub(crate) fn new(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            ..Self::default()
        }
    }

    /// What the figures depend on: the binary, the machine, the counts.
    pub(crate) fn fact(&mut self, key: &str, value: impl Into<Value>) {
        self.facts.insert(key.to_owned(), value.into());
    }

    pub(crate) fn figure(&mut self, key: &str, what: &str, value: f64, unit: &'static str) {
        self.noted(key, what, value, unit, String::new());
    }

    pub(crate) fn noted(
        &mut self,
        key: &str,
        what: &str,
        value: f64,
        unit: &'static str,
        note: String,
    ) {
        self.rows.push(Row {
            key: key.to_owned(),
            what: what.to_owned(),
            value,
            unit,
            note,
        });
    }

    /// The median, with the range as a note.
    pub(crate) fn median(&mut self, key: &str, what: &str, samples: &Samples, unit: &'static str) {
        let note = format!("{:.1} … {:.1}", samples.min(), samples.max());
        self.noted(key, what, samples.median(), unit, note);
    }

    /// The median, with the 99th percentile as a second figure.
    pub(crate) fn latency(&mut self, key: &str, what: &str, samples: &Samples) {
        let p50 = format!("{key}_p50_ms");
        self.figure(&p50, &format!("{what}, median"), samples.median(), "ms");
        let (p99, value) = (format!("{key}_p99_ms"), samples.quantile(0.99));
        self.figure(&p99, &format!("{what}, 99th percentile"), value, "ms");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}", self.title)?;
        for (key, value) in &self.facts {
            writeln!(f, "  {key}: {value}")?;
        }
        let width = self.rows.iter().map(|row| row.what.chars().count()).max();
        let width = width.unwrap_or_default();
        for row in &self.rows {
            let precision = if row.value >= 100.0 { 0 } else { 2 };
            let note = match row.note.as_str() {
                "" => String::new(),
                note => format!("  ({note})"),
            };
            writeln!(
                f,
                "  {:width$}  {:>10.precision$} {}{note}",
                row.what, row.value, row.unit
            )?;
        }
        let figures: Map<String, Value> = self
            .rows
            .iter()
            .map(|row| (row.key.clone(), json!((row.value * 1e3).round() / 1e3)))
            .collect();
        let line = json!({"title": self.title, "facts": self.facts, "figures": figures});
        writeln!(f, "{line}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_holds_every_figure() {
        let mut report = Report::new("a run");
        report.fact("pods", 50);
        report.median(
            "start_ms",
            "start",
            &Samples::new(vec![1.0, 2.0, 4.0]).unwrap(),
            "ms",
        );
        report.latency("get", "get", &Samples::new(vec![0.25]).unwrap());
        let text = report.to_string();
        let line: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(line["facts"]["pods"], 50);
        assert_eq!(
            line["figures"],
            json!({"start_ms": 2.0, "get_p50_ms": 0.25, "get_p99_ms": 0.25})
        );
        assert!(text.contains("1.0 … 4.0"));
    }
}
