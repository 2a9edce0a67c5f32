//! Between the versions of the group: `v1beta1` has a request's fields flat, where later
//! versions put them under `exactly`, and a device's under `basic`, where they are flat later.

use serde_json::{Map, Value};

use crate::rules;
use crate::tree::{Tree, TreeMut};

/// Fields of an exact request.
const EXACT: &[&str] = &[
    "deviceClassName",
    "selectors",
    "allocationMode",
    "count",
    "adminAccess",
    "tolerations",
    "capacity",
];

fn move_fields(from: &mut Map<String, Value>, fields: impl Fn(&str) -> bool) -> Map<String, Value> {
    let names: Vec<_> = from.keys().filter(|k| fields(k)).cloned().collect();
    names
        .into_iter()
        .filter_map(|name| from.remove(&name).map(|v| (name, v)))
        .collect()
}

fn requests(obj: &mut Value, path: &str, nested: bool) {
    for request in obj.list_mut(path) {
        let Some(map) = request.as_object_mut() else {
            continue;
        };
        if nested {
            let mut exact = move_fields(map, |k| EXACT.contains(&k));
            exact.retain(|_, value| !is_zero(value));
            if !exact.is_empty() && !map.contains_key("exactly") {
                map.insert("exactly".to_owned(), exact.into());
            }
        } else {
            if let Some(Value::Object(exact)) = map.remove("exactly") {
                map.extend(exact);
            }
            // The old version writes the name of the class even where there is none.
            map.entry("deviceClassName").or_insert_with(|| "".into());
        }
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        _ => false,
    }
}

fn devices(obj: &mut Value, flat: bool) {
    for device in obj.list_mut("spec.devices") {
        let Some(map) = device.as_object_mut() else {
            continue;
        };
        if flat {
            if let Some(Value::Object(basic)) = map.remove("basic") {
                map.extend(basic);
            }
        } else if !map.contains_key("basic") {
            let basic = move_fields(map, |k| k != "name");
            map.insert("basic".to_owned(), basic.into());
        }
    }
}

pub(super) fn convert(obj: &mut Value, from: &str, to: &str) {
    let version = |v: &str| v.rsplit('/').next().unwrap_or(v) == "v1beta1";
    if version(from) != version(to) {
        let modern = !version(to);
        for path in ["spec.devices.requests", "spec.spec.devices.requests"] {
            requests(obj, path, modern);
        }
        if obj.text("kind") == "ResourceSlice" || obj.has("spec.pool") {
            devices(obj, modern);
        }
    }
    rules::set_api_version(obj, to.rsplit('/').next().unwrap_or(to));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_are_flat_in_the_first_beta() {
        let old = json!({"apiVersion": "resource.k8s.io/v1beta1", "spec": {"devices": {"requests": [
            {"name": "a", "deviceClassName": "gpu", "count": 2}]}}});
        let mut obj = old.clone();
        convert(&mut obj, "v1beta1", "v1");
        assert_eq!(
            obj["spec"]["devices"]["requests"][0],
            json!({"name": "a", "exactly": {"deviceClassName": "gpu", "count": 2}})
        );
        convert(&mut obj, "v1", "v1beta1");
        assert_eq!(obj, old);
    }

    #[test]
    fn devices_are_nested_in_the_first_beta() {
        let old = json!({"apiVersion": "resource.k8s.io/v1beta1", "kind": "ResourceSlice", "spec": {"devices": [
            {"name": "a", "basic": {"attributes": {}}}]}});
        let mut obj = old.clone();
        convert(&mut obj, "v1beta1", "v1");
        assert_eq!(
            obj["spec"]["devices"][0],
            json!({"name": "a", "attributes": {}})
        );
        convert(&mut obj, "v1", "v1beta1");
        assert_eq!(obj, old);
    }
}
