//! The simple JSON paths that definitions use: `.a.b`, `['a.b']`, `[0]`, `[*]`,
//! `[?(@.type=="Ready")]`.

use serde_json::Value;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct JsonPath {
    /// `None` for a path that cannot be read, which finds nothing.
    steps: Option<Vec<Step>>,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    /// Items whose field compares equal (or unequal) to a constant.
    Filter {
        path: Vec<String>,
        equal: bool,
        value: Value,
    },
}

impl JsonPath {
    pub(super) fn parse(text: &str) -> Self {
        let text = text.trim().trim_start_matches('$');
        Self { steps: parse(text) }
    }

    pub(super) fn find<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        let Some(steps) = &self.steps else {
            return Vec::new();
        };
        let mut current = vec![root];
        for step in steps {
            current = current
                .into_iter()
                .flat_map(|value| apply(step, value))
                .collect();
        }
        current
    }

    /// All that is found, as text: scalars bare, the rest as JSON, joined by commas.
    pub(super) fn text(&self, root: &Value) -> Option<String> {
        let found = self.find(root);
        let shown: Vec<String> = found
            .iter()
            .filter(|v| !v.is_null())
            .map(|value| shown(value))
            .collect();
        (!shown.is_empty()).then(|| shown.join(","))
    }
}

/// Texts bare, the rest as JSON.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn apply<'a>(step: &Step, value: &'a Value) -> Vec<&'a Value> {
    match (step, value) {
        (Step::Field(name), Value::Object(map)) => map.get(name).into_iter().collect(),
        (Step::Index(index), Value::Array(items)) => {
            let at = if *index < 0 {
                index + items.len() as i64
            } else {
                *index
            };
            usize::try_from(at)
                .ok()
                .and_then(|at| items.get(at))
                .into_iter()
                .collect()
        }
        (Step::All, Value::Array(items)) => items.iter().collect(),
        (Step::All, Value::Object(map)) => map.values().collect(),
        (
            Step::Filter {
                path,
                equal,
                value: wanted,
            },
            Value::Array(items),
        ) => items
            .iter()
            .filter(|item| {
                let found = path.iter().try_fold(*item, |value, name| value.get(name));
                found.is_some_and(|found| (found == wanted) == *equal)
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn parse(text: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let (name, after) = field(after);
            match name.as_str() {
                "" if after.starts_with('[') || after.is_empty() => {}
                "" => return None,
                "*" => steps.push(Step::All),
                _ => steps.push(Step::Field(name)),
            }
            rest = after;
        } else if let Some(after) = rest.strip_prefix('[') {
            let end = bracket_end(after)?;
            steps.push(bracket(&after[..end])?);
            rest = &after[end + 1..];
        } else {
            let (name, after) = field(rest);
            if name.is_empty() {
                return None;
            }
            steps.push(Step::Field(name));
            rest = after;
        }
    }
    Some(steps)
}

/// A name up to the next dot or bracket; `\.` is a dot in a name.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => {
                if let Some((_, escaped)) = chars.next() {
                    name.push(escaped);
                }
            }
            '.' | '[' => return (name, &text[at..]),
            c => name.push(c),
        }
    }
    (name, "")
}

fn bracket_end(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, ']') => return Some(at),
            (None, _) => {}
        }
    }
    None
}

fn bracket(inner: &str) -> Option<Step> {
    let inner = inner.trim();
    if inner == "*" {
        return Some(Step::All);
    }
    if let Some(name) = unquote(inner) {
        return Some(Step::Field(name.replace("\\.", ".")));
    }
    if let Ok(index) = inner.parse() {
        return Some(Step::Index(index));
    }
    let condition = inner.strip_prefix("?(")?.strip_suffix(')')?.trim();
    let (left, equal, right) = match (condition.split_once("=="), condition.split_once("!=")) {
        (Some((left, right)), _) => (left, true, right),
        (None, Some((left, right))) => (left, false, right),
        (None, None) => return None,
    };
    let path = left.trim().strip_prefix('@')?;
    let path = parse(path)?
        .into_iter()
        .map(|step| match step {
            Step::Field(name) => Some(name),
            _ => None,
        })
        .collect::<Option<Vec<String>>>()?;
    let right = right.trim();
    let value = match unquote(right) {
        Some(text) => Value::from(text),
        None => serde_json::from_str(right).ok()?,
    };
    Some(Step::Filter { path, equal, value })
}

fn unquote(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    text.strip_prefix(quote)?
        .strip_suffix(quote)
        .map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_find_what_they_name() {
        let object = json!({
            "spec": {"replicas": 3, "list": ["a", "b"], "x.y": "dotted"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]},
        });
        for (path, expected) in [
            (".spec.replicas", Some("3")),
            ("{.spec", None),
            (".spec.list[0]", Some("a")),
            (".spec.list[-1]", Some("b")),
            (".spec.list[*]", Some("a,b")),
            (".spec['x.y']", Some("dotted")),
            (".spec.x\\.y", Some("dotted")),
            (
                ".status.conditions[?(@.type==\"Ready\")].status",
                Some("True"),
            ),
            (".status.conditions[?(@.type=='Missing')].status", None),
            (".spec.nothing", None),
        ] {
            assert_eq!(
                JsonPath::parse(path).text(&object).as_deref(),
                expected,
                "{path}"
            );
        }
    }
}
