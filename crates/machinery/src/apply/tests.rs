use super::*;
use keelson_api::schema;
use serde_json::json;

const T1: &str = "2026-01-01T00:00:00Z";
const T2: &str = "2026-01-02T00:00:00Z";

fn deployment() -> &'static Schema {
    schema("io.k8s.api.apps.v1.Deployment").unwrap()
}

fn request<'a>(manager: &'a str, now: &'a str, reset: &'a FieldSet) -> Request<'a> {
    Request {
        schema: deployment(),
        manager,
        api_version: "apps/v1",
        kind: "Deployment",
        subresource: "",
        now,
        reset,
        versions: None,
    }
}

fn config(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "n"}, "spec": spec})
}

fn apply_as(
    live: Option<&Value>,
    spec: Value,
    manager: &str,
    force: bool,
) -> Result<Value, ApplyError> {
    let reset = FieldSet::of(&["status"]);
    apply(live, &config(spec), &request(manager, T1, &reset), force)
}

fn update_as(live: &Value, change: impl FnOnce(&mut Value), manager: &str) -> Value {
    let reset = FieldSet::of(&["status"]);
    let mut new = live.clone();
    change(&mut new);
    track_update(Some(live), &mut new, &request(manager, T2, &reset));
    new
}

fn fields_of<'a>(obj: &'a Value, manager: &str) -> &'a Value {
    meta::managed_fields(obj)
        .iter()
        .find(|e| e["manager"] == manager)
        .map(|e| &e["fieldsV1"])
        .unwrap_or(&Value::Null)
}

#[test]
fn the_first_apply_creates_and_owns() {
    let spec = json!({"replicas": 1, "template": {"spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]}}});
    let d = apply_as(None, spec, "m", false).unwrap();
    assert_eq!(
        fields_of(&d, "m"),
        &json!({"f:spec": {
            "f:replicas": {},
            "f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {
                ".": {}, "f:name": {}, "f:image": {},
                "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}
            }}}}
        }})
    );
    let e = &meta::managed_fields(&d)[0];
    assert_eq!(e["operation"], "Apply");
    assert_eq!(e["time"], T1);
    assert_eq!(e["apiVersion"], "apps/v1");
}

#[test]
fn others_values_conflict_and_force_takes_them() {
    let d = apply_as(None, json!({"replicas": 1}), "a", false).unwrap();
    let same = apply_as(Some(&d), json!({"replicas": 1}), "b", false).unwrap();
    assert_eq!(
        meta::managed_fields(&same).len(),
        2,
        "equal values are shared"
    );
    let e = apply_as(Some(&d), json!({"replicas": 2}), "b", false).unwrap_err();
    assert_eq!(
        e.to_string(),
        "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas"
    );
    let s = e.status();
    assert_eq!((s.code, s.reason.as_str()), (409, "Conflict"));
    assert_eq!(s.details.unwrap().causes[0].reason, "FieldManagerConflict");
    let forced = apply_as(Some(&d), json!({"replicas": 2}), "b", true).unwrap();
    assert_eq!(forced["spec"]["replicas"], 2);
    assert_eq!(
        meta::managed_fields(&forced).len(),
        1,
        "the loser owned nothing else"
    );
}

#[test]
fn an_updater_is_named_with_version_and_time() {
    let mut live = config(json!({"replicas": 1}));
    live["metadata"]["uid"] = json!("u");
    let reset = FieldSet::default();
    let mut created = live.clone();
    track_update(
        None,
        &mut created,
        &request("kubectl-client-side-apply", T1, &reset),
    );
    let e = apply_as(
        Some(&created),
        json!({"replicas": 2, "paused": true}),
        "b",
        false,
    )
    .unwrap_err();
    assert_eq!(
        e.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
    );
}

#[test]
fn several_conflicts_are_grouped() {
    let d = apply_as(None, json!({"replicas": 1, "paused": true}), "a", false).unwrap();
    let e = apply_as(
        Some(&d),
        json!({"replicas": 2, "paused": false}),
        "b",
        false,
    )
    .unwrap_err();
    assert_eq!(
        e.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"a\":\n- .spec.paused\n- .spec.replicas"
    );
}

