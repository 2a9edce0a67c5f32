//! The audit log: who asked for what, and what became of it (`audit.k8s.io/v1`). Nothing of it
//! costs anything when no backend is configured.

mod file;
mod policy;
mod record;
mod webhook;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

pub(crate) use policy::{Level, Policy};
pub(crate) use record::{MAX_OBJECT_BYTES, Record};

use crate::remote;

#[derive(Debug, Clone, Default)]
pub struct AuditOptions {
    /// Which requests are recorded and how much of them; nothing is without one.
    pub policy_file: Option<PathBuf>,
    /// `-` is the standard output.
    pub log_path: Option<String>,
    /// Days, files and megabytes; 0 is no bound.
    pub log_max_age: u32,
    pub log_max_backups: usize,
    pub log_max_size: u64,
    /// Kubeconfig of a service that takes the events.
    pub webhook_config_file: Option<PathBuf>,
    pub webhook_batch_max_size: Option<usize>,
    pub webhook_batch_max_wait: Option<Duration>,
}

#[derive(Debug, Error)]
pub enum Error {
    #[error("the audit policy {file}: {reason}")]
    Policy { file: String, reason: String },
    #[error("opening the audit log {path}")]
    Log {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the audit webhook")]
    Webhook(#[source] remote::Error),
}

/// Where events go. Must not block for long: events are sent while a request is served.
trait Sink: Send + Sync {
    fn write(&self, event: &Value);
}

pub(crate) struct Audit {
    policy: Policy,
    sinks: Vec<Box<dyn Sink>>,
}

impl Audit {
    /// Nothing when no policy or no backend is configured.
    pub(crate) fn open(options: &AuditOptions) -> Result<Option<Self>, Error> {
        let Some(file) = &options.policy_file else {
            return Ok(None);
        };
        let failed = |reason: String| Error::Policy {
            file: file.display().to_string(),
            reason,
        };
        let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
        let policy = Policy::parse(&text).map_err(failed)?;
        let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
        if let Some(path) = &options.log_path {
            let log = file::LogFile::open(path, options).map_err(|source| Error::Log {
                path: path.clone(),
                source,
            })?;
            sinks.push(Box::new(log));
        }
        if let Some(file) = &options.webhook_config_file {
            let remote = remote::Remote::from_kubeconfig(file).map_err(Error::Webhook)?;
            sinks.push(Box::new(webhook::Batches::start(remote, options)));
        }
        Ok((!sinks.is_empty()).then_some(Self { policy, sinks }))
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    fn write(&self, event: &Value) {
        for sink in &self.sinks {
            sink.write(event);
        }
    }
}
