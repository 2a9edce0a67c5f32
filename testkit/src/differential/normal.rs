//! What two servers may answer differently: names, times and addresses that they draw themselves.

use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde_json::{Map, Value};

/// The document with everything a server draws by itself replaced by a word for it.
pub fn normal(mut document: Value, managed_fields: bool) -> Value {
    walk("", &mut document, managed_fields);
    document
}

static DRAWN: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
    [
        (
            r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
            "<uid>",
        ),
        // A server's own times are of this century's second quarter; a corpus takes others.
        (
            r"\b20(2[5-9]|[34]\d)-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)",
            "<now>",
        ),
        (
            r"\b20(2[5-9]|[34]\d)-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)? \+0000 UTC( m=\+[0-9.]+)?",
            "<now>",
        ),
        (
            r"\bkube-api-access-[bcdfghjklmnpqrstvwxz2456789]{5}\b",
            "kube-api-access-<drawn>",
        ),
        (r"\bcurrent: \d+", "current: <revision>"),
        (
            r"ResourceVersion in record \(\d+\)",
            "ResourceVersion in record (<revision>)",
        ),
        // What the corpus calls "gen" gets its last five characters from the server.
        (
            r"\b([Gg]en)([-_])[bcdfghjklmnpqrstvwxz2456789]{5}\b",
            "gen-<drawn>",
        ),
        // Upstream shows a bad value that is an object as its own language's structs.
        (r"value: (\{.*\}|\[\{.*\}\])", "value: <object>"),
        (r":3[0-2]\d\d\d/", ":<node port>/"),
        // Service addresses are drawn from the second half of the range.
        (
            r"\b10\.(9[6-9]|10\d|11[01])\.\d{1,3}\.\d{1,3}\b",
            "<service address>",
        ),
        (r"\bfd00:10::[0-9a-f:]*", "<service address>"),
    ]
    .map(|(pattern, word)| (Regex::new(pattern).expect("a valid pattern"), word))
    .into()
});

fn walk(key: &str, value: &mut Value, managed_fields: bool) {
    match value {
        Value::String(text) => {
            // Upstream goes on with a comparison of its own language's structs, line by line.
            if text.starts_with("Forbidden: ")
                && let Some(end) = text.find('\n')
            {
                text.truncate(end);
            }
            for (pattern, word) in DRAWN.iter() {
                if let std::borrow::Cow::Owned(new) =
                    pattern.replace_all(text, |_: &Captures| (*word).to_owned())
                {
                    *text = new;
                }
            }
        }
        Value::Number(n)
            if matches!(key, "nodePort" | "healthCheckNodePort")
                && n.as_i64().is_some_and(|n| (30000..=32767).contains(&n)) =>
        {
            *value = "<node port>".into();
        }
        Value::Array(items) => {
            // A distribution of upstream that projects one more file into every pod.
            items.retain(|item| {
                item.pointer("/configMap/name") != Some(&"openshift-service-ca.crt".into())
            });
            items
                .iter_mut()
                .for_each(|item| walk(key, item, managed_fields));
        }
        Value::Object(map) => {
            if let Some(Value::Object(meta)) = map.get_mut("metadata") {
                metadata(meta, managed_fields);
            }
            let kind = map.get("kind").and_then(Value::as_str).unwrap_or_default();
            if kind == "Status" {
                causes(map);
                reasons(map);
            } else if kind == "CertificateSigningRequest" {
                requester(map);
            } else if kind == "Table" {
                ages(map);
            }
            for (key, value) in map {
                walk(key, value, managed_fields);
            }
        }
        _ => {}
    }
}

