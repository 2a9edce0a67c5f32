//! get, list, watch, and the forms objects are sent in.

use super::*;

#[tokio::test]
async fn items_of_a_typed_list_do_not_repeat_its_type() {
    let c = cluster().await;
    c.create_map("a", json!({})).await;
    let object = c.get(&format!("{MAPS}/a")).await.body;
    assert_eq!(object["kind"], "ConfigMap");
    let list = c.get(MAPS).await.body;
    let item = list["items"][0].as_object().unwrap();
    assert!(!item.contains_key("kind") && !item.contains_key("apiVersion"));
    for (name, value) in item {
        assert_eq!(*value, object[name], "{name}");
    }
    // Rendered, not sliced.
    let pretty = c.get(&format!("{MAPS}?pretty=true")).await.body;
    assert_eq!(pretty["items"], list["items"]);
}

#[tokio::test]
async fn cbor_is_there_behind_its_gate() {
    use keelson_machinery::cbor;
    let c = cluster().await;
    let object = json!({"metadata": {"name": "a"}, "binaryData": {"b": "aGVsbG8="}});
    let body = Bytes::from(cbor::encode(&object, None));
    let mut ctx = context("POST", MAPS, cbor::CONTENT_TYPE, cbor::CONTENT_TYPE);
    let refused = c.registry.handle(&ctx, body.clone()).await;
    assert_eq!(refused.status(), 406);
    ctx.features.cbor_serving_and_storage = true;
    // Without a schema a string is written as a byte string, which is base64 to a field of bytes.
    let created = c.registry.handle(&ctx, body).await;
    assert_eq!(created.status(), 201);
    let watch = format!("{MAPS}?watch=true&fieldSelector=metadata.name%3Da");
    let mut ctx = context("GET", &watch, "", cbor::CONTENT_TYPE);
    ctx.features.cbor_serving_and_storage = true;
    let response = c.registry.handle(&ctx, Bytes::new()).await;
    assert_eq!(
        response.headers()["content-type"],
        cbor::SEQUENCE_CONTENT_TYPE
    );
    let frame = response.into_body().frame().await.unwrap().unwrap();
    let event = cbor::decode(frame.data_ref().unwrap(), None)
        .unwrap()
        .object;
    assert_eq!(event["type"], "ADDED");
    assert_eq!(event["object"]["binaryData"]["b"], "aGVsbG8=");
    let mut ctx = context("GET", MAPS, "", cbor::CONTENT_TYPE);
    ctx.features.cbor_serving_and_storage = true;
    let response = c.registry.handle(&ctx, Bytes::new()).await;
    let list = response.into_body().collect().await.unwrap().to_bytes();
    let list = cbor::decode(&list, None).unwrap().object;
    assert_eq!(list["kind"], "ConfigMapList");
    assert!(list["items"][0].get("kind").is_none());
    let applied = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"c": "d"}});
    let path = format!("{MAPS}/a?fieldManager=m");
    let mut ctx = context(
        "PATCH",
        &path,
        "application/apply-patch+cbor",
        "application/json",
    );
    ctx.features.cbor_serving_and_storage = true;
    let applied = c.raw(&ctx, cbor::encode(&applied, None)).await;
    assert_eq!(
        (applied.code, &applied.body["data"]["c"]),
        (200, &json!("d"))
    );
}

#[tokio::test]
async fn lists_select_and_page_consistently() {
    let c = cluster().await;
    for i in 0..7 {
        c.create_map(&format!("m{i}"), json!({"even": (i % 2 == 0).to_string()}))
            .await;
    }
    let even = c
        .get(&format!("{MAPS}?labelSelector=even%3Dtrue"))
        .await
        .body;
    assert_eq!(even["items"].as_array().unwrap().len(), 4);
    assert_eq!(
        (even["kind"].as_str(), even["apiVersion"].as_str()),
        (Some("ConfigMapList"), Some("v1"))
    );
    let one = c
        .get(&format!("{MAPS}?fieldSelector=metadata.name%3Dm3"))
        .await
        .body;
    assert_eq!(one["items"][0]["metadata"]["name"], "m3");
    let bad = c.get(&format!("{MAPS}?fieldSelector=spec.x%3Dm3")).await;
    assert_eq!(bad.code, 400);

    let first = c.get(&format!("{MAPS}?limit=3")).await.body;
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    c.call("DELETE", &format!("{MAPS}/m5"), Value::Null).await;
    c.create_map("m9", json!({})).await;
    let mut names: Vec<String> = Vec::new();
    let mut page = first.clone();
    loop {
        assert_eq!(
            page["metadata"]["resourceVersion"],
            first["metadata"]["resourceVersion"]
        );
        names.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|o| o["metadata"]["name"].as_str().unwrap().to_owned()),
        );
        let Some(token) = page["metadata"]["continue"]
            .as_str()
            .filter(|t| !t.is_empty())
        else {
            break;
        };
        page = c
            .get(&format!("{MAPS}?limit=3&continue={token}"))
            .await
            .body;
    }
    assert_eq!(
        names,
        ["m0", "m1", "m2", "m3", "m4", "m5", "m6"],
        "every page is of the first one's revision"
    );

    let token = first["metadata"]["continue"].as_str().unwrap();
    c.registry
        .store()
        .compact(c.registry.store().current_revision().await.unwrap())
        .await
        .unwrap();
    let expired = c.get(&format!("{MAPS}?limit=3&continue={token}")).await;
    assert_eq!(
        (expired.code, expired.body["reason"].as_str()),
        (410, Some("Expired"))
    );
    let token = expired.body["metadata"]["continue"].as_str().unwrap();
    let rest = c.get(&format!("{MAPS}?continue={token}")).await.body;
    let rest: Vec<_> = rest["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| o["metadata"]["name"].clone())
        .collect();
    assert_eq!(rest, ["m3", "m4", "m6", "m9"]);
}

