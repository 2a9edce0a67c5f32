//! Server-side tables as aligned text, three blanks between columns as kubectl prints them.

use serde_json::Value;

use crate::resources::{list, text};

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TableOptions {
    /// Columns of lower priority too (`-o wide`).
    pub(crate) wide: bool,
    pub(crate) no_headers: bool,
    pub(crate) namespaces: bool,
    pub(crate) labels: bool,
}

/// `prefix` stands before each name when several kinds are printed.
pub(crate) fn render(table: &Value, options: TableOptions, prefix: &str) -> String {
    let shown: Vec<(usize, &Value)> = list(table, "columnDefinitions")
        .iter()
        .enumerate()
        .filter(|(_, column)| options.wide || column["priority"].as_i64().unwrap_or(0) == 0)
        .collect();
    let mut rows = Vec::new();
    if !options.no_headers {
        let mut header: Vec<String> = shown
            .iter()
            .map(|(_, column)| text(column, "name").to_uppercase())
            .collect();
        if options.namespaces {
            header.insert(0, "NAMESPACE".to_owned());
        }
        if options.labels {
            header.push("LABELS".to_owned());
        }
        rows.push(header);
    }
    for row in list(table, "rows") {
        let cells = list(row, "cells");
        let mut line: Vec<String> = shown
            .iter()
            .map(|(index, _)| cells.get(*index).map(cell).unwrap_or_default())
            .collect();
        if let Some(name) = line.first_mut() {
            name.insert_str(0, prefix);
        }
        let metadata = &row["object"]["metadata"];
        if options.namespaces {
            line.insert(0, text(metadata, "namespace").to_owned());
        }
        if options.labels {
            line.push(labels(metadata));
        }
        rows.push(line);
    }
    align(&rows)
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.lines().next().unwrap_or_default().to_owned(),
        Value::Null => "<none>".to_owned(),
        other => other.to_string(),
    }
}

fn labels(metadata: &Value) -> String {
    let labels: Vec<String> = metadata["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    if labels.is_empty() {
        "<none>".to_owned()
    } else {
        labels.join(",")
    }
}

/// Columns as wide as their widest cell and three blanks; nothing trails the last one.
pub(crate) fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns)
        .map(|column| width(column).unwrap_or(0) + 3)
        .collect();
    let mut out = String::new();
    for row in rows {
        for (index, cell) in row.iter().enumerate() {
            out.push_str(cell);
            if index + 1 < row.len() {
                out.extend(std::iter::repeat_n(
                    ' ',
                    widths[index] - cell.chars().count(),
                ));
            }
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_hide_wide_columns() {
        let table = serde_json::json!({
            "columnDefinitions": [{"name": "Name", "priority": 0}, {"name": "Ready", "priority": 0}, {"name": "IP", "priority": 1}],
            "rows": [
                {"cells": ["hello-1", "1/1", "10.0.0.1"], "object": {"metadata": {"namespace": "default", "labels": {"a": "b"}}}},
                {"cells": ["x", 3, null], "object": {"metadata": {"namespace": "default"}}}],
        });
        assert_eq!(
            render(&table, TableOptions::default(), ""),
            "NAME      READY\nhello-1   1/1\nx         3\n"
        );
        let wide = TableOptions {
            wide: true,
            no_headers: true,
            namespaces: true,
            labels: true,
        };
        assert_eq!(
            render(&table, wide, "pod/"),
            "default   pod/hello-1   1/1   10.0.0.1   a=b\ndefault   pod/x         3     <none>     <none>\n"
        );
    }
}
