//! Strategic merge patch: a merge patch that knows which lists are maps in disguise.
//!
//! Directives: `$patch: replace|delete|merge`, `$retainKeys`, `$setElementOrder/<list>`,
//! `$deleteFromPrimitiveList/<list>`. The result keeps the server's order except where the patch
//! says otherwise.

use super::PatchError;
use crate::go;
use keelson_api::Schema;
use serde_json::{Map, Value};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const BAD_RETAIN_KEYS: &str = "invalid patch format of retainKeys";
const BAD_ORDER: &str = "invalid patch format of setElementOrder list";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// Applies a patch to an object of the schema's type.
pub fn apply(object: Value, patch: Value, schema: &Schema) -> Result<Value, PatchError> {
    let patch = match patch {
        Value::Object(patch) => patch,
        Value::Null => return Ok(object),
        other => {
            return Err(malformed(format!(
                "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
                go::json_kind(&other)
            )));
        }
    };
    let original = match object {
        Value::Object(m) => m,
        _ => Map::new(),
    };
    Ok(Value::Object(merge_map(original, patch, Some(schema))?))
}

fn directive(message: impl Into<String>) -> PatchError {
    PatchError::Directive(message.into())
}

fn unknown_directive(patch: Map<String, Value>) -> PatchError {
    let given = go::plain(&patch[DIRECTIVE]);
    let patch = go::plain(&Value::Object(patch));
    directive(format!("unknown patch type: {given} in map: {patch}"))
}

fn malformed(message: impl Into<String>) -> PatchError {
    PatchError::Malformed(message.into())
}

/// What a schema says about one list or map field.
struct Place<'s> {
    schema: Option<&'s Schema>,
}

impl<'s> Place<'s> {
    fn of(schema: Option<&'s Schema>, key: &str) -> Place<'s> {
        Place {
            schema: schema.and_then(|s| s.property(key)),
        }
    }

    fn merges(&self) -> bool {
        self.schema.is_some_and(Schema::patch_merges)
    }

    /// Maps merge unless the strategy is to replace them.
    fn replaces_map(&self) -> bool {
        self.schema
            .is_some_and(|s| s.patch_strategy.split(',').any(|p| p == "replace"))
    }

    fn merge_key(&self) -> &'s str {
        self.schema.map_or("", |s| &s.patch_merge_key)
    }

    fn items(&self) -> Option<&'s Schema> {
        self.schema.and_then(Schema::items)
    }
}

fn merge_map(
    mut original: Map<String, Value>,
    mut patch: Map<String, Value>,
    schema: Option<&Schema>,
) -> Result<Map<String, Value>, PatchError> {
    match patch.get(DIRECTIVE).map(Value::as_str) {
        None => {}
        Some(Some("replace")) => {
            patch.remove(DIRECTIVE);
            return Ok(patch);
        }
        Some(Some("delete")) => return Ok(Map::new()),
        Some(_) => return Err(unknown_directive(patch)),
    }
    retain_keys(&mut original, &mut patch)?;
    order_lists(&mut original, &mut patch, schema)?;
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(DELETE_FROM) {
            if let Some(Value::Array(have)) = original.get_mut(list) {
                // Upstream takes no notice of a directive of another type.
                if let Value::Array(gone) = value {
                    have.retain(|v| !gone.contains(v));
                }
            }
            continue;
        }
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let Some(have) = original.remove(&key) else {
            original.insert(key, fresh(value));
            continue;
        };
        let place = Place::of(schema, &key);
        let merged = match (have, value) {
            (Value::Object(o), Value::Object(p)) if !place.replaces_map() => {
                Value::Object(merge_map(o, p, place.schema)?)
            }
            (Value::Array(o), Value::Array(p)) if place.merges() => {
                Value::Array(merge_list(o, p, &place)?)
            }
            (_, value) => value,
        };
        original.insert(key, merged);
    }
    Ok(original)
}

/// A part the object did not have: nulls say nothing there and directives are done with.
fn fresh(v: Value) -> Value {
    clean(v).unwrap_or(Value::Null)
}

