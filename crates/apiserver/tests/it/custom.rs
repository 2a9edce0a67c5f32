//! Custom resources from definition to deletion.

use std::time::Duration;

use keelson_client::Client;
use serde_json::{Value, json};

use crate::service::Service;
use crate::{Cluster, code, get, post};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "required": ["size"], "properties": {
                        "size": {"type": "integer", "minimum": 1},
                        "color": {"type": "string", "default": "red"},
                    }},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                }}},
            }],
        },
    })
}

async fn until(mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..200 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it did not come to hold in time");
}

async fn established(client: &Client, definition: &str) {
    until(async || {
        let found = get(client, definition).await.unwrap();
        found["status"]["conditions"].as_array().is_some_and(|all| {
            all.iter()
                .any(|c| c["type"] == "Established" && c["status"] == "True")
        })
    })
    .await;
}

#[tokio::test]
async fn a_definition_makes_a_kind_that_is_checked_and_goes_with_it() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    post(&client, DEFINITIONS, definition()).await.unwrap();
    let own = format!("{DEFINITIONS}/widgets.example.com");
    established(&client, &own).await;
    let path = "/apis/example.com/v1/namespaces/default/widgets";
    let widget = |size: i64| json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"size": size, "unknown": 1}});
    let made = post(&client, path, widget(2)).await.unwrap();
    assert_eq!(
        made["spec"],
        json!({"size": 2, "color": "red"}),
        "defaulted and pruned"
    );
    let refused = post(&client, path, widget(0)).await;
    assert_eq!(code(&refused), 422);
    let list = get(&client, "/apis/example.com/v1").await.unwrap();
    assert_eq!(list["resources"][0]["name"], "widgets");
    client
        .request(http::Method::DELETE, &own, None)
        .await
        .unwrap();
    until(async || code(&get(&client, &own).await) == 404).await;
    until(async || code(&get(&client, path).await) == 404).await;
    cluster.stop().await;
}

/// A converter that writes the size of v1 as the text of v2, and back.
fn convert(review: &Value) -> Value {
    let request = &review["request"];
    let objects = request["objects"].as_array().unwrap().iter().map(|object| {
        let mut object = object.clone();
        object["apiVersion"] = request["desiredAPIVersion"].clone();
        object["spec"]["size"] = match &object["spec"]["size"] {
            Value::String(text) => text.parse::<i64>().unwrap().into(),
            number => number.to_string().into(),
        };
        object
    });
    json!({"apiVersion": review["apiVersion"], "kind": "ConversionReview", "response": {
        "uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": objects.collect::<Vec<_>>()}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_converter_answered_is_not_asked_again() {
    use base64::Engine;
    let service = Service::start(|_, review| Some((200, convert(review)))).await;
    let authority = base64::engine::general_purpose::STANDARD.encode(&service.certificate);
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let mut definition = definition();
    let versions = definition["spec"]["versions"].as_array_mut().unwrap();
    let mut second = versions[0].clone();
    second["name"] = json!("v2");
    second["storage"] = json!(false);
    second["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["size"] =
        json!({"type": "string"});
    versions.push(second);
    definition["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {
        "conversionReviewVersions": ["v1"],
        "clientConfig": {"url": format!("{}/convert", service.url), "caBundle": authority}}});
    post(&client, DEFINITIONS, definition).await.unwrap();
    established(&client, &format!("{DEFINITIONS}/widgets.example.com")).await;
    let path = |version: &str| format!("/apis/example.com/{version}/namespaces/default/widgets");
    for (name, size) in [("a", 1), ("b", 2)] {
        let widget = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": {"size": size}});
        post(&client, &path("v1"), widget).await.unwrap();
    }
    let sizes = async || {
        let list = get(&client, &path("v2")).await.unwrap();
        let items = list["items"].as_array().unwrap();
        let sizes = items.iter().map(|item| item["spec"]["size"].clone());
        sizes.collect::<Vec<_>>()
    };
    assert_eq!(sizes().await, [json!("1"), json!("2")]);
    let asked = service.seen().len();
    assert_eq!(sizes().await, [json!("1"), json!("2")]);
    let one = get(&client, &format!("{}/a", path("v2"))).await.unwrap();
    assert_eq!(service.seen().len(), asked, "all of it was known");
    let stored = get(&client, &format!("{}/a", path("v1"))).await.unwrap();
    assert_eq!(
        one["metadata"]["resourceVersion"],
        stored["metadata"]["resourceVersion"]
    );
    let mut changed = stored;
    changed["spec"]["size"] = json!(7);
    let own = format!("{}/a", path("v1"));
    client
        .request(http::Method::PUT, &own, Some(&changed))
        .await
        .unwrap();
    assert_eq!(sizes().await, [json!("7"), json!("2")]);
    assert!(service.seen().len() > asked, "this was new");
}
