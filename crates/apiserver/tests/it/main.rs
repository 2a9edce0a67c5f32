//! The server over TLS and in process; its store in memory, and once more in etcd.

#![allow(clippy::unwrap_used)]

mod access;
mod credentials;
mod custom;
mod encryption;
mod flow;
mod front;
mod identity;
mod policies;
mod servers;
mod service;
mod streaming;
mod webhooks;

use std::path::PathBuf;
use std::sync::Arc;

use http::Method;
use keelson_apiserver::{ApiServer, Config, UserInfo};
use keelson_client::{Client, ClientConfig, Error};
use keelson_store::SharedStore;
use serde_json::Value;
use tokio::net::TcpListener;

#[test]
fn all_of_this_on_etcd() {
    keelson_testkit_etcd::rerun_on_etcd("all_of_this_on_etcd", "");
}

/// A server of its own for one test; everything it made goes with it.
pub(crate) struct Cluster {
    pub(crate) server: ApiServer,
    pub(crate) port: u16,
    dir: PathBuf,
    config: Config,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// With a configuration of its own.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::start_on(&keelson_testkit_etcd::store().await, change).await
    }

    pub(crate) async fn start_on(store: &SharedStore, change: impl FnOnce(&mut Config)) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = std::env::temp_dir().join(format!("keelson-apiserver-{}", uuid::Uuid::new_v4()));
        let mut config = Config::new(&dir);
        change(&mut config);
        Self::serve(store, dir, config).await
    }

    /// Another server on the same store and configuration in this one's place.
    pub(crate) async fn restart(self, store: &SharedStore) -> Self {
        self.server.shutdown().await;
        Self::serve(store, self.dir, self.config).await
    }

    async fn serve(store: &SharedStore, dir: PathBuf, mut config: Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        config.port = listener.local_addr().unwrap().port();
        let server = ApiServer::start(config.clone(), Arc::clone(store))
            .await
            .unwrap();
        server.serve(listener).unwrap();
        Self {
            server,
            port: config.port,
            dir,
            config,
        }
    }

    pub(crate) fn admin(&self) -> Client {
        self.server.client(UserInfo::admin("test-admin"))
    }

    pub(crate) fn user(&self, name: &str) -> Client {
        self.server
            .client(UserInfo::new(name, &["system:authenticated"]))
    }

    /// What a client over the network starts from.
    pub(crate) fn https(&self) -> ClientConfig {
        ClientConfig {
            server: format!("https://127.0.0.1:{}", self.port),
            certificate_authority: self
                .server
                .pki()
                .cluster_ca
                .certificate_pem
                .clone()
                .into_bytes(),
            ..ClientConfig::default()
        }
    }

    /// A file that goes with the cluster.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) async fn stop(self) {
        self.server.shutdown().await;
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub(crate) async fn get(client: &Client, path: &str) -> Result<Value, Error> {
    client.request(Method::GET, path, None).await
}

pub(crate) async fn post(client: &Client, path: &str, body: Value) -> Result<Value, Error> {
    client.request(Method::POST, path, Some(&body)).await
}

/// The HTTP status of a refusal; 0 for anything else.
pub(crate) fn code<T>(outcome: &Result<T, Error>) -> u16 {
    match outcome {
        Err(Error::Api(status)) => status.code,
        _ => 0,
    }
}