fn clean(v: Value) -> Option<Value> {
    match v {
        Value::Object(map) => {
            if map.get(DIRECTIVE).and_then(Value::as_str) == Some("delete") {
                return None;
            }
            let kept = map
                .into_iter()
                .filter(|(k, v)| {
                    !(v.is_null()
                        || k == DIRECTIVE
                        || k == RETAIN_KEYS
                        || k.starts_with(SET_ORDER)
                        || k.starts_with(DELETE_FROM))
                })
                .filter_map(|(k, v)| Some((k, clean(v)?)))
                .collect();
            Some(Value::Object(kept))
        }
        Value::Array(items) => {
            // An item that only carries a directive for the list is no item.
            let kept = items
                .into_iter()
                .filter(|i| {
                    !i.as_object()
                        .is_some_and(|m| m.len() == 1 && m.contains_key(DIRECTIVE))
                })
                .filter_map(clean)
                .collect();
            Some(Value::Array(kept))
        }
        v => Some(v),
    }
}

fn retain_keys(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
) -> Result<(), PatchError> {
    let Some(list) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let keys: Vec<&str> = list
        .as_array()
        .map(|l| l.iter().filter_map(Value::as_str).collect())
        .ok_or_else(|| malformed(BAD_RETAIN_KEYS))?;
    // A null deletes its field, which must not be retained.
    let set = patch
        .iter()
        .filter(|(k, v)| !k.starts_with('$') && !v.is_null());
    for (key, _) in set {
        if !keys.contains(&key.as_str()) {
            return Err(malformed(BAD_RETAIN_KEYS));
        }
    }
    original.retain(|k, _| keys.contains(&k.as_str()));
    Ok(())
}

/// Merges the lists that have an order directive, and takes them out of the patch.
fn order_lists(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    schema: Option<&Schema>,
) -> Result<(), PatchError> {
    let directives: Vec<String> = patch
        .keys()
        .filter(|k| k.starts_with(SET_ORDER))
        .cloned()
        .collect();
    for directive in directives {
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return Err(malformed(BAD_ORDER));
        };
        let key = &directive[SET_ORDER.len()..];
        let place = Place::of(schema, key);
        let merge_key = place.merge_key();
        let server = match original.get(key) {
            Some(Value::Array(l)) => Some(l.clone()),
            Some(_) => return Err(malformed(BAD_ORDER)),
            None => None,
        };
        let patched = match patch.get(key) {
            Some(Value::Array(_)) => match patch.remove(key) {
                Some(Value::Array(l)) => Some(l),
                _ => None,
            },
            // A null deletes the list; that is left to the caller.
            Some(Value::Null) => continue,
            Some(_) => return Err(malformed(BAD_ORDER)),
            None => None,
        };
        if let Some(p) = &patched {
            check_order(p, &order, merge_key)?;
        }
        let mut known = server.clone().unwrap_or_default();
        let merged = match (server, patched) {
            (None, None) => continue,
            (Some(s), None) => s,
            (None, Some(p)) => match fresh(Value::Array(p)) {
                Value::Array(l) => l,
                _ => Vec::new(),
            },
            (Some(s), Some(p)) if place.merges() => {
                let added = new_items(&s, &p, merge_key);
                let merged = merge_list(s, p, &place)?;
                known = replaced_in_place(known, added, &merged, merge_key);
                merged
            }
            (Some(_), Some(p)) => p,
        };
        let ordered = normalize_order(merged, &order, &known, merge_key);
        original.insert(key.to_owned(), Value::Array(ordered));
    }
    Ok(())
}

/// Items of a patch that the list does not have, directives aside.
fn new_items(server: &[Value], patch: &[Value], key: &str) -> Vec<Value> {
    patch
        .iter()
        .filter(|p| p.is_object() && p.get(DIRECTIVE).is_none())
        .filter(|p| !server.iter().any(|s| same(s, p, key)))
        .cloned()
        .collect()
}

/// The server's order as upstream sees it after the merge: an item that was added stands in the
/// place of one that was deleted, behind those that stayed. What is left over keeps no place.
fn replaced_in_place(
    server: Vec<Value>,
    added: Vec<Value>,
    merged: &[Value],
    key: &str,
) -> Vec<Value> {
    let before = server.len();
    let mut known: Vec<Value> = server
        .into_iter()
        .filter(|s| merged.iter().any(|m| same(m, s, key)))
        .collect();
    let deleted = before - known.len();
    known.extend(added.into_iter().take(deleted));
    known
}

/// Every item the patch sets must be in the order list, in that order.
fn check_order(patch: &[Value], order: &[Value], key: &str) -> Result<(), PatchError> {
    let mut from = 0;
    for item in patch {
        if item.get(DIRECTIVE).is_some() {
            continue;
        }
        match order[from..].iter().position(|o| same(o, item, key)) {
            Some(i) => from += i + 1,
            None => {
                return Err(directive(format!(
                    "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                    go::plain(&Value::Array(patch.to_vec())),
                    go::plain(&Value::Array(order.to_vec()))
                )));
            }
        }
    }
    Ok(())
}

