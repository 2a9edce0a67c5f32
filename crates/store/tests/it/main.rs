//! The embedded store against a model, across restarts, and under concurrent writers and watchers.

#![allow(clippy::unwrap_used)]

mod files;
mod model;
mod watching;

use bytes::Bytes;
use keelson_store::{SharedStore, Value, embedded};

pub(crate) fn value(text: &str) -> Value {
    Value {
        bytes: Bytes::copy_from_slice(text.as_bytes()),
        stamp_at: None,
    }
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
