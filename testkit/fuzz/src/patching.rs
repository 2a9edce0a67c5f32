//! An object and what is to become of it: the input is a JSON list of the two.

use keelson_machinery::apply::{FieldSet, Request, apply as server_side_apply, track_update};
use keelson_machinery::decode::normalize;
use keelson_machinery::{meta, patch as patches};
use serde_json::Value;

use crate::decoding::schema_of;

pub(crate) const PATCHES: &[&[u8]] = &[
    br#"[{"apiVersion":"v1","kind":"Pod","spec":{"containers":[{"name":"a","image":"i"},{"name":"b"}],"volumes":[{"name":"v"}]}},{"spec":{"$setElementOrder/containers":[{"name":"b"},{"name":"a"}],"containers":[{"$patch":"delete","name":"a"},{"name":"c","ports":[{"containerPort":1}]}],"volumes":[{"$patch":"replace"}]}}]"#,
    br#"[{"apiVersion":"v1","kind":"Pod","metadata":{"finalizers":["a","b"],"labels":{"x":"y"}}},{"metadata":{"$deleteFromPrimitiveList/finalizers":["a"],"finalizers":["c"],"labels":{"x":null,"$patch":"merge"},"$retainKeys":["labels"]}}]"#,
    br#"[{"a":{"b":[1,2,{"c":3}]}},[{"op":"add","path":"/a/b/-","value":4},{"op":"move","from":"/a/b/0","path":"/d"},{"op":"test","path":"/a~1b","value":null},{"op":"copy","from":"/a","path":"/a/e"},{"op":"remove","path":"/a/b/1"},{"op":"replace","path":"","value":{}}]]"#,
];

pub(crate) const CONFIGURATIONS: &[&[u8]] = &[
    br#"[{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","managedFields":[{"manager":"o","operation":"Apply","apiVersion":"v1","time":"2024-01-01T00:00:00Z","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{},"f:name":{}}}}}}]},"spec":{"containers":[{"name":"c","image":"i"}]}},{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"x":"y"}},"spec":{"containers":[{"name":"c","image":"j"},{"name":"d"}]}}]"#,
    br#"[null,{"apiVersion":"v1","kind":"Service","metadata":{"name":"s"},"spec":{"ports":[{"port":80,"protocol":"TCP"},{"port":80,"protocol":"UDP"}],"externalIPs":["1.2.3.4"]}}]"#,
];

fn pair(data: &[u8]) -> Option<(Value, Value)> {
    let Ok(Value::Array(mut pair)) = serde_json::from_slice(data) else {
        return None;
    };
    let change = pair.pop()?;
    Some((pair.pop()?, change))
}

pub(crate) fn patch(data: &[u8]) {
    let Some((object, change)) = pair(data) else {
        return;
    };
    let Some(schema) = schema_of(&object) else {
        return;
    };
    if let Ok(once) = patches::merge::apply(object.clone(), change.clone()) {
        let twice = patches::merge::apply(once.clone(), change.clone());
        assert_eq!(twice.ok(), Some(once), "a merge patch is idempotent");
    }
    let _ = patches::json::problems(&change);
    let _ = patches::json::apply(object.clone(), &change);
    let _ = patches::strategic::apply(object, change, schema);
}

pub(crate) fn apply(data: &[u8]) {
    let Some((live, config)) = pair(data) else {
        return;
    };
    let Some(schema) = schema_of(&config) else {
        return;
    };
    // The registry hands over nothing that was not normalized.
    let Ok(config) = normalize(config, schema).map(|decoded| decoded.object) else {
        return;
    };
    let live = normalize(live, schema).ok().map(|decoded| decoded.object);
    let live = live.filter(Value::is_object);
    let reset = FieldSet::of(&["status"]);
    let (api_version, kind) = (meta::api_version(&config), meta::kind(&config));
    let request = Request {
        schema,
        manager: "fuzz",
        api_version,
        kind,
        subresource: "",
        now: "2026-01-01T00:00:00Z",
        reset: &reset,
        versions: None,
    };
    if let Ok(applied) = server_side_apply(live.as_ref(), &config, &request, true) {
        let again = server_side_apply(Some(&applied), &config, &request, false);
        assert!(again.is_ok(), "what was applied can be applied again");
    }
    if config.is_object() {
        let mut updated = config.clone();
        track_update(live.as_ref(), &mut updated, &request);
    }
}