fn metadata(meta: &mut Map<String, Value>, managed_fields: bool) {
    if !managed_fields {
        meta.remove("managedFields");
    }
    for (key, word) in [
        ("resourceVersion", "<revision>"),
        ("continue", "<continue>"),
    ] {
        if meta
            .get(key)
            .and_then(Value::as_str)
            .is_some_and(|v| !v.is_empty())
        {
            meta.insert(key.to_owned(), word.into());
        }
    }
    let prefix = meta.get("generateName").and_then(Value::as_str);
    let name = meta.get("name").and_then(Value::as_str);
    if let (Some(prefix), Some(name)) = (prefix, name)
        && !prefix.is_empty()
        && name
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.len() == 5)
    {
        let drawn = format!("{prefix}<drawn>");
        meta.insert("name".to_owned(), drawn.into());
    }
}

/// Several reasons of one refusal, found in a map: `… is forbidden: [a, b, c]`.
fn reasons(status: &mut Map<String, Value>) {
    let message = status.get("message").and_then(Value::as_str);
    let Some((start, list)) = message.and_then(|m| m.split_once(" is forbidden: [")) else {
        return;
    };
    let Some(list) = list.strip_suffix(']') else {
        return;
    };
    let mut all: Vec<String> = Vec::new();
    for piece in list.split(", ") {
        match all.last_mut().filter(|_| piece.starts_with("but ")) {
            Some(before) => before.push_str(&format!(", {piece}")),
            None => all.push(piece.to_owned()),
        }
    }
    all.sort();
    let message = format!("{start} is forbidden: [{}]", all.join(", "));
    status.insert("message".to_owned(), message.into());
}

/// The message of an invalid object repeats its causes, and those of the entries of one map come in
/// any order from a server that walks maps at random.
fn causes(status: &mut Map<String, Value>) {
    let message = status.get("message").and_then(Value::as_str);
    let message = message.unwrap_or_default().to_owned();
    let causes = status.get_mut("details").and_then(|d| d.get_mut("causes"));
    let Some(causes) = causes.and_then(Value::as_array_mut) else {
        return;
    };
    let text = |cause: &Value, key: &str| {
        let text = cause.get(key).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    // Upstream checks some things twice, and says so in the causes, not in the message.
    let mut seen = std::collections::BTreeSet::new();
    causes.retain(|cause| seen.insert(cause.to_string()));
    let said: Vec<String> = causes
        .iter()
        .map(|c| format!("{}: {}", text(c, "field"), text(c, "message")))
        .collect();
    let whole = match said.as_slice() {
        [one] => one.clone(),
        _ => format!("[{}]", said.join(", ")),
    };
    // A path up to its first key that is no index of a list.
    let map_of = |cause: &Value| {
        let field = text(cause, "field");
        let keyed = field.match_indices('[').find(|(at, _)| {
            let key = field[at + 1..].bytes().next();
            !key.is_some_and(|b| b.is_ascii_digit())
        });
        keyed.map_or(field.clone(), |(at, _)| field[..at].to_owned())
    };
    for run in causes.chunk_by_mut(|a, b| map_of(a) == map_of(b)) {
        run.sort_by_key(|c| (text(c, "field"), text(c, "message")));
    }
    if let Some(start) = message.strip_suffix(whole.as_str()) {
        status.insert("message".to_owned(), format!("{start}<causes>").into());
    }
}

/// Who asks is called differently by the two servers.
fn requester(request: &mut Map<String, Value>) {
    if let Some(Value::Object(spec)) = request.get_mut("spec") {
        for key in ["username", "uid", "groups", "extra"] {
            spec.remove(key);
        }
    }
}

/// Cells of a Table that say how old something is.
fn ages(table: &mut Map<String, Value>) {
    let rows = table.get_mut("rows").and_then(Value::as_array_mut);
    for row in rows.into_iter().flatten() {
        let cells = row.get_mut("cells").and_then(Value::as_array_mut);
        for cell in cells.into_iter().flatten() {
            let age = cell.as_str().and_then(|c| c.strip_suffix('s'));
            if age.is_some_and(|a| !a.is_empty() && a.bytes().all(|b| b.is_ascii_digit())) {
                *cell = "<age>".into();
            }
        }
    }
}
