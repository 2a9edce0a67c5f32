//! Admission policies, and rules of custom resources, over a running server.

use std::time::Duration;

use http::Method;
use keelson_client::{Client, Error};
use serde_json::{Value, json};

use crate::{Cluster, code, get, post};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn constraints(operations: Value) -> Value {
    json!({"resourceRules": [{
        "apiGroups": [""], "apiVersions": ["v1"], "operations": operations, "resources": ["configmaps"],
    }]})
}

fn named(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn config_map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

async fn validating(client: &Client, spec: Value, binding: Value) {
    let policy = named("ValidatingAdmissionPolicy", "rules", spec);
    post(
        client,
        &format!("{GROUP}/validatingadmissionpolicies"),
        policy,
    )
    .await
    .unwrap();
    let binding = named("ValidatingAdmissionPolicyBinding", "bound", binding);
    let path = format!("{GROUP}/validatingadmissionpolicybindings");
    post(client, &path, binding).await.unwrap();
}

fn message(outcome: &Result<Value, Error>) -> &str {
    match outcome {
        Err(Error::Api(status)) => &status.message,
        _ => "",
    }
}

#[tokio::test]
async fn a_policy_takes_parameters_from_its_binding() {
    const SECRETS: &str = "/api/v1/namespaces/default/secrets";
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let mut rules = constraints(json!(["CREATE", "UPDATE"]));
    rules["resourceRules"][0]["resources"] = json!(["secrets"]);
    validating(
        &client,
        json!({
            "matchConstraints": rules,
            "matchConditions": [{"name": "not-exempt", "expression": "!(has(params.data.exempt) && params.data.exempt == object.metadata.name)"}],
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "variables": [{"name": "limit", "expression": "int(params.data.limit)"}],
            "validations": [
                {"expression": "object.data.size() <= variables.limit", "messageExpression": "'at most ' + string(params.data.limit) + ' in ' + namespaceObject.metadata.name"},
                {"expression": "authorizer.group('').resource('secrets').namespace(request.namespace).check('create').allowed()"},
                {"expression": "authorizer.requestResource.check('delete').allowed()", "reason": "Forbidden", "message": "who makes it must be able to delete it"},
            ],
        }),
        json!({
            "policyName": "rules", "validationActions": ["Deny"],
            "paramRef": {"name": "limits", "namespace": "default", "parameterNotFoundAction": "Deny"},
        }),
    )
    .await;
    let secret = |name: &str, data: Value| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data});
    let refused = post(&client, SECRETS, secret("early", json!({}))).await;
    assert_eq!(code(&refused), 422);
    assert_eq!(
        message(&refused),
        r#"secrets "early" is forbidden: ValidatingAdmissionPolicy 'rules' with binding 'bound' denied request: failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"#
    );
    let limits = config_map("limits", json!({"limit": "1", "exempt": "big"}));
    post(&client, CONFIG_MAPS, limits).await.unwrap();
    let two = json!({"a": "", "b": ""});
    let refused = post(&client, SECRETS, secret("late", two.clone())).await;
    assert_eq!(
        message(&refused),
        r#"secrets "late" is forbidden: ValidatingAdmissionPolicy 'rules' with binding 'bound' denied request: at most 1 in default"#
    );
    post(&client, SECRETS, secret("big", two)).await.unwrap();
    post(&client, SECRETS, secret("small", json!({"a": ""})))
        .await
        .unwrap();
    cluster.stop().await;
}

#[tokio::test]
async fn a_policy_denies_what_its_expressions_say() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    validating(
        &client,
        json!({
            "matchConstraints": constraints(json!(["*"])),
            "matchConditions": [{"name": "named", "expression": "request.name.startsWith('checked')"}],
            "variables": [
                {"name": "old", "expression": "oldObject == null ? {} : oldObject.data"},
                {"name": "size", "expression": "object == null ? 0 : object.data.size()"},
            ],
            "validations": [
                {"expression": "variables.size < 3", "messageExpression": "'found ' + string(variables.size)"},
                {"expression": "variables.old.all(k, k in object.data)", "message": "nothing goes", "reason": "Forbidden"},
            ],
        }),
        json!({"policyName": "rules", "validationActions": ["Deny"]}),
    )
    .await;
    let three = json!({"a": "", "b": "", "c": ""});
    post(&client, CONFIG_MAPS, config_map("free", three.clone()))
        .await
        .unwrap();
    let refused = post(&client, CONFIG_MAPS, config_map("checked", three)).await;
    assert_eq!(code(&refused), 422);
    assert_eq!(
        message(&refused),
        r#"configmaps "checked" is forbidden: ValidatingAdmissionPolicy 'rules' with binding 'bound' denied request: found 3"#
    );
    post(
        &client,
        CONFIG_MAPS,
        config_map("checked", json!({"a": ""})),
    )
    .await
    .unwrap();
    let path = format!("{CONFIG_MAPS}/checked");
    let mut held = get(&client, &path).await.unwrap();
    held["data"] = json!({"b": ""});
    let refused = client.request(Method::PUT, &path, Some(&held)).await;
    assert_eq!(code(&refused), 403);
    assert!(message(&refused).ends_with("denied request: nothing goes"));
    cluster.stop().await;
}