#[tokio::test]
async fn watches_follow_selectors() {
    let c = cluster().await;
    c.create_map("a", json!({"on": "1"})).await;
    c.create_map("b", json!({})).await;
    let mut watch = c
        .watch(&format!("{MAPS}?watch=true&labelSelector=on%3D1"))
        .await;
    watch.expect("ADDED", "a").await;
    c.call(
        "PATCH",
        &format!("{MAPS}/b"),
        json!({"metadata": {"labels": {"on": "1"}}}),
    )
    .await;
    watch.expect("ADDED", "b").await;
    c.call("PATCH", &format!("{MAPS}/b"), json!({"data": {"a": "2"}}))
        .await;
    watch.expect("MODIFIED", "b").await;
    let left = c
        .call(
            "PATCH",
            &format!("{MAPS}/b"),
            json!({"metadata": {"labels": {"on": null}}}),
        )
        .await
        .body;
    let gone = watch.expect("DELETED", "b").await;
    assert_eq!(
        gone["metadata"]["resourceVersion"],
        left["metadata"]["resourceVersion"]
    );
    assert_eq!(
        gone["metadata"]["labels"]["on"], "1",
        "a DELETED event has the last state that matched"
    );
    c.call("DELETE", &format!("{MAPS}/a"), Value::Null).await;
    watch.expect("DELETED", "a").await;

    let mut resumed = c
        .watch(&format!(
            "{MAPS}?watch=true&resourceVersion={}",
            left["metadata"]["resourceVersion"].as_str().unwrap()
        ))
        .await;
    resumed.expect("DELETED", "a").await;
}