#[test]
fn fields_no_longer_applied_go_unless_shared() {
    let d = apply_as(
        None,
        json!({"replicas": 1, "paused": true, "minReadySeconds": 5}),
        "a",
        false,
    )
    .unwrap();
    let d = apply_as(Some(&d), json!({"paused": true}), "b", false).unwrap();
    let d = apply_as(Some(&d), json!({"minReadySeconds": 5}), "a", false).unwrap();
    assert_eq!(d["spec"], json!({"paused": true, "minReadySeconds": 5}));
    let d = apply_as(Some(&d), json!({}), "b", false).unwrap();
    assert_eq!(d["spec"], json!({"minReadySeconds": 5}));
}

#[test]
fn list_items_are_owned_one_by_one() {
    let containers = |list: Value| json!({"template": {"spec": {"containers": list}}});
    let names = |d: &Value| -> Vec<String> {
        d["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let d = apply_as(
        None,
        containers(json!([{"name": "x", "image": "1"}])),
        "a",
        false,
    )
    .unwrap();
    let d = apply_as(
        Some(&d),
        containers(json!([{"name": "y", "image": "2"}])),
        "b",
        false,
    )
    .unwrap();
    assert_eq!(names(&d), ["x", "y"]);
    let d = apply_as(
        Some(&d),
        containers(json!([{"name": "x", "image": "3"}])),
        "a",
        false,
    )
    .unwrap();
    assert_eq!(d["spec"]["template"]["spec"]["containers"][0]["image"], "3");
    // Without x the manager gives it up; y stays.
    let d = apply_as(Some(&d), containers(json!([{"name": "z"}])), "a", false).unwrap();
    assert_eq!(names(&d), ["y", "z"]);
    let e = apply_as(
        Some(&d),
        containers(json!([{"name": "q"}, {"name": "q"}])),
        "a",
        false,
    )
    .unwrap_err();
    assert!(
        e.to_string()
            .ends_with("duplicate entries for key [name=\"q\"]"),
        "{e}"
    );
}

#[test]
fn what_a_controller_added_to_an_owned_item_goes_with_the_item_only() {
    let spec =
        |env: Value| json!({"template": {"spec": {"containers": [{"name": "c", "env": env}]}}});
    let d = apply_as(None, spec(json!([{"name": "A", "value": "1"}])), "a", false).unwrap();
    let d = update_as(
        &d,
        |d| d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("i"),
        "controller",
    );
    let d = apply_as(
        Some(&d),
        spec(json!([{"name": "B", "value": "2"}])),
        "a",
        false,
    )
    .unwrap();
    let c = &d["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(c["image"], "i");
    assert_eq!(c["env"], json!([{"name": "B", "value": "2"}]));
}

#[test]
fn updates_take_what_they_change() {
    let d = apply_as(None, json!({"replicas": 1, "paused": true}), "a", false).unwrap();
    let d = update_as(&d, |d| d["spec"]["replicas"] = json!(5), "scaler");
    assert_eq!(fields_of(&d, "a"), &json!({"f:spec": {"f:paused": {}}}));
    assert_eq!(
        fields_of(&d, "scaler"),
        &json!({"f:spec": {"f:replicas": {}}})
    );
    let same = update_as(&d, |_| {}, "nobody");
    assert_eq!(
        meta::managed_fields(&same),
        meta::managed_fields(&d),
        "no change, no entry"
    );
    let gone = update_as(
        &d,
        |d| {
            d["spec"].as_object_mut().unwrap().remove("replicas");
        },
        "x",
    );
    assert_eq!(fields_of(&gone, "scaler"), &Value::Null);
}

#[test]
fn a_create_is_tracked_without_status_and_identity() {
    let reset = FieldSet::of(&["status"]);
    let mut new = config(json!({"replicas": 1}));
    new["metadata"]["labels"] = json!({"a": "b"});
    new["metadata"]["uid"] = json!("u");
    new["status"] = json!({"replicas": 3});
    track_update(None, &mut new, &request("kubectl", T1, &reset));
    assert_eq!(
        fields_of(&new, "kubectl"),
        &json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": {"f:replicas": {}}})
    );
}

#[test]
fn an_empty_list_resets() {
    let mut d = apply_as(None, json!({"replicas": 1}), "a", false).unwrap();
    d["metadata"]["uid"] = json!("u");
    for reset in [json!([]), json!([{}])] {
        let new = update_as(&d, |d| d["metadata"]["managedFields"] = reset, "x");
        assert!(meta::managed_fields(&new).is_empty());
    }
    // Leaving them out does not.
    let new = update_as(
        &d,
        |d| {
            d["metadata"]
                .as_object_mut()
                .unwrap()
                .remove("managedFields");
        },
        "x",
    );
    assert_eq!(meta::managed_fields(&new).len(), 1);
}

#[test]
fn applying_to_an_untracked_object_spares_what_was_there() {
    let mut live = config(json!({"replicas": 3, "paused": true}));
    live["metadata"]["uid"] = json!("u");
    let d = apply_as(Some(&live), json!({"replicas": 3}), "a", false).unwrap();
    assert_eq!(
        fields_of(&d, "before-first-apply"),
        &json!({"f:spec": {"f:paused": {}, "f:replicas": {}}})
    );
}

#[test]
fn kubectl_takes_over_what_it_applied_from_the_client() {
    let mut live = config(json!({"replicas": 1}));
    live["metadata"]["annotations"] =
        json!({LAST_APPLIED: config(json!({"replicas": 1})).to_string()});
    let reset = FieldSet::default();
    track_update(
        None,
        &mut live,
        &request("kubectl-client-side-apply", T1, &reset),
    );
    let d = apply_as(Some(&live), json!({"replicas": 2}), "kubectl", false).unwrap();
    assert_eq!(d["spec"]["replicas"], 2);
    assert!(
        meta::annotation(&d, LAST_APPLIED)
            .unwrap()
            .contains("\"replicas\":2")
    );
    assert!(apply_as(Some(&live), json!({"replicas": 2}), "other", false).is_err());
}

#[test]
fn bad_configurations() {
    let reset = FieldSet::default();
    let mut c = config(json!({"foo": 1}));
    let e = apply(None, &c, &request("a", T1, &reset), false).unwrap_err();
    assert_eq!(
        e.to_string(),
        "failed to create typed patch object (n/d; apps/v1, Kind=Deployment): .spec.foo: field not declared in schema"
    );
    assert_eq!(e.status().code, 500);
    c["apiVersion"] = json!("apps/v2");
    assert_eq!(
        apply(None, &c, &request("a", T1, &reset), false)
            .unwrap_err()
            .status()
            .code,
        400
    );
    let mut c = config(json!({}));
    c["metadata"]["managedFields"] = json!([]);
    assert_eq!(
        apply(None, &c, &request("a", T1, &reset), false)
            .unwrap_err()
            .status()
            .code,
        400
    );
}

#[test]
fn many_updaters_are_folded() {
    let mut d = config(json!({"replicas": 0}));
    let reset = FieldSet::default();
    track_update(None, &mut d, &request("first", T1, &reset));
    d["metadata"]["uid"] = json!("u");
    for i in 0..20 {
        d = update_as(
            &d,
            |d| d["metadata"]["labels"][format!("l{i}")] = json!("x"),
            &format!("m{i:02}"),
        );
    }
    assert!(meta::managed_fields(&d).len() <= 10);
    assert!(
        meta::managed_fields(&d)
            .iter()
            .any(|e| e["manager"] == "ancient-changes")
    );
}

#[test]
fn field_sets_round_trip() {
    let v =
        json!({"f:a": {".": {}, "f:b": {}}, "f:c": {"v:\"x\"": {}, "k:{\"n\":1}": {"f:d": {}}}});
    let set = FieldSet::from_value(&v).unwrap();
    assert_eq!(set.to_value(), v);
    assert_eq!(set.union(&set), set);
    assert_eq!(set.intersection(&set), set);
    assert!(set.difference(&set).is_empty());
    assert!(FieldSet::from_value(&json!({"zz": {}})).is_err());
}

#[test]
fn applying_twice_changes_nothing() {
    let spec = json!({"replicas": 1, "template": {"spec": {"containers": [{"name": "c", "args": ["a", "a"]}]}}});
    let first = apply_as(None, spec.clone(), "m", false).unwrap();
    let reset = FieldSet::of(&["status"]);
    let again = apply(
        Some(&first),
        &config(spec),
        &request("m", T2, &reset),
        false,
    )
    .unwrap();
    assert_eq!(again, first, "not even the time");
}
