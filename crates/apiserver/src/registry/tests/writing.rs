//! create, update, patch, apply, delete.

use super::*;

#[tokio::test]
async fn an_object_lives_and_dies() {
    let c = cluster().await;
    let created = c.create_map("a", json!({"x": "1"})).await;
    let meta = &created["metadata"];
    assert!(meta["uid"].as_str().unwrap().len() == 36 && meta["creationTimestamp"].is_string());
    assert_eq!(meta["namespace"], "default");
    let got = c.get(&format!("{MAPS}/a")).await;
    assert_eq!(got.body, created);

    let mut changed = created.clone();
    changed["data"]["a"] = "2".into();
    let updated = c.call("PUT", &format!("{MAPS}/a"), changed.clone()).await;
    assert_eq!(
        (updated.code, &updated.body["data"]["a"]),
        (200, &json!("2"))
    );
    assert_ne!(
        updated.body["metadata"]["resourceVersion"],
        meta["resourceVersion"]
    );
    assert_eq!(updated.body["metadata"]["uid"], meta["uid"]);

    let again = c
        .call("PUT", &format!("{MAPS}/a"), updated.body.clone())
        .await;
    assert_eq!(
        again.body, updated.body,
        "a write that changes nothing is none"
    );

    let stale = c.call("PUT", &format!("{MAPS}/a"), changed).await;
    assert_eq!(stale.code, 409);
    assert_eq!(
        stale.body["message"],
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );

    let deleted = c.call("DELETE", &format!("{MAPS}/a"), Value::Null).await;
    assert_eq!(
        (deleted.code, deleted.body["status"].as_str()),
        (200, Some("Success"))
    );
    assert_eq!(deleted.body["details"]["uid"], meta["uid"]);
    let gone = c.get(&format!("{MAPS}/a")).await;
    assert_eq!(
        (gone.code, gone.body["message"].as_str()),
        (404, Some("configmaps \"a\" not found"))
    );
}

#[tokio::test]
async fn creation_is_refused_with_the_right_status() {
    let c = cluster().await;
    c.create_map("a", json!({})).await;
    let twice = c.call("POST", MAPS, config_map("a", json!({}))).await;
    assert_eq!(
        (twice.code, twice.body["reason"].as_str()),
        (409, Some("AlreadyExists"))
    );
    let mut elsewhere = config_map("b", json!({}));
    elsewhere["metadata"]["namespace"] = "other".into();
    let mismatch = c.call("POST", MAPS, elsewhere).await;
    assert_eq!(
        (mismatch.code, mismatch.body["message"].as_str()),
        (
            400,
            Some(
                "the namespace of the provided object does not match the namespace sent on the request"
            )
        )
    );
    let bad_name = c.call("POST", MAPS, config_map("A_b", json!({}))).await;
    assert_eq!(bad_name.code, 422, "{}", bad_name.body);
    assert!(
        bad_name.body["message"]
            .as_str()
            .unwrap()
            .starts_with("ConfigMap \"A_b\" is invalid: metadata.name: Invalid value")
    );
    let wrong_kind = c.call("POST", MAPS, pod("x")).await;
    assert_eq!(wrong_kind.code, 400);
    let mut versioned = config_map("c", json!({}));
    versioned["metadata"]["resourceVersion"] = "5".into();
    assert_eq!(c.call("POST", MAPS, versioned).await.code, 500);
    assert_eq!(c.get("/api/v1/nothings").await.code, 404);
    assert_eq!(
        c.call("POST", "/api/v1/configmaps", config_map("d", json!({})))
            .await
            .code,
        405
    );
    let media = c
        .raw(
            &context("POST", MAPS, "text/plain", "application/json"),
            "x",
        )
        .await;
    assert_eq!(media.code, 415);
    let accept = c
        .raw(&context("GET", MAPS, "application/json", "image/png"), "")
        .await;
    assert_eq!(accept.code, 406);
    let large = c
        .raw(
            &context("POST", MAPS, "application/json", "application/json"),
            vec![b' '; 4 << 20],
        )
        .await;
    assert_eq!(large.code, 413);
}

