//! Lists and watches asked for with any path and any parameters, of a registry with a few objects.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use http_body_util::BodyExt;
use keelson_apiserver::admission::AdmissionChain;
use keelson_apiserver::objects::Objects;
use keelson_apiserver::registry::{Registry, Resources};
use keelson_apiserver::request::{RequestContext, UserInfo};
use keelson_apiserver::{FeatureGates, RuntimeConfig, ServiceConfig};
use keelson_store::embedded::{self, Retention};
use serde_json::json;
use tokio::runtime::Runtime;

pub(crate) const REQUESTS: &[&[u8]] = &[
    b"api/v1/configmaps?watch=true&resourceVersion=1&allowWatchBookmarks=true&timeoutSeconds=1",
    b"api/v1/namespaces/default/configmaps?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true",
    b"api/v1/watch/namespaces/default/configmaps/a?resourceVersion=0",
    b"api/v1/configmaps?limit=1&continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6NSwic3RhcnQiOiJkZWZhdWx0L2FcdTAwMDAifQ",
    b"api/v1/configmaps?labelSelector=a%3Db,c%20in%20(d)&fieldSelector=metadata.name%3Da&resourceVersion=3&resourceVersionMatch=Exact",
    b"api/v1/pods?fieldSelector=spec.nodeName!%3Dn,status.phase%3DRunning&limit=-1&timeoutSeconds=x",
];
/// What has not answered by then waits for a revision that never comes.
const PATIENCE: Duration = Duration::from_millis(20);

struct Server {
    runtime: Runtime,
    registry: Arc<Registry>,
}

pub(crate) fn parameters(data: &[u8]) {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    let uri = std::str::from_utf8(data).ok();
    let uri = uri.and_then(|text| format!("/{text}").parse::<Uri>().ok());
    let server = SERVER.get_or_init(start).as_ref();
    assert!(server.is_some(), "the registry does not start");
    let (Some(uri), Some(server)) = (uri, server) else {
        return;
    };
    server.runtime.block_on(async {
        let user = UserInfo::admin("fuzz");
        let context = RequestContext::new(Method::GET, &uri, HeaderMap::new(), user);
        let answer = server.registry.handle(&context, Bytes::new());
        let Ok(answer) = tokio::time::timeout(PATIENCE, answer).await else {
            return;
        };
        let code = answer.status().as_u16();
        // A watch from a version that is no number is answered by 500, as upstream does.
        assert!(matches!(code, 200 | 400..=500 | 504), "{uri}: {code}");
        // A watch goes on; its first events are enough.
        let mut body = answer.into_body();
        if let Ok(Some(frame)) = tokio::time::timeout(PATIENCE, body.frame()).await {
            assert!(frame.is_ok(), "{uri}: the answer is cut off");
        }
    });
}

fn start() -> Option<Server> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .ok()?;
    let registry = runtime.block_on(async {
        let registry = Registry::start(
            embedded::memory_with(Retention::default()),
            Resources::builtin(&RuntimeConfig::everything(), &FeatureGates::everything()),
            AdmissionChain::new(),
            ServiceConfig::new(&["10.96.0.0/24".parse().ok()?]),
        )
        .await
        .ok()?;
        let objects: &dyn Objects = &*registry;
        for name in ["a", "b", "c"] {
            let object = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": name, "labels": {"a": "b"}},
            });
            let created = objects.create("", "configmaps", "default", object).await;
            created.ok()?;
        }
        Some(registry)
    })?;
    Some(Server { runtime, registry })
}
