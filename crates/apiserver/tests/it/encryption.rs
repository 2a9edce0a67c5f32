//! Encryption at rest with a key management service, over a running server.

use std::path::Path;
use std::sync::{Arc, Mutex};

use http::Method;
use keelson_store::SharedStore;
use prost::Message;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::service::{grpc, temporary};
use crate::{Cluster, code, get, post};

const SECRETS: &str = "/api/v1/namespaces/default/secrets";

/// `Status`: version, health, key id. `Encrypt` and `Decrypt` share what they need of each other.
#[derive(Clone, PartialEq, prost::Message)]
struct Texts {
    #[prost(string, tag = "1")]
    first: String,
    #[prost(string, tag = "2")]
    second: String,
    #[prost(string, tag = "3")]
    third: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Sealed {
    #[prost(bytes = "vec", tag = "1")]
    bytes: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    annotations: std::collections::BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ToOpen {
    #[prost(bytes = "vec", tag = "1")]
    bytes: Vec<u8>,
    #[prost(string, tag = "3")]
    key_id: String,
    #[prost(btree_map = "string, bytes", tag = "4")]
    annotations: std::collections::BTreeMap<String, Vec<u8>>,
}

#[derive(Default)]
struct State {
    key_id: String,
    well: bool,
    opened: usize,
}

/// A service whose cipher is the key id added to every byte; it knows all of its old keys.
fn plugin(socket: &Path, state: &Arc<Mutex<State>>) -> JoinHandle<()> {
    let state = Arc::clone(state);
    let turned = |bytes: &[u8], key_id: &str, forth: bool| -> Vec<u8> {
        let shift = key_id.bytes().fold(0_u8, u8::wrapping_add);
        let turn = |b: &u8| match forth {
            true => b.wrapping_add(shift),
            false => b.wrapping_sub(shift),
        };
        bytes.iter().map(turn).collect()
    };
    grpc(socket, move |method, message| {
        let mut state = state.lock().unwrap();
        match method {
            "Status" => Ok(Texts {
                first: "v2".to_owned(),
                second: if state.well { "ok" } else { "broken" }.to_owned(),
                third: state.key_id.clone(),
            }
            .encode_to_vec()),
            "Encrypt" => {
                let asked = Sealed::decode(message).map_err(|e| e.to_string())?;
                let annotations = [("kind.kms.test".to_owned(), b"turned".to_vec())];
                Ok(Sealed {
                    bytes: turned(&asked.bytes, &state.key_id, true),
                    key_id: state.key_id.clone(),
                    annotations: annotations.into(),
                }
                .encode_to_vec())
            }
            "Decrypt" => {
                state.opened += 1;
                let asked = ToOpen::decode(message).map_err(|e| e.to_string())?;
                if asked.annotations.get("kind.kms.test").map(Vec::as_slice) != Some(b"turned") {
                    return Err("annotations are missing".to_owned());
                }
                let bytes = turned(&asked.bytes, &asked.key_id, false);
                Ok(Sealed {
                    bytes,
                    ..Sealed::default()
                }
                .encode_to_vec())
            }
            other => Err(format!("no method {other}")),
        }
    })
}

fn configuration(socket: &Path) -> std::path::PathBuf {
    let file = temporary("encryption");
    let text = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
        "resources": [{"resources": ["secrets"], "providers": [
            {"kms": {"apiVersion": "v2", "name": "test", "timeout": "2s",
                "endpoint": format!("unix://{}", socket.display())}},
            {"identity": {}}]}]});
    std::fs::write(&file, text.to_string()).unwrap();
    file
}

async fn raw(store: &SharedStore, name: &str) -> Vec<u8> {
    let key = format!("/registry/core/secrets/default/{name}");
    store.get(&key, 0).await.unwrap().unwrap().value.to_vec()
}

async fn write(cluster: &Cluster, name: &str) {
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
        "stringData": {"word": "open-sesame"}});
    post(&cluster.admin(), SECRETS, secret).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_management_service_guards_secrets() {
    let socket = temporary("kms");
    let state = Arc::new(Mutex::new(State {
        key_id: "one".to_owned(),
        well: true,
        opened: 0,
    }));
    let service = plugin(&socket, &state);
    let store = keelson_testkit_etcd::store().await;
    let file = configuration(&socket);
    let cluster =
        Cluster::start_on(&store, |config| config.encryption_file = Some(file.clone())).await;
    write(&cluster, "first").await;
    let first = raw(&store, "first").await;
    assert!(first.starts_with(b"k8s:enc:kms:v2:test:"));
    let hidden = |bytes: &[u8]| !bytes.windows(4).any(|w| w == b"open" || w == b"b3Bl");
    assert!(hidden(&first), "neither the text nor its base64 is stored");

    // The service has a new key. What is read under the old one is stale, so that an update that
    // changes nothing writes it under the new one.
    state.lock().unwrap().key_id = "two".to_owned();
    let cluster = cluster.restart(&store).await;
    let path = format!("{SECRETS}/first");
    let same = get(&cluster.admin(), &path).await.unwrap();
    assert_eq!(same["data"]["word"], "b3Blbi1zZXNhbWU=");
    let admin = cluster.admin();
    let _: serde_json::Value = admin
        .request(Method::PUT, &path, Some(&same))
        .await
        .unwrap();
    let second = raw(&store, "first").await;
    assert!(second != first && hidden(&second));

    // A seed comes from the service once, however many values it is for.
    write(&cluster, "second").await;
    write(&cluster, "third").await;
    let before = state.lock().unwrap().opened;
    let cluster = cluster.restart(&store).await;
    for name in ["first", "second", "third"] {
        let secret = get(&cluster.admin(), &format!("{SECRETS}/{name}"))
            .await
            .unwrap();
        assert_eq!(secret["data"]["word"], "b3Blbi1zZXNhbWU=");
    }
    // Two readers at once may both ask for it.
    assert!(state.lock().unwrap().opened <= before + 2);
    let health: Result<serde_json::Value, _> = get(&cluster.admin(), "/readyz/kms-providers").await;
    assert_ne!(code(&health), 500);

    state.lock().unwrap().well = false;
    let cluster = cluster.restart(&store).await;
    let health = get(&cluster.admin(), "/readyz/kms-providers").await;
    assert_eq!(code(&health), 500);
    assert_eq!(
        code(&get(&cluster.admin(), "/livez/kms-providers").await),
        404
    );
    cluster.stop().await;
    service.abort();
    for file in [socket, file] {
        let _ = std::fs::remove_file(file);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_not_there_lets_nothing_be_written() {
    let socket = temporary("kms");
    let store = keelson_testkit_etcd::store().await;
    let file = configuration(&socket);
    let cluster =
        Cluster::start_on(&store, |config| config.encryption_file = Some(file.clone())).await;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}});
    let refused = post(&cluster.admin(), SECRETS, secret).await;
    assert_eq!(code(&refused), 500);
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    post(
        &cluster.admin(),
        "/api/v1/namespaces/default/configmaps",
        map,
    )
    .await
    .unwrap();
    cluster.stop().await;
    let _ = std::fs::remove_file(file);
}