#[tokio::test]
async fn a_policy_changes_what_is_written() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let policy = named(
        "MutatingAdmissionPolicy",
        "rules",
        json!({
            "matchConstraints": constraints(json!(["CREATE"])),
            "reinvocationPolicy": "IfNeeded",
            "failurePolicy": "Fail",
            "mutations": [
                {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{metadata: Object.metadata{labels: {'made-by': request.userInfo.username}}}"}},
                {"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('example.com/size'), value: string(object.data.size())}]"}},
            ],
        }),
    );
    post(
        &client,
        &format!("{GROUP}/mutatingadmissionpolicies"),
        policy,
    )
    .await
    .unwrap();
    let binding = named(
        "MutatingAdmissionPolicyBinding",
        "bound",
        json!({"policyName": "rules"}),
    );
    let path = format!("{GROUP}/mutatingadmissionpolicybindings");
    post(&client, &path, binding).await.unwrap();
    let made = post(
        &client,
        CONFIG_MAPS,
        config_map("made", json!({"a": "", "b": ""})),
    )
    .await
    .unwrap();
    assert_eq!(
        made["metadata"]["labels"],
        json!({"made-by": "test-admin", "example.com/size": "2"})
    );
    let odd = post(&client, CONFIG_MAPS, config_map("odd", Value::Null)).await;
    assert_eq!(code(&odd), 403);
    assert!(
        message(&odd).starts_with(
            "policy 'rules' with binding 'bound' denied request: expression '[JSONPatch{"
        ),
        "{}",
        message(&odd)
    );
    cluster.stop().await;
}

#[tokio::test]
async fn the_types_of_a_policy_are_checked() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let policy = named(
        "ValidatingAdmissionPolicy",
        "confused",
        json!({
            "matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]}]},
            "validations": [{"expression": "object.spec.replicas > '1'", "messageExpression": "'wants more than ' + object.spec.replicas"}],
        }),
    );
    let path = format!("{GROUP}/validatingadmissionpolicies");
    post(&client, &path, policy).await.unwrap();
    let own = format!("{path}/confused");
    for _ in 0..200 {
        let status = get(&client, &own).await.unwrap()["status"].clone();
        if status["typeChecking"].is_object() {
            let warnings = &status["typeChecking"]["expressionWarnings"];
            assert_eq!(warnings[0]["fieldRef"], "spec.validations[0].expression");
            let text = warnings[0]["warning"].as_str().unwrap();
            assert!(text.starts_with("apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'"), "{text}");
            assert_eq!(
                warnings[1]["fieldRef"],
                "spec.validations[0].messageExpression"
            );
            assert_eq!(status["observedGeneration"], 1);
            return cluster.stop().await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("no status came in time");
}

#[tokio::test]
async fn rules_of_custom_resources_hold_for_their_objects() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let definition = |rule: &str| {
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "ranges.example.com"},
            "spec": {
                "group": "example.com", "scope": "Namespaced",
                "names": {"plural": "ranges", "singular": "range", "kind": "Range", "listKind": "RangeList"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                    "type": "object", "properties": {"spec": {"type": "object",
                        "x-kubernetes-validations": [{"rule": rule}],
                        "properties": {"min": {"type": "integer"}, "max": {"type": "integer"}}}}}}}],
            },
        })
    };
    let refused = post(&client, definitions, definition("self.least < 1")).await;
    assert_eq!(code(&refused), 422);
    assert!(message(&refused).contains("undefined field 'least'"));
    post(&client, definitions, definition("self.min <= self.max"))
        .await
        .unwrap();
    let path = "/apis/example.com/v1/namespaces/default/ranges";
    for _ in 0..200 {
        if get(&client, path).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let range = |min: i64, max: i64| json!({"apiVersion": "example.com/v1", "kind": "Range", "metadata": {"name": format!("r{min}")}, "spec": {"min": min, "max": max}});
    post(&client, path, range(1, 2)).await.unwrap();
    let refused = post(&client, path, range(3, 2)).await;
    assert_eq!(code(&refused), 422);
    assert_eq!(
        message(&refused),
        r#"Range.example.com "r3" is invalid: spec: Invalid value: failed rule: self.min <= self.max"#
    );
    cluster.stop().await;
}

#[tokio::test]
async fn a_policy_is_heard_before_the_store_is() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let spec = json!({"matchConstraints": constraints(json!(["CREATE"])),
        "validations": [{"expression": "!has(object.data)", "message": "no data"}]});
    let binding = json!({"policyName": "rules", "validationActions": ["Deny"]});
    validating(&client, spec, binding).await;
    let mut map = config_map("m", json!({"a": "b"}));
    map["metadata"]["resourceVersion"] = json!("7");
    let refused = post(&client, CONFIG_MAPS, map.clone()).await;
    assert!(
        message(&refused).contains("no data"),
        "{}",
        message(&refused)
    );
    map.as_object_mut().unwrap().remove("data");
    let refused = post(&client, CONFIG_MAPS, map).await;
    let said = "resourceVersion should not be set on objects to be created";
    assert_eq!((code(&refused), message(&refused)), (500, said));
    cluster.stop().await;
}
