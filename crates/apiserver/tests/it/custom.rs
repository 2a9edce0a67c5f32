//! Custom resources from definition to deletion.

use std::time::Duration;

use serde_json::{Value, json};

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

#[tokio::test]
async fn a_definition_makes_a_kind_that_is_checked_and_goes_with_it() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    post(&client, DEFINITIONS, definition()).await.unwrap();
    let own = format!("{DEFINITIONS}/widgets.example.com");
    until(async || {
        let found = get(&client, &own).await.unwrap();
        found["status"]["conditions"].as_array().is_some_and(|all| {
            all.iter()
                .any(|c| c["type"] == "Established" && c["status"] == "True")
        })
    })
    .await;
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
