//! Both engines against a model, across restarts, and under concurrent writers and watchers.
//! Tests with etcd are skipped, with a message, where there is no etcd.

#![allow(clippy::unwrap_used)]

/// Runs tests that take a new, empty store on the embedded engine and on an etcd of their own.
macro_rules! on_both_engines {
    ($($name:ident),* $(,)?) => {
        mod on_embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(keelson_store::embedded::memory()).await;
            })*
        }
        mod on_etcd {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(server) = keelson_testkit_etcd::EtcdServer::start() {
                    super::$name(crate::connect(&server).await).await;
                }
            })*
        }
    };
}

mod crash;
mod etcd_faults;
mod etcd_tls;
mod files;
mod model;
mod snapshots;
mod storage;
mod watching;

use bytes::Bytes;
use keelson_store::{SharedStore, Value, embedded, etcd};
use keelson_testkit_etcd::EtcdServer;

pub(crate) fn value(text: &str) -> Value {
    Value {
        bytes: Bytes::copy_from_slice(text.as_bytes()),
        stamp_at: None,
    }
}

pub(crate) async fn connect(server: &EtcdServer) -> SharedStore {
    let options = etcd::Options {
        compact_every: None,
        ..etcd::Options::new(vec![server.url().to_owned()])
    };
    etcd::connect(options).await.unwrap()
}

/// A directory of this test alone, removed when it ends.
pub(crate) struct Directory(pub(crate) std::path::PathBuf);

impl Directory {
    pub(crate) fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("keelson-store-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }

    pub(crate) fn open(&self) -> SharedStore {
        embedded::open(&self.0).unwrap()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
