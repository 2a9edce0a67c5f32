//! Typed and raw requests over a transport.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::Method;
use http_body::Body as _;
use http_body_util::BodyExt;
use keelson_machinery::status::Status;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::ledger::Ledger;
use crate::types::escape;
use crate::{
    Body, ClientConfig, DeleteOptions, Error, HttpsTransport, ListOptions, Object, ObjectList,
    Patch, ResourceType, Result, Transport, object_key,
};

/// Answers larger than this are refused rather than buffered; watches are streamed and not subject
/// to it.
const MAX_RESPONSE_BYTES: usize = 512 << 20;

/// A cheap handle; clones share the transport.
///
/// `namespace` arguments are empty for cluster-scoped objects, and for lists across namespaces.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    ledger: Option<Arc<Ledger>>,
    user_agent: Arc<str>,
}

impl Client {
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        Self {
            transport,
            ledger: None,
            user_agent: Arc::from(concat!("keelson/", env!("CARGO_PKG_VERSION"))),
        }
    }

    pub fn https(config: &ClientConfig) -> Result<Self> {
        Ok(Self::new(Arc::new(HttpsTransport::new(config)?)))
    }

    /// Names this client in `managedFields` and audit logs.
    pub fn with_user_agent(mut self, name: &str) -> Self {
        self.user_agent = format!("{name}/v{}", env!("CARGO_PKG_VERSION")).into();
        self
    }

    /// Every write from now on is entered in `ledger`.
    pub(crate) fn with_ledger(mut self, ledger: Arc<Ledger>) -> Self {
        self.ledger = Some(ledger);
        self
    }

    pub async fn get<K: Object>(&self, namespace: &str, name: &str) -> Result<K> {
        let path = ResourceType::of::<K>().path(namespace, name, "");
        self.send(Method::GET, &path, None, None).await
    }

    /// `None` when the object does not exist.
    pub async fn try_get<K: Object>(&self, namespace: &str, name: &str) -> Result<Option<K>> {
        match self.get(namespace, name).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn list<K: Object>(
        &self,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<ObjectList<K>> {
        self.list_as(
            &ResourceType::of::<K>(),
            namespace,
            options,
            "application/json",
        )
        .await
    }

    pub(crate) async fn list_as<K: DeserializeOwned>(
        &self,
        resource: &ResourceType,
        namespace: &str,
        options: &ListOptions,
        accept: &'static str,
    ) -> Result<ObjectList<K>> {
        let path = with_query(resource.path(namespace, "", ""), &options.query());
        let response = self.raw(Method::GET, &path, None, None, accept).await?;
        decode(&collect(response).await?)
    }

    /// The namespace is the object's own.
    pub async fn create<K: Object>(&self, object: &K) -> Result<K> {
        let resource = ResourceType::of::<K>();
        let namespace = object.metadata().namespace.as_deref().unwrap_or_default();
        let created: K = self
            .send(
                Method::POST,
                &resource.path(namespace, "", ""),
                Some(object_json(object)?),
                None,
            )
            .await?;
        self.note_write(&resource, &created);
        Ok(created)
    }

    pub async fn update<K: Object>(&self, object: &K) -> Result<K> {
        self.put(object, "").await
    }

    pub async fn update_status<K: Object>(&self, object: &K) -> Result<K> {
        self.put(object, "status").await
    }

    async fn put<K: Object>(&self, object: &K, subresource: &str) -> Result<K> {
        let resource = ResourceType::of::<K>();
        let meta = object.metadata();
        let path = resource.path(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
            subresource,
        );
        let updated: K = self
            .send(Method::PUT, &path, Some(object_json(object)?), None)
            .await?;
        self.note_write(&resource, &updated);
        Ok(updated)
    }

    pub async fn patch<K: Object>(
        &self,
        namespace: &str,
        name: &str,
        patch: &Patch,
        subresource: Option<&str>,
    ) -> Result<K> {
        let resource = ResourceType::of::<K>();
        let mut path = resource.path(namespace, name, subresource.unwrap_or_default());
        if let Patch::Apply { manager, force, .. } = patch {
            path = with_query(
                path,
                &[
                    ("fieldManager", manager.clone()),
                    ("force", force.to_string()),
                ],
            );
        }
        let body = serde_json::to_vec(patch.value()).map_err(Error::Decode)?;
        let patched: K = self
            .send(
                Method::PATCH,
                &path,
                Some(body.into()),
                Some(patch.content_type()),
            )
            .await?;
        self.note_write(&resource, &patched);
        Ok(patched)
    }

    /// Returns once the deletion is accepted; the object may linger for its finalizers.
    pub async fn delete<K: Object>(
        &self,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<()> {
        self.delete_resource(&ResourceType::of::<K>(), namespace, name, options)
            .await
    }

    pub async fn delete_resource(
        &self,
        resource: &ResourceType,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<()> {
        let body = serde_json::to_vec(&options.to_json()).map_err(Error::Decode)?;
        let response = self
            .raw(
                Method::DELETE,
                &resource.path(namespace, name, ""),
                Some(body.into()),
                None,
                "application/json",
            )
            .await?;
        collect(response).await?;
        if let Some(ledger) = &self.ledger {
            ledger.deleted(resource, object_key(namespace, name), options.uid.clone());
        }
        Ok(())
    }

    pub async fn delete_collection(
        &self,
        resource: &ResourceType,
        namespace: &str,
        options: &DeleteOptions,
        selection: &ListOptions,
    ) -> Result<()> {
        let path = with_query(resource.path(namespace, "", ""), &selection.query());
        let body = serde_json::to_vec(&options.to_json()).map_err(Error::Decode)?;
        let response = self
            .raw(
                Method::DELETE,
                &path,
                Some(body.into()),
                None,
                "application/json",
            )
            .await?;
        collect(response).await.map(drop)
    }

    /// POST to a subresource: `binding`, `eviction`, `token`.
    pub async fn create_subresource<K: Object>(
        &self,
        namespace: &str,
        name: &str,
        subresource: &str,
        body: &Value,
    ) -> Result<Value> {
        self.request(
            Method::POST,
            &ResourceType::of::<K>().path(namespace, name, subresource),
            Some(body),
        )
        .await
    }

    /// A raw JSON request; `path` may carry a query.
    pub async fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let body = body
            .map(serde_json::to_vec)
            .transpose()
            .map_err(Error::Decode)?;
        let response = self
            .raw(
                method,
                path,
                body.map(Bytes::from),
                None,
                "application/json",
            )
            .await?;
        decode(&collect(response).await?)
    }

    /// A raw patch of any resource.
    pub async fn patch_path(&self, path: &str, patch: &Patch) -> Result<Value> {
        let body = serde_json::to_vec(patch.value()).map_err(Error::Decode)?;
        let response = self
            .raw(
                Method::PATCH,
                path,
                Some(body.into()),
                Some(patch.content_type()),
                "application/json",
            )
            .await?;
        decode(&collect(response).await?)
    }

    /// A request whose body is not JSON, or is a stream. A `Status` answer of 400 and above is an
    /// error.
    pub async fn raw(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        content_type: Option<&str>,
        accept: &str,
    ) -> Result<http::Response<Body>> {
        let mut request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::ACCEPT, accept)
            .header(http::header::USER_AGENT, &*self.user_agent);
        if body.is_some() {
            request = request.header(
                http::header::CONTENT_TYPE,
                content_type.unwrap_or("application/json"),
            );
        }
        let request = request
            .body(body.unwrap_or_default())
            .map_err(|error| Error::Transport(format!("{path}: {error}")))?;
        let response = self.transport.call(request).await?;
        if response.status().as_u16() < 400 {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let bytes = collect(response).await?;
        let status = serde_json::from_slice::<Status>(&bytes)
            .ok()
            .filter(|s| s.code >= 400)
            .unwrap_or_else(|| {
                let mut status = Status::internal(
                    String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]).trim(),
                );
                status.code = code;
                status
            });
        Err(Error::Api(Box::new(status)))
    }

    /// One request as it is, and its answer whatever it says: for who wants headers and codes.
    pub async fn call(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>> {
        self.transport.call(request).await
    }

    async fn send<K: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        content_type: Option<&str>,
    ) -> Result<K> {
        let response = self
            .raw(method, path, body, content_type, "application/json")
            .await?;
        decode(&collect(response).await?)
    }

    fn note_write<K: Object>(&self, resource: &ResourceType, object: &K) {
        let version = object
            .metadata()
            .resource_version
            .as_deref()
            .and_then(|v| v.parse().ok());
        if let (Some(ledger), Some(version)) = (&self.ledger, version) {
            ledger.written(resource, version);
        }
    }
}

/// The object with `apiVersion` and `kind`, which k8s-openapi's serialisers write themselves.
fn object_json<K: Object>(object: &K) -> Result<Bytes> {
    serde_json::to_vec(object)
        .map(Bytes::from)
        .map_err(Error::Decode)
}

async fn collect(response: http::Response<Body>) -> Result<Bytes> {
    let mut body = response.into_body();
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Error::Transport(error.to_string()))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if whole.is_empty() && body.is_end_stream() {
            return Ok(data);
        }
        if whole.len() + data.len() > MAX_RESPONSE_BYTES {
            return Err(Error::Transport(
                "the answer is larger than 512 MiB".to_owned(),
            ));
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

fn decode<K: DeserializeOwned>(bytes: &[u8]) -> Result<K> {
    serde_json::from_slice(bytes).map_err(Error::Decode)
}

pub(crate) fn with_query(mut path: String, query: &[(&'static str, String)]) -> String {
    for (index, (name, value)) in query.iter().enumerate() {
        path.push(if index == 0 { '?' } else { '&' });
        path.push_str(name);
        path.push('=');
        path.push_str(&escape(value));
    }
    path
}
