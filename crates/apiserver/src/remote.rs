//! A service that judges for this server (authentication, authorization, audit), named by a
//! kubeconfig file.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use keelson_client::{Client, Kubeconfig};
use serde_json::Value;
use thiserror::Error;

use crate::request::read_up_to;

const MAX_ANSWER_BYTES: usize = 3 << 20;
/// Upstream's: five calls, each pause half as long again as the one before.
const ATTEMPTS: u32 = 5;
const FIRST_BACKOFF: Duration = Duration::from_millis(500);

#[derive(Debug, Error)]
pub enum Error {
    #[error("reading the kubeconfig {file}")]
    Kubeconfig {
        file: String,
        #[source]
        source: keelson_client::Error,
    },
    #[error("the kubeconfig {file}: {reason}")]
    Server { file: String, reason: String },
    #[error("calling the webhook: {0}")]
    Call(#[source] keelson_client::Error),
    #[error("the webhook's answer: {0}")]
    Answer(String),
    #[error("the webhook did not answer within {0:?}")]
    Timeout(Duration),
}

impl Error {
    /// Whether the service may answer when it is asked again. One that is not there, or refuses,
    /// or takes its time, is not asked again: the caller waits.
    fn is_transient(&self) -> bool {
        match self {
            Error::Call(keelson_client::Error::Api(status)) => {
                matches!(status.code, 429 | 500 | 504)
            }
            Error::Call(keelson_client::Error::Transport(text)) => {
                text.contains("connection reset") || text.contains("connection closed")
            }
            _ => false,
        }
    }
}

pub(crate) struct Remote {
    client: Client,
    path: String,
}

impl Remote {
    /// From the current context of a kubeconfig file; its server may have a path.
    pub(crate) fn from_kubeconfig(file: &Path) -> Result<Self, Error> {
        let shown = file.display().to_string();
        let failed = |source| Error::Kubeconfig {
            file: shown.clone(),
            source,
        };
        let kubeconfig = Kubeconfig::read(file).map_err(failed)?;
        let directory = file.parent().unwrap_or(Path::new("."));
        let mut config = kubeconfig.client_config(None, directory).map_err(failed)?;
        let uri: http::Uri = config.server.parse().map_err(|error| Error::Server {
            file: shown.clone(),
            reason: format!("{:?} is no URL: {error}", config.server),
        })?;
        let path = uri
            .path_and_query()
            .map_or("/", |path| path.as_str())
            .to_owned();
        if let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) {
            config.server = format!("{scheme}://{authority}");
        }
        let client = Client::https(&config).map_err(failed)?;
        Ok(Self { client, path })
    }

    /// The answer; null when there is none.
    pub(crate) async fn post(&self, body: &Value, timeout: Duration) -> Result<Value, Error> {
        let separator = if self.path.contains('?') { '&' } else { '?' };
        let path = format!("{}{separator}timeout={}s", self.path, timeout.as_secs());
        let body = serde_json::to_vec(body).map_err(|e| Error::Answer(e.to_string()))?;
        let call = async {
            let response = self
                .client
                .raw(
                    Method::POST,
                    &path,
                    Some(Bytes::from(body)),
                    None,
                    "application/json",
                )
                .await
                .map_err(Error::Call)?;
            let (bytes, whole) = read_up_to(response.into_body(), MAX_ANSWER_BYTES).await;
            match (whole, bytes.is_empty()) {
                (false, _) => Err(Error::Answer("it broke off or is too large".to_owned())),
                (true, true) => Ok(Value::Null),
                (true, false) => {
                    serde_json::from_slice(&bytes).map_err(|e| Error::Answer(e.to_string()))
                }
            }
        };
        match tokio::time::timeout(timeout, call).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::Timeout(timeout)),
        }
    }

    /// As [`Remote::post`], again and again while the service says that it may answer yet.
    pub(crate) async fn ask(&self, body: &Value, timeout: Duration) -> Result<Value, Error> {
        let mut backoff = FIRST_BACKOFF;
        for _ in 1..ATTEMPTS {
            match self.post(body, timeout).await {
                Err(error) if error.is_transient() => tokio::time::sleep(backoff).await,
                outcome => return outcome,
            }
            backoff = backoff * 3 / 2;
        }
        self.post(body, timeout).await
    }
}
