//! What table cells show: ages, lists, container names.

use jiff::Timestamp;
use keelson_semantics::duration;
use serde_json::Value;

use crate::tree::Tree;

pub(crate) const NONE: &str = "<none>";
pub(crate) const UNKNOWN: &str = "<unknown>";
pub(crate) const UNSET: &str = "<unset>";

/// The age of an object, from its creationTimestamp.
pub(crate) fn age(obj: &Value, now: i64) -> Value {
    since(obj.text("metadata.creationTimestamp"), now).into()
}

/// Seconds since the epoch of an RFC 3339 time.
pub(crate) fn seconds(time: &str) -> Option<i64> {
    time.parse::<Timestamp>().ok().map(Timestamp::as_second)
}

/// How long ago a time was; `<unknown>` when there is none.
pub(crate) fn since(time: &str, now: i64) -> String {
    seconds(time).map_or_else(
        || UNKNOWN.to_owned(),
        |then| duration::human(now.saturating_sub(then)),
    )
}

/// Joined by commas, `<none>` when empty.
pub(crate) fn joined<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> String {
    let mut out = String::new();
    for item in items {
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(item.as_ref());
    }
    if out.is_empty() { NONE.to_owned() } else { out }
}

/// The strings of a list, `<none>` when empty.
pub(crate) fn strings(items: &[Value]) -> String {
    joined(items.iter().filter_map(Value::as_str))
}

/// `<none>` in place of an empty text.
pub(crate) fn or_none(text: &str) -> String {
    if text.is_empty() {
        NONE.to_owned()
    } else {
        text.to_owned()
    }
}

/// Names and images of a pod spec's containers.
pub(crate) fn containers(pod_spec: &Value) -> (String, String) {
    let of = |key: &str| {
        let items: Vec<_> = pod_spec
            .list("containers")
            .iter()
            .map(|c| c.text(key))
            .collect();
        items.join(",")
    };
    (of("name"), of("image"))
}

/// A label map as `a=b,c=d`.
pub(crate) fn labels(map: &Value) -> String {
    let Some(map) = map.as_object() else {
        return NONE.to_owned();
    };
    joined(
        map.iter()
            .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or(""))),
    )
}

/// A label selector as its text form: `a=b,c in (d,e),!f`.
pub(crate) fn selector(selector: &Value) -> String {
    if selector.is_null() {
        return NONE.to_owned();
    }
    let mut terms: Vec<(String, String)> = Vec::new();
    for (k, v) in selector.map("matchLabels") {
        terms.push((k.clone(), format!("{k}={}", v.as_str().unwrap_or(""))));
    }
    for e in selector.list("matchExpressions") {
        let key = e.text("key");
        let mut values: Vec<_> = e.list("values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let text = match e.text("operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        };
        terms.push((key.to_owned(), text));
    }
    terms.sort_by(|a, b| a.0.cmp(&b.0));
    joined(terms.into_iter().map(|(_, text)| text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_have_their_text_form() {
        let s = json!({"matchLabels": {"b": "c"}, "matchExpressions": [
            {"key": "a", "operator": "In", "values": ["y", "x"]}, {"key": "z", "operator": "DoesNotExist"}]});
        assert_eq!(selector(&s), "a in (x,y),b=c,!z");
        assert_eq!(selector(&json!({})), NONE);
    }
}