#[tokio::test]
async fn names_are_generated() {
    let c = cluster().await;
    let mut object = config_map("x", json!({}));
    object["metadata"] = json!({"generateName": "many-"});
    for _ in 0..20 {
        let answer = c.call("POST", MAPS, object.clone()).await;
        let name = answer.body["metadata"]["name"].as_str().unwrap().to_owned();
        assert!(name.starts_with("many-") && name.len() == 10, "{name}");
    }
    assert_eq!(
        c.get(MAPS).await.body["items"].as_array().unwrap().len(),
        20
    );
}

#[tokio::test]
async fn unknown_fields_are_reported_as_asked() {
    let c = cluster().await;
    let mut object = config_map("a", json!({}));
    object["spec"] = json!({"x": 1});
    let warned = c.call("POST", MAPS, object.clone()).await;
    assert_eq!(
        (warned.code, warned.warnings),
        (201, vec!["unknown field \"spec\"".to_owned()])
    );
    assert!(warned.body.get("spec").is_none());
    object["metadata"]["name"] = "b".into();
    let strict = c
        .call(
            "POST",
            &format!("{MAPS}?fieldValidation=Strict"),
            object.clone(),
        )
        .await;
    assert_eq!(strict.code, 400);
    assert!(
        strict.body["message"]
            .as_str()
            .unwrap()
            .contains("strict decoding error: unknown field \"spec\"")
    );
    let ignored = c
        .call("POST", &format!("{MAPS}?fieldValidation=Ignore"), object)
        .await;
    assert_eq!((ignored.code, ignored.warnings.len()), (201, 0));
}

#[tokio::test]
async fn a_dry_run_leaves_nothing() {
    let c = cluster().await;
    let dry = c
        .call(
            "POST",
            &format!("{MAPS}?dryRun=All"),
            config_map("a", json!({})),
        )
        .await;
    assert_eq!(
        (dry.code, dry.body["metadata"].get("resourceVersion")),
        (201, None)
    );
    assert_eq!(c.get(&format!("{MAPS}/a")).await.code, 404);
    let created = c.create_map("a", json!({})).await;
    let patched = c
        .call(
            "PATCH",
            &format!("{MAPS}/a?dryRun=All"),
            json!({"data": {"a": "9"}}),
        )
        .await;
    assert_eq!(
        (patched.code, &patched.body["data"]["a"]),
        (200, &json!("9"))
    );
    assert_eq!(
        c.call("DELETE", &format!("{MAPS}/a?dryRun=All"), Value::Null)
            .await
            .code,
        200
    );
    assert_eq!(c.get(&format!("{MAPS}/a")).await.body, created);
}