/// The same item: equal merge keys, or equal scalars.
fn same(a: &Value, b: &Value, key: &str) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) if !key.is_empty() => {
            matches!((x.get(key), y.get(key)), (Some(x), Some(y)) if x == y)
        }
        _ => a == b,
    }
}

fn merge_list(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    place: &Place<'_>,
) -> Result<Vec<Value>, PatchError> {
    let maps = original.iter().chain(&patch).all(Value::is_object);
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    if !maps {
        if original
            .iter()
            .chain(&patch)
            .any(|v| v.is_object() || v.is_array())
        {
            let lists = [Value::Array(original), Value::Array(patch)];
            return Err(directive(format!(
                "list element types are not identical: [{} {}]",
                go::plain(&lists[0]),
                go::plain(&lists[1])
            )));
        }
        let server = original.clone();
        let mut merged: Vec<Value> = Vec::with_capacity(original.len() + patch.len());
        for v in original.into_iter().chain(patch.iter().cloned()) {
            if !merged.contains(&v) {
                merged.push(v);
            }
        }
        return Ok(normalize_order(merged, &patch, &server, ""));
    }
    let key = place.merge_key();
    if key.is_empty() {
        return Err(directive("cannot merge lists without merge key"));
    }
    let mut items = Vec::with_capacity(patch.len());
    let mut replace = false;
    for item in patch {
        match item.get(DIRECTIVE).and_then(Value::as_str) {
            None if item.get(DIRECTIVE).is_none() => items.push(item),
            Some("delete") => {
                if item.get(key).is_none() {
                    return Err(directive("delete patch type with no merge key defined"));
                }
                original.retain(|o| !same(o, &item, key));
            }
            Some("replace") => replace = true,
            Some("merge") => {
                return Err(directive(
                    "merging lists cannot yet be specified in the patch",
                ));
            }
            _ => {
                let Value::Object(item) = item else {
                    return Err(directive("unknown patch type in list"));
                };
                return Err(unknown_directive(item));
            }
        }
    }
    if replace {
        return Ok(items);
    }
    let server = original.clone();
    let order = items.clone();
    let schema = place.items();
    for item in items {
        if item.get(key).is_none() {
            return Err(directive(format!(
                "map: {} does not contain declared merge key: {key}",
                go::plain(&item)
            )));
        }
        match original.iter().position(|o| same(o, &item, key)) {
            Some(i) => {
                let (Value::Object(o), Value::Object(p)) = (original[i].take(), item) else {
                    continue;
                };
                original[i] = Value::Object(merge_map(o, p, schema)?);
            }
            None => original.push(fresh(item)),
        }
    }
    Ok(normalize_order(original, &order, &server, key))
}

