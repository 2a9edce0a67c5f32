//! get and list.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD, URL_SAFE_NO_PAD};
use keelson_machinery::json_text;
use keelson_machinery::status::Status;
use keelson_store::{Error, KeyValue, RangeResult};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Registry;
use super::options::ListOptions;
use super::render::ListMeta;
use super::resources::ResourceEntry;
use super::selection::Selection;
use super::write::store_error;
use crate::cache::Object;

/// Where a list goes on. The form is upstream's, though clients may not look inside.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct ContinueToken {
    v: String,
    rv: i64,
    start: String,
}

/// Go's decoder does not mind bits left over at the end.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::URL_SAFE,
    NO_PAD.with_decode_allow_trailing_bits(true),
);

const TOKEN_VERSION: &str = "meta.k8s.io/v1";
/// Entries read from the store at once while filling a page through a selector.
const SCAN: usize = 1000;

impl Registry {
    pub(crate) async fn get(
        &self,
        entry: &ResourceEntry,
        namespace: &str,
        name: &str,
    ) -> Result<KeyValue, Status> {
        let key = self.key(entry, namespace, name);
        let found = self.store.get(&key, 0).await.map_err(store_error)?;
        found.ok_or_else(|| Status::not_found(&entry.group, &entry.resource, name))
    }

    pub(crate) async fn list(
        &self,
        entry: &ResourceEntry,
        selection: &Selection,
        options: &ListOptions,
    ) -> Result<(Vec<Arc<Object>>, ListMeta), Status> {
        if !options.continue_token.is_empty() {
            return self.list_continued(entry, selection, options).await;
        }
        let revision = options.revision()?;
        if options.resource_version_match == "Exact" && revision > 0 {
            return self
                .list_exact(entry, selection, options, revision, None)
                .await;
        }
        if options.resource_version.is_empty() {
            self.caches.wait_current().await?;
        } else {
            self.caches.wait(revision).await?;
        }
        // Read first: what the cache holds is at least this new.
        let reached = self.caches.revision();
        let cache = self
            .caches
            .get(&entry.storage_group, &entry.resource)
            .ok_or_else(|| Status::internal(format!("no cache of {}", entry.resource)))?;
        let objects = match (
            &selection.name,
            entry.namespaced && selection.namespace.is_empty(),
        ) {
            (Some(name), false) => cache.get(&selection.namespace, name).into_iter().collect(),
            _ => cache.list(&selection.namespace),
        };
        // Whatever version there is comes from the cache, and that way has no pages.
        let limit = if options.limit == 0 || options.resource_version == "0" {
            usize::MAX
        } else {
            options.limit
        };
        let mut rest = objects.into_iter();
        let page: Vec<_> = if selection.is_everything() {
            // The namespace was the cache's to look at.
            rest.by_ref().take(limit).collect()
        } else {
            rest.by_ref()
                .filter(|object| selection.matches(entry, object))
                .take(limit)
                .collect()
        };
        let mut meta = ListMeta {
            revision: reached,
            ..ListMeta::default()
        };
        if page.len() == limit {
            // Whether any of the rest matches is for the next page to find out.
            let rest = rest.len();
            if rest > 0 {
                meta.continue_token = token(reached, &page);
                meta.remaining = selection.is_everything().then_some(rest);
            }
        }
        Ok((page, meta))
    }