#[tokio::test]
async fn concurrent_patches_all_count() {
    let c = Arc::new(cluster().await);
    c.create_map("a", json!({})).await;
    let tasks: Vec<_> = (0..24)
        .map(|i| {
            let c = Arc::clone(&c);
            tokio::spawn(async move {
                let answer = c
                    .call(
                        "PATCH",
                        &format!("{MAPS}/a"),
                        json!({"data": {format!("k{i}"): "v"}}),
                    )
                    .await;
                assert_eq!(answer.code, 200, "{}", answer.body);
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let data = c.get(&format!("{MAPS}/a")).await.body["data"]
        .as_object()
        .unwrap()
        .len();
    assert_eq!(data, 25);
}

#[tokio::test]
async fn finalizers_hold_objects_back() {
    let c = cluster().await;
    let mut object = config_map("a", json!({}));
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    c.call("POST", MAPS, object).await;
    let pending = c.call("DELETE", &format!("{MAPS}/a"), Value::Null).await;
    assert_eq!(pending.code, 200);
    assert!(
        pending.body["metadata"]["deletionTimestamp"].is_string(),
        "{}",
        pending.body
    );
    let again = c.call("POST", MAPS, config_map("a", json!({}))).await;
    assert_eq!(
        again.body["message"],
        "object is being deleted: configmaps \"a\" already exists"
    );
    let freed = c
        .call(
            "PATCH",
            &format!("{MAPS}/a"),
            json!({"metadata": {"finalizers": null}}),
        )
        .await;
    assert_eq!(freed.code, 200, "{}", freed.body);
    assert_eq!(c.get(&format!("{MAPS}/a")).await.code, 404);

    c.create_map("b", json!({})).await;
    let options =
        json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"});
    let foreground = c.call("DELETE", &format!("{MAPS}/b"), options).await;
    assert_eq!(
        foreground.body["metadata"]["finalizers"],
        json!(["foregroundDeletion"])
    );
    let wrong_uid = json!({"preconditions": {"uid": "nobody"}});
    let refused = c.call("DELETE", &format!("{MAPS}/b"), wrong_uid).await;
    assert_eq!(refused.code, 409, "{}", refused.body);
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let c = cluster().await;
    for i in 0..6 {
        c.create_map(&format!("m{i}"), json!({"x": (i % 2).to_string()}))
            .await;
    }
    let answer = c
        .call(
            "DELETE",
            &format!("{MAPS}?labelSelector=x%3D0"),
            Value::Null,
        )
        .await;
    assert_eq!(
        (answer.code, answer.body["items"].as_array().map(Vec::len)),
        (200, Some(3))
    );
    assert_eq!(c.get(MAPS).await.body["items"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn applied_fields_have_owners() {
    let c = cluster().await;
    let apply = async |manager: &str, query: &str, data: Value| {
        let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data});
        let uri = format!("{MAPS}/a?fieldManager={manager}{query}");
        let ctx = context(
            "PATCH",
            &uri,
            "application/apply-patch+yaml",
            "application/json",
        );
        c.raw(&ctx, serde_json::to_vec(&config).unwrap()).await
    };
    let created = apply("one", "", json!({"a": "1", "b": "1"})).await;
    assert_eq!(created.code, 201, "{}", created.body);
    assert_eq!(
        created.body["metadata"]["managedFields"][0]["operation"],
        "Apply"
    );
    let again = apply("one", "", json!({"a": "1", "b": "1"})).await;
    assert_eq!(
        (again.code, &again.body),
        (200, &created.body),
        "applying the same again changes nothing"
    );
    let conflict = apply("two", "", json!({"a": "2"})).await;
    assert_eq!(conflict.code, 409);
    assert_eq!(
        conflict.body["message"],
        "Apply failed with 1 conflict: conflict with \"one\": .data.a"
    );
    let forced = apply("two", "&force=true", json!({"a": "2"})).await;
    assert_eq!(
        (forced.code, &forced.body["data"]),
        (200, &json!({"a": "2", "b": "1"}))
    );
    let removed = apply("one", "", json!({})).await;
    assert_eq!(
        removed.body["data"],
        json!({"a": "2"}),
        "what its only owner no longer applies goes"
    );
    let ctx = context(
        "PATCH",
        &format!("{MAPS}/a"),
        "application/apply-patch+yaml",
        "application/json",
    );
    assert_eq!(c.raw(&ctx, "{}").await.code, 422, "a manager is required");
}

#[tokio::test]
async fn every_kind_of_patch_applies() {
    let c = cluster().await;
    let pods = "/api/v1/namespaces/default/pods";
    c.call("POST", pods, pod("p")).await;
    let patch = async |kind: &str, body: Value| {
        let ctx = context("PATCH", &format!("{pods}/p"), kind, "application/json");
        c.raw(&ctx, serde_json::to_vec(&body).unwrap()).await
    };
    let json_patch = patch(
        "application/json-patch+json",
        json!([{"op": "add", "path": "/metadata/labels", "value": {"a": "1"}}]),
    )
    .await;
    assert_eq!(
        (json_patch.code, &json_patch.body["metadata"]["labels"]),
        (200, &json!({"a": "1"})),
        "{}",
        json_patch.body
    );
    let strategic = json!({"spec": {"containers": [{"name": "c", "image": "j"}]}});
    let strategic = patch("application/strategic-merge-patch+json", strategic).await;
    assert_eq!(
        (
            strategic.code,
            &strategic.body["spec"]["containers"][0]["image"]
        ),
        (200, &json!("j")),
        "{}",
        strategic.body
    );
    assert_eq!(
        strategic.body["spec"]["containers"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(patch("text/plain", json!({})).await.code, 415);
    assert_eq!(
        patch(
            "application/json-patch+json",
            json!([{"op": "test", "path": "/metadata/name", "value": "x"}])
        )
        .await
        .code,
        422
    );
    let absent = context(
        "PATCH",
        &format!("{pods}/q"),
        "application/merge-patch+json",
        "application/json",
    );
    assert_eq!(c.raw(&absent, "{}").await.code, 404);
}