/// Items the patch names come in the patch's order, the server's others in the server's, and the
/// two runs are interleaved by the server's order where it knows both.
fn normalize_order(merged: Vec<Value>, order: &[Value], server: &[Value], key: &str) -> Vec<Value> {
    let index = |list: &[Value], v: &Value| list.iter().position(|x| same(x, v, key));
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|v| index(order, v).is_some());
    named.sort_by_key(|v| index(order, v));
    others.sort_by_key(|v| index(server, v).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let mut left = others.into_iter().peekable();
    let mut right = named.into_iter().peekable();
    loop {
        let from_left = match (left.peek(), right.peek()) {
            (None, None) => return out,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(l), Some(r)) => {
                matches!((index(server, l), index(server, r)), (Some(l), Some(r)) if l < r)
            }
        };
        out.extend(if from_left { left.next() } else { right.next() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod_spec(original: Value, patch: Value) -> Result<Value, PatchError> {
        apply(
            original,
            patch,
            keelson_api::schema("io.k8s.api.core.v1.PodSpec").unwrap(),
        )
    }

    #[test]
    fn lists_merge_by_key() {
        let got = pod_spec(
            json!({"containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]}),
            json!({"containers": [{"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}]}]}),
        )
        .unwrap();
        assert_eq!(
            got,
            json!({"containers": [
                {"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "1"}]},
                {"name": "b"}
            ]})
        );
    }

    #[test]
    fn new_items_go_before_the_servers_unless_ordered() {
        let original = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        assert_eq!(
            pod_spec(original.clone(), json!({"containers": [{"name": "c"}]})).unwrap(),
            json!({"containers": [{"name": "c"}, {"name": "a"}, {"name": "b"}]})
        );
        assert_eq!(
            pod_spec(
                original,
                json!({
                    "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}, {"name": "c"}],
                    "containers": [{"name": "c", "image": "i"}]
                })
            )
            .unwrap(),
            json!({"containers": [{"name": "b"}, {"name": "a"}, {"name": "c", "image": "i"}]})
        );
    }

    #[test]
    fn an_added_item_takes_the_place_of_a_deleted_one() {
        let got = pod_spec(
            json!({"containers": [{"name": "1"}, {"name": "2"}, {"name": "4"}]}),
            json!({
                "$setElementOrder/containers": [{"name": "2"}, {"name": "3"}],
                "containers": [{"name": "3"}, {"$patch": "delete", "name": "1"}]
            }),
        )
        .unwrap();
        assert_eq!(
            got,
            json!({"containers": [{"name": "2"}, {"name": "4"}, {"name": "3"}]})
        );
    }

    #[test]
    fn directives() {
        let original =
            json!({"containers": [{"name": "a"}, {"name": "b"}], "nodeSelector": {"x": "1"}});
        assert_eq!(
            pod_spec(
                original.clone(),
                json!({"containers": [{"$patch": "delete", "name": "a"}]})
            )
            .unwrap()["containers"],
            json!([{"name": "b"}])
        );
        assert_eq!(
            pod_spec(
                original.clone(),
                json!({"containers": [{"$patch": "replace"}, {"name": "z"}]})
            )
            .unwrap()["containers"],
            json!([{"name": "z"}])
        );
        assert_eq!(
            pod_spec(
                original.clone(),
                json!({"nodeSelector": {"$patch": "replace", "y": "2"}})
            )
            .unwrap()["nodeSelector"],
            json!({"y": "2"})
        );
        assert_eq!(
            pod_spec(
                original.clone(),
                json!({"nodeSelector": null, "hostname": null})
            )
            .unwrap(),
            json!({"containers": [{"name": "a"}, {"name": "b"}]})
        );
        assert!(pod_spec(original.clone(), json!({"containers": [{"image": "x"}]})).is_err());
        assert!(
            pod_spec(
                original,
                json!({"containers": [{"$patch": "zap", "name": "a"}]})
            )
            .is_err()
        );
    }

    #[test]
    fn retained_keys() {
        let s = keelson_api::schema("io.k8s.api.apps.v1.DeploymentSpec").unwrap();
        let got = apply(
            json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}),
            json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate", "rollingUpdate": null}}),
            s,
        )
        .unwrap();
        assert_eq!(got, json!({"strategy": {"type": "Recreate"}}));
        assert!(
            apply(
                json!({}),
                json!({"strategy": {"$retainKeys": ["a"], "type": "x"}}),
                s
            )
            .is_ok()
        );
    }

    #[test]
    fn primitive_lists() {
        let s = keelson_api::schema("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").unwrap();
        assert_eq!(
            apply(
                json!({"finalizers": ["a", "b"]}),
                json!({"finalizers": ["c", "a"]}),
                s
            )
            .unwrap(),
            json!({"finalizers": ["c", "a", "b"]})
        );
        assert_eq!(
            apply(
                json!({"finalizers": ["a", "b", "c"]}),
                json!({"$deleteFromPrimitiveList/finalizers": ["b"]}),
                s
            )
            .unwrap(),
            json!({"finalizers": ["a", "c"]})
        );
    }

    #[test]
    fn added_subtrees_lose_nulls_and_directives() {
        assert_eq!(
            pod_spec(
                json!({}),
                json!({"securityContext": {"runAsUser": 1, "runAsGroup": null},
                    "volumes": [{"$patch": "replace"}, {"name": "v", "emptyDir": {}, "$retainKeys": ["name", "emptyDir"]},
                        {"name": "gone", "$patch": "delete"}]})
            )
            .unwrap(),
            json!({"securityContext": {"runAsUser": 1}, "volumes": [{"name": "v", "emptyDir": {}}]})
        );
    }

    #[test]
    fn an_empty_patch_changes_nothing() {
        let o = json!({"containers": [{"name": "a", "ports": [{"containerPort": 1, "protocol": "TCP"}]}]});
        assert_eq!(pod_spec(o.clone(), json!({})).unwrap(), o);
        assert_eq!(
            pod_spec(o.clone(), o.clone()).unwrap(),
            o,
            "a patch equal to the object neither"
        );
    }
}