    async fn list_continued(
        &self,
        entry: &ResourceEntry,
        selection: &Selection,
        options: &ListOptions,
    ) -> Result<(Vec<Arc<Object>>, ListMeta), Status> {
        let invalid = |reason: &str| {
            Status::bad_request(format!(
                "invalid continue token: continue key is not valid: {reason}"
            ))
        };
        let decoded = LENIENT
            .decode(&options.continue_token)
            .map_err(|err| invalid(&illegal_base64(&err)))?;
        let token = json_text::parse(&decoded).map_err(|err| invalid(&err))?;
        let token: ContinueToken =
            serde_json::from_value(token).map_err(|err| invalid(&err.to_string()))?;
        if token.v != TOKEN_VERSION {
            return Err(invalid(&format!(
                "server does not recognize this encoded version {}",
                token.v
            )));
        }
        if token.rv == 0 {
            return Err(invalid(&format!(
                "incorrect encoded start resourceVersion (version {TOKEN_VERSION})"
            )));
        }
        if !options.resource_version.is_empty() && options.resource_version != "0" {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        if token.start.is_empty() {
            return Err(invalid(&format!(
                "encoded start key empty (version {TOKEN_VERSION})"
            )));
        }
        if token.start.split('/').any(|part| part == "..") {
            return Err(invalid(&token.start));
        }
        let start = format!(
            "{}{}",
            crate::cache::prefix(&entry.storage_group, &entry.resource),
            token.start
        );
        let revision = u64::try_from(token.rv).unwrap_or(0);
        match self
            .list_exact(entry, selection, options, revision, Some(start))
            .await
        {
            Err(status) if status.code == 410 => Err(Status::expired(EXPIRED_TOKEN)),
            result => result,
        }
    }

    /// From the store's history; revision 0 is now.
    async fn list_exact(
        &self,
        entry: &ResourceEntry,
        selection: &Selection,
        options: &ListOptions,
        revision: u64,
        start: Option<String>,
    ) -> Result<(Vec<Arc<Object>>, ListMeta), Status> {
        let prefix = crate::cache::prefix(&entry.storage_group, &entry.resource);
        let scope = if selection.namespace.is_empty() || !entry.namespaced {
            prefix.clone()
        } else {
            format!("{prefix}{}/", selection.namespace)
        };
        let end = format!("{}0", &scope[..scope.len() - 1]);
        let mut start = start.filter(|start| *start >= scope).unwrap_or(scope);
        let limit = if options.limit == 0 {
            usize::MAX
        } else {
            options.limit
        };
        let scan = if options.limit == 0 {
            0
        } else if selection.is_everything() {
            options.limit
        } else {
            options.limit.max(SCAN)
        };
        let mut page = Vec::new();
        let mut at = revision;
        loop {
            let range = self
                .store
                .range(&start, &end, scan, at)
                .await
                .map_err(range_error)?;
            let RangeResult {
                items,
                count,
                revision,
            } = range;
            at = revision;
            let read = items.len();
            let mut taken = 0;
            for kv in items {
                taken += 1;
                start = format!("{}\0", kv.key);
                let object = Arc::new(Object::new(kv, prefix.len()));
                if selection.matches(entry, &object) {
                    page.push(object);
                }
                if page.len() == limit {
                    break;
                }
            }
            let rest = count - taken;
            let mut meta = ListMeta {
                revision,
                ..ListMeta::default()
            };
            if rest == 0 || page.len() == limit {
                if rest > 0 {
                    meta.continue_token = token(revision, &page);
                    meta.remaining = selection.is_everything().then_some(rest);
                }
                return Ok((page, meta));
            }
            debug_assert!(read > 0, "the store said that more keys follow");
            if read == 0 {
                return Ok((page, meta));
            }
        }
    }
}

/// Go's decoder tells the place of the first byte that it cannot take.
fn illegal_base64(err: &base64::DecodeError) -> String {
    let at = match err {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => {
            *at
        }
        base64::DecodeError::InvalidLength(length) => length.saturating_sub(length % 4),
        _ => 0,
    };
    format!("illegal base64 data at input byte {at}")
}

fn token(revision: u64, page: &[Arc<Object>]) -> String {
    let start = page
        .last()
        .map(|object| format!("{}\0", object.path()))
        .unwrap_or_default();
    let token = ContinueToken {
        v: TOKEN_VERSION.into(),
        rv: i64::try_from(revision).unwrap_or(i64::MAX),
        start,
    };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
}

/// A list that cannot go on consistently may go on from the same key at the newest state: the
/// token for that is in the error's metadata.
pub(crate) fn with_inconsistent_token(status: &Status, given: &str) -> Value {
    let mut out = status.to_value();
    let decoded = URL_SAFE_NO_PAD.decode(given.trim_end_matches('=')).ok();
    let token = decoded.and_then(|bytes| serde_json::from_slice::<ContinueToken>(&bytes).ok());
    if let Some(token) = token {
        let token = ContinueToken { rv: -1, ..token };
        let text = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default());
        out["metadata"] = json!({"continue": text});
    }
    out
}

const EXPIRED_TOKEN: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

fn range_error(err: Error) -> Status {
    match err {
        Error::Compacted { .. } => {
            Status::expired("The resourceVersion for the provided list is too old.")
        }
        Error::FutureRevision { requested, current } => crate::cache::too_large(requested, current),
        err => store_error(err),
    }
}
