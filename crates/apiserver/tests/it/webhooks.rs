//! Admission webhooks and the connections to them.

use serde_json::json;

use crate::service::Service;
use crate::{Cluster, post};

const PATH: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";

#[tokio::test]
async fn calls_of_a_webhook_share_a_connection_while_it_stands() {
    use base64::Engine;
    let service = Service::start(|path, review| {
        if path == "/broken" {
            return Some((500, json!({})));
        }
        let response = json!({"uid": review["request"]["uid"], "allowed": true});
        Some((200, json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})))
    })
    .await;
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let authority = base64::engine::general_purpose::STANDARD.encode(&service.certificate);
    let webhook = |name: &str, resource: &str| {
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": name}, "webhooks": [{"name": format!("{name}.example.com"), "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "clientConfig": {"url": format!("{}/{name}", service.url), "caBundle": authority},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": [resource]}]}]})
    };
    for (name, resource) in [("asked", "configmaps"), ("broken", "secrets")] {
        post(&admin, PATH, webhook(name, resource)).await.unwrap();
    }
    let create = async |kind: &str, resource: &str, name: usize| {
        let object =
            json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": format!("c-{name}")}});
        let path = format!("/api/v1/namespaces/default/{resource}");
        post(&admin, &path, object).await.is_ok()
    };
    for name in 0..5 {
        assert!(create("ConfigMap", "configmaps", name).await);
        assert!(!create("Secret", "secrets", name).await, "it is refused");
    }
    assert_eq!(service.seen().len(), 10, "every write was asked about");
    assert!(
        service.connections() <= 2,
        "{} connections",
        service.connections()
    );
}
