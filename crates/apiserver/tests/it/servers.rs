//! Two servers on one etcd are one cluster.

use std::time::Duration;

use keelson_apiserver::{ApiServer, Config};
use keelson_client::{Client, ClientConfig};
use keelson_store::etcd;
use keelson_testkit_etcd::EtcdServer;
use serde_json::{Value, json};

use super::*;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PATIENCE: Duration = Duration::from_secs(60);

struct Member {
    server: ApiServer,
    port: u16,
    dir: PathBuf,
}

impl Member {
    async fn start(etcd: &EtcdServer, address: [u8; 4]) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = std::env::temp_dir().join(format!("keelson-member-{}", uuid::Uuid::new_v4()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = Config {
            port,
            advertise_address: Some(address.into()),
            ..Config::new(&dir)
        };
        let options = etcd::Options::new(vec![etcd.url().to_owned()]);
        let store = etcd::connect(options).await.unwrap();
        let server = ApiServer::start(config, store).await.unwrap();
        server.serve(listener).unwrap();
        Self { server, port, dir }
    }

    fn admin(&self) -> Client {
        self.server.client(UserInfo::admin("test-admin"))
    }

    /// What another server's administrator can do here: the certificate is of the same authority.
    fn over_tls(&self, of: &Member) -> Client {
        let pki = of.server.pki();
        let admin = pki.admin().unwrap();
        let config = ClientConfig {
            server: format!("https://127.0.0.1:{}", self.port),
            certificate_authority: pki.cluster_ca.certificate_pem.clone().into_bytes(),
            client_certificate: admin.certificate_pem.into_bytes(),
            client_key: admin.key_pem.into_bytes(),
            ..ClientConfig::default()
        };
        Client::https(&config).unwrap()
    }

    async fn stop(self) {
        self.server.shutdown().await;
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn map(name: &str, text: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": text}})
}

async fn addresses(client: &Client) -> Vec<String> {
    let endpoints = get(client, "/api/v1/namespaces/default/endpoints/kubernetes");
    let endpoints = endpoints.await.unwrap();
    let subsets = endpoints["subsets"].as_array().cloned().unwrap_or_default();
    let mut found: Vec<String> = subsets
        .iter()
        .flat_map(|subset| subset["addresses"].as_array().cloned().unwrap_or_default())
        .map(|address| address["ip"].as_str().unwrap().to_owned())
        .collect();
    found.sort();
    found
}

async fn until_addresses(client: &Client, wanted: &[&str]) {
    let reached = tokio::time::timeout(PATIENCE, async {
        while addresses(client).await != wanted {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    assert!(reached.await.is_ok(), "{:?}", addresses(client).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_on_one_etcd_are_one_cluster() {
    let Some(mut etcd) = EtcdServer::start() else {
        return;
    };
    let (one, two) = tokio::join!(
        Member::start(&etcd, [192, 0, 2, 1]),
        Member::start(&etcd, [192, 0, 2, 2])
    );
    let (a, b) = (one.over_tls(&two), two.over_tls(&one));
    until_addresses(&a, &["192.0.2.1", "192.0.2.2"]).await;

    // What one writes the other reads at once and lists, and conflicts are conflicts for both.
    for i in 0..20 {
        let name = format!("m{i}");
        let (writer, reader) = if i % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let created = post(writer, MAPS, map(&name, "1")).await.unwrap();
        let read = get(reader, &format!("{MAPS}/{name}")).await.unwrap();
        assert_eq!(created, read);
        let listed = get(reader, MAPS).await.unwrap();
        let items = listed["items"].as_array().unwrap();
        assert!(
            items
                .iter()
                .any(|item| item["metadata"]["name"] == name.as_str())
        );
        assert_eq!(code(&post(reader, MAPS, map(&name, "2")).await), 409);
    }
    let path = format!("{MAPS}/m0");
    let current = get(&a, &path).await.unwrap();
    let change = |text: &str| {
        let mut changed = current.clone();
        changed["data"]["a"] = text.into();
        changed
    };
    let (left, right) = (change("left"), change("right"));
    let (left, right) = tokio::join!(
        a.request(Method::PUT, &path, Some(&left)),
        b.request(Method::PUT, &path, Some(&right))
    );
    let mut codes = [code(&left), code(&right)];
    codes.sort_unstable();
    assert_eq!(codes, [0, 409]);

    // A token of one is good for the other.
    let account = "/api/v1/namespaces/default/serviceaccounts";
    let object = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "s"}});
    post(&a, account, object).await.unwrap();
    let request =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let token = post(&a, &format!("{account}/s/token"), request)
        .await
        .unwrap();
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token["status"]["token"]}});
    let review = post(&b, "/apis/authentication.k8s.io/v1/tokenreviews", review);
    let review = review.await.unwrap();
    assert_eq!(
        review["status"]["user"]["username"],
        "system:serviceaccount:default:s"
    );

    // Both answer again after etcd was away, with everything there.
    let etcd = tokio::task::spawn_blocking(move || {
        etcd.kill();
        etcd.restart();
        etcd
    });
    let etcd = etcd.await.unwrap();
    for client in [&a, &b] {
        let listed = get(client, MAPS).await.unwrap();
        assert_eq!(listed["items"].as_array().unwrap().len(), 20, "{listed}");
    }
    post(&b, MAPS, map("after", "1")).await.unwrap();
    assert_eq!(
        get(&a, &format!("{MAPS}/after")).await.unwrap()["data"]["a"],
        "1"
    );

    // One ends; the other goes on and is alone in the endpoints.
    two.stop().await;
    until_addresses(&one.admin(), &["192.0.2.1"]).await;
    post(&one.admin(), MAPS, map("alone", "1")).await.unwrap();
    one.stop().await;
    drop(etcd);
}
