//! Keeps an informer equal to the server: list, then watch from there, forever.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::Method;
use http_body_util::BodyExt;
use keelson_machinery::status::Status;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::client::with_query;
use crate::informer::{InformerOptions, Shared, key_of};
use crate::{Client, Error, ListOptions, Meta, PartialObjectMetadata, ResourceType, Result};

/// Longest watch frame that is accepted; objects are limited to about 3 MiB by the server.
const MAX_FRAME_BYTES: usize = 16 << 20;
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// A watch that lasted this long was no failure.
const STEADY: Duration = Duration::from_secs(1);
const LAST_BACKOFF: Duration = Duration::from_secs(30);

const METADATA_LIST: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
const METADATA: &str =
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";

pub(crate) struct Reflector<K> {
    pub(crate) client: Client,
    pub(crate) resource: ResourceType,
    pub(crate) options: InformerOptions,
    pub(crate) metadata: bool,
    pub(crate) shared: Arc<Shared<K>>,
}

/// Where a reflector stands.
enum Phase {
    /// The informer's content is unknown or too old.
    List,
    /// The informer equals the server at its last revision.
    Watch,
}

impl<K: Meta> Reflector<K> {
    pub(crate) async fn run(self) {
        let mut phase = Phase::List;
        let mut backoff = FIRST_BACKOFF;
        loop {
            let started = Instant::now();
            let step = match phase {
                Phase::List => self.list().await,
                Phase::Watch => self.watch().await,
            };
            if matches!(phase, Phase::Watch) && started.elapsed() >= STEADY {
                backoff = FIRST_BACKOFF;
            }
            match (&phase, step) {
                (Phase::List, Ok(())) => {
                    phase = Phase::Watch;
                    continue;
                }
                // Servers end watches now and then. One that shuts down ends them at once, so even
                // then the next one waits a little.
                (Phase::Watch, Ok(())) => {}
                (_, Err(error)) => {
                    tracing::debug!(resource = %self.resource.resource, %error, "watching again after {backoff:?}");
                    // A frame that cannot be decoded would come again.
                    if error.is_expired() || matches!(error, Error::Decode(_)) {
                        phase = Phase::List;
                    }
                }
            }
            tokio::time::sleep(backoff.mul_f64(0.5 + rand::random::<f64>())).await;
            backoff = (backoff * 2).min(LAST_BACKOFF);
        }
    }

    async fn list(&self) -> Result<()> {
        let accept = if self.metadata {
            METADATA_LIST
        } else {
            "application/json"
        };
        let mut options = ListOptions {
            label_selector: self.options.label_selector.clone(),
            field_selector: self.options.field_selector.clone(),
            ..ListOptions::default()
        };
        let mut objects: Vec<K> = Vec::new();
        loop {
            let page = self
                .client
                .list_as::<K>(&self.resource, &self.options.namespace, &options, accept)
                .await?;
            objects.extend(page.items);
            options.continue_token = page.metadata.continue_token;
            if options.continue_token.is_empty() {
                self.shared
                    .replace(objects, parse_version(&page.metadata.resource_version));
                return Ok(());
            }
        }
    }

    async fn watch(&self) -> Result<()> {
        let mut query = vec![
            ("watch", "true".to_owned()),
            ("allowWatchBookmarks", "true".to_owned()),
            (
                "resourceVersion",
                self.shared.resource_version().to_string(),
            ),
        ];
        for (name, value) in [
            ("labelSelector", &self.options.label_selector),
            ("fieldSelector", &self.options.field_selector),
        ] {
            if !value.is_empty() {
                query.push((name, value.clone()));
            }
        }
        let accept = if self.metadata {
            METADATA
        } else {
            "application/json"
        };
        let path = with_query(self.resource.path(&self.options.namespace, "", ""), &query);
        let mut body = self
            .client
            .raw(Method::GET, &path, None, None, accept)
            .await?
            .into_body();
        let mut buffer = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Error::Transport(error.to_string()))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let mut searched = buffer.len();
            buffer.extend_from_slice(&data);
            while let Some(end) = buffer[searched..].iter().position(|byte| *byte == b'\n') {
                self.apply(&buffer[..searched + end])?;
                buffer.advance(searched + end + 1);
                searched = 0;
            }
            if buffer.len() > MAX_FRAME_BYTES {
                return Err(Error::Transport(
                    "a watch frame is larger than 16 MiB".to_owned(),
                ));
            }
        }
        Ok(())
    }

    fn apply(&self, frame: &[u8]) -> Result<()> {
        if frame.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        match decode::<Kind>(frame)?.kind.as_str() {
            "ADDED" | "MODIFIED" => {
                let object = decode::<Frame<K>>(frame)?.object;
                let version = version_of(&object);
                self.shared.upsert(object);
                self.shared.advance(version);
            }
            "DELETED" => {
                let object = decode::<Frame<PartialObjectMetadata>>(frame)?.object;
                self.shared.remove(&key_of(&object.metadata));
                self.shared.advance(version_of(&object));
            }
            "BOOKMARK" => self.shared.advance(version_of(
                &decode::<Frame<PartialObjectMetadata>>(frame)?.object,
            )),
            "ERROR" => return Err(Error::Api(Box::new(decode::<Frame<Status>>(frame)?.object))),
            other => tracing::debug!(kind = other, "an unknown watch event was ignored"),
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Frame<T> {
    object: T,
}

fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T> {
    serde_json::from_slice(frame).map_err(Error::Decode)
}

fn version_of(object: &impl Meta) -> u64 {
    parse_version(
        object
            .meta()
            .resource_version
            .as_deref()
            .unwrap_or_default(),
    )
}

/// Resource versions are decimal numbers; one that is not counts as nothing seen.
fn parse_version(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}