#[tokio::test]
async fn a_watch_list_ends_its_beginning_with_a_bookmark() {
    let c = cluster().await;
    c.create_map("a", json!({})).await;
    let uri = format!(
        "{MAPS}?watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
    );
    let mut watch = c.watch(&uri).await;
    watch.expect("ADDED", "a").await;
    let (kind, bookmark) = watch.next().await.unwrap();
    assert_eq!(kind, "BOOKMARK");
    assert_eq!(
        bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    let timeout = c
        .watch(&format!(
            "{MAPS}?watch=true&timeoutSeconds=1&resourceVersion=0"
        ))
        .await;
    let mut timeout = timeout;
    timeout.expect("ADDED", "a").await;
    assert!(
        timeout.next().await.is_none(),
        "the watch ends after its timeout"
    );
}

#[tokio::test]
async fn old_watches_are_gone() {
    let c = cluster().await;
    let first = c.create_map("a", json!({})).await;
    let filler = "x".repeat(30_000);
    for i in 0..200 {
        let data = json!({"data": {"a": format!("{i}{filler}")}});
        c.call("PATCH", &format!("{MAPS}/a"), data).await;
    }
    let revision = first["metadata"]["resourceVersion"].as_str().unwrap();
    let answer = c
        .get(&format!("{MAPS}?watch=true&resourceVersion={revision}"))
        .await;
    assert_eq!(
        (answer.code, answer.body["reason"].as_str()),
        (410, Some("Expired"))
    );
    assert!(
        answer.body["message"]
            .as_str()
            .unwrap()
            .starts_with("too old resource version: ")
    );
}

#[tokio::test]
async fn tables_and_metadata_are_rendered() {
    let c = cluster().await;
    c.create_map("a", json!({})).await;
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let answer = c
        .raw(&context("GET", MAPS, "application/json", table), "")
        .await
        .body;
    assert_eq!(
        (
            answer["kind"].as_str(),
            answer["columnDefinitions"][0]["name"].as_str()
        ),
        (Some("Table"), Some("Name"))
    );
    assert_eq!(answer["rows"][0]["cells"][0], "a");
    assert_eq!(answer["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let metadata =
        "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json";
    let answer = c
        .raw(&context("GET", MAPS, "application/json", metadata), "")
        .await
        .body;
    assert_eq!(answer["kind"], "PartialObjectMetadataList");
    assert!(
        answer["items"][0].get("data").is_none() && answer["items"][0]["metadata"]["name"] == "a"
    );
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: yaml\ndata:\n  k: \"0644\"\n";
    let created = c
        .raw(
            &context("POST", MAPS, "application/yaml", "application/json"),
            yaml,
        )
        .await;
    assert_eq!(
        (created.code, &created.body["data"]["k"]),
        (201, &json!("0644")),
        "{}",
        created.body
    );
}

#[tokio::test]
async fn both_groups_of_events_share_their_objects() {
    let c = cluster().await;
    let event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "reason": "R", "type": "Normal", "message": "hello",
        "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"}, "source": {"component": "c"}, "count": 1,
        "firstTimestamp": "2024-01-01T00:00:00Z", "lastTimestamp": "2024-01-01T00:00:00Z"});
    let created = c
        .call("POST", "/api/v1/namespaces/default/events", event)
        .await;
    assert_eq!(created.code, 201, "{}", created.body);
    let other = c
        .get("/apis/events.k8s.io/v1/namespaces/default/events/e")
        .await
        .body;
    assert_eq!(
        (other["apiVersion"].as_str(), other["note"].as_str()),
        (Some("events.k8s.io/v1"), Some("hello"))
    );
    assert_eq!(other["regarding"]["name"], "p");
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let store = keelson_testkit_etcd::store().await;
    let created = {
        let c = cluster_over(Arc::clone(&store)).await;
        c.create_map("a", json!({})).await
    };
    let admission = AdmissionChain::new();
    let registry = Registry::start(
        store,
        Resources::builtin(
            &crate::RuntimeConfig::everything(),
            &crate::FeatureGates::everything(),
        ),
        admission,
        ServiceConfig::new(&["10.96.0.0/24".parse().unwrap()]),
    )
    .await
    .unwrap();
    let again = Objects::get(&*registry, "", "configmaps", "default", "a").unwrap();
    assert_eq!(*again, created);
}

#[tokio::test]
async fn protobuf_is_spoken_where_there_is_a_message() {
    use keelson_machinery::protobuf;
    const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
    const POD: &str = "io.k8s.api.core.v1.Pod";
    let type_of = |_: &str, kind: &str| match kind {
        "Pod" => Some(POD),
        "PodList" => Some("io.k8s.api.core.v1.PodList"),
        _ => None,
    };
    let c = cluster().await;
    let pods = "/api/v1/namespaces/default/pods";
    let raw = async |method: &str, uri: &str, body: Vec<u8>| {
        let ctx = context(
            method,
            uri,
            PROTOBUF,
            &format!("{PROTOBUF},application/json"),
        );
        let response = c.registry.handle(&ctx, body.into()).await;
        let content_type = response.headers()["content-type"]
            .to_str()
            .unwrap()
            .to_owned();
        let code = response.status().as_u16();
        (code, content_type, response.into_body())
    };
    let (code, content_type, body) =
        raw("POST", pods, protobuf::encode(&pod("a"), POD).unwrap()).await;
    assert_eq!((code, content_type.as_str()), (201, PROTOBUF));
    let created = protobuf::decode(&body.collect().await.unwrap().to_bytes(), type_of).unwrap();
    assert_eq!(created["metadata"]["name"], "a");
    let as_json = c.get(&format!("{pods}/a")).await.body;
    assert_eq!(created["metadata"]["uid"], as_json["metadata"]["uid"]);
    let (_, _, body) = raw("GET", pods, Vec::new()).await;
    let list = protobuf::decode(&body.collect().await.unwrap().to_bytes(), type_of).unwrap();
    assert_eq!(list["items"][0]["spec"]["containers"][0]["image"], "i");
    let (_, content_type, mut body) = raw("GET", &format!("{pods}?watch=1"), Vec::new()).await;
    assert_eq!(
        content_type,
        "application/vnd.kubernetes.protobuf;stream=watch"
    );
    let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(
        u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize,
        frame.len() - 4
    );
}
