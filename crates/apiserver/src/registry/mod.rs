//! The generic engine: every verb for every kind, once. A kind contributes an entry in the table
//! of [`Resources`]; what differs between kinds is asked of the entry's rules.

mod change;
pub(crate) mod codec;
mod delete;
mod event_convert;
mod expire;
mod managed;
pub(crate) mod negotiate;
mod objects;
pub(crate) mod options;
mod patch;
mod read;
pub(crate) mod render;
mod resources;
mod scale;
pub(crate) mod selection;
mod service_claim;
mod service_families;
mod service_ip;
mod service_port;
mod service_repair;
mod strict;
mod subresources;
mod table;
#[cfg(test)]
mod tests;
mod watch;
mod write;

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use keelson_store::SharedStore;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::admission::AdmissionChain;
use crate::cache::Caches;
use crate::request::{RequestContext, Response, Warnings, respond_status};

use change::Change;
use delete::Deleted;
pub(crate) use negotiate::{Output, discovery_output};
use options::{DeleteOptions, ListOptions, WriteOptions};
use patch::Patch;
use render::Renderer;
pub(crate) use render::value as render_value;
pub use resources::{
    ColumnDefinition, KindRules, ResourceEntry, Resources, ScalePaths, SchemaRef, SubresourceEntry,
};
use selection::Selection;
pub use service_ip::ServiceConfig;
use service_ip::Services;
pub(crate) use service_repair::Suspects;
use write::Write;

/// The engine. One per server; `handle` may be called from any number of tasks.
pub struct Registry {
    store: SharedStore,
    caches: Arc<Caches>,
    resources: Arc<Resources>,
    admission: Arc<AdmissionChain>,
    services: Services,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One request on one resource, past routing.
pub(crate) struct Call<'a> {
    ctx: &'a RequestContext,
    entry: Arc<ResourceEntry>,
    /// Empty for cluster-scoped kinds.
    namespace: &'a str,
    name: &'a str,
    subresource: &'a str,
}

impl Registry {
    /// Reads the store and starts following it. Requests can be handled when this returns.
    pub async fn start(
        store: SharedStore,
        resources: Arc<Resources>,
        admission: Arc<AdmissionChain>,
        service_config: ServiceConfig,
    ) -> Result<Arc<Self>, Status> {
        let stored = resources
            .all()
            .into_iter()
            .map(|entry| (entry.storage_group.clone(), entry.resource.clone()));
        let (caches, follower) = Caches::start(Arc::clone(&store), stored)
            .await
            .map_err(write::store_error)?;
        let services = Services::new(service_config, Arc::clone(&caches));
        let expiry = tokio::spawn(expire::run(
            Arc::clone(&store),
            Arc::clone(&caches),
            Arc::clone(&resources),
        ));
        Ok(Arc::new(Self {
            store,
            caches,
            resources,
            admission,
            services,
            tasks: vec![follower, expiry],
        }))
    }

    fn stop(&self) {
        for task in &self.tasks {
            task.abort();
        }
    }

    /// Ends every watch and the background work. The store stays the caller's.
    pub async fn shutdown(&self) {
        self.stop();
        self.caches.close();
    }

    pub fn resources(&self) -> &Arc<Resources> {
        &self.resources
    }

    /// Group, resource and number of the objects of each stored resource.
    pub(crate) fn object_counts(&self) -> Vec<(String, String, usize)> {
        let mut stored: Vec<(String, String)> = self
            .resources
            .all()
            .into_iter()
            .map(|entry| (entry.storage_group.clone(), entry.resource.clone()))
            .collect();
        stored.sort();
        stored.dedup();
        let counted = stored.into_iter().filter_map(|(group, resource)| {
            let count = self.caches.get(&group, &resource)?.list("").len();
            Some((group, resource, count))
        });
        counted.collect()
    }

    pub fn store(&self) -> &SharedStore {
        &self.store
    }

    /// Serves another resource (a version of a custom one) from now on.
    pub async fn install(&self, entry: ResourceEntry) -> Result<(), Status> {
        self.caches
            .add(&entry.storage_group, &entry.resource)
            .await
            .map_err(write::store_error)?;
        self.resources.install(Arc::new(entry));
        Ok(())
    }

    /// Stops serving a version; with the last one its cache goes and its watches end.
    pub fn uninstall(&self, group: &str, version: &str, resource: &str) {
        self.resources.remove(group, version, resource);
        if self.resources.any_version(group, resource).is_none() {
            self.caches.remove(group, resource);
        }
    }

    /// Serves a resource request. Authentication and authorization are behind it.
    pub async fn handle(&self, ctx: &RequestContext, body: Bytes) -> Response {
        let mut response = match self.dispatch(ctx, body).await {
            Ok(response) => response,
            Err(status) => refuse(ctx, &status),
        };
        let headers = response.headers_mut();
        headers
            .entry(http::header::CACHE_CONTROL)
            .or_insert(http::HeaderValue::from_static("no-cache, private"));
        response
    }

    async fn dispatch(&self, ctx: &RequestContext, body: Bytes) -> Result<Response, Status> {
        let info = &*ctx.info;
        let entry = self
            .resources
            .lookup(&info.group, &info.version, &info.resource)
            .ok_or_else(Status::path_not_found)?;
        if ctx.method == http::Method::HEAD {
            return Err(not_allowed());
        }
        if !entry.namespaced && !info.namespace.is_empty() && info.resource != "namespaces" {
            return Err(Status::path_not_found());
        }
        let namespace = if entry.namespaced {
            info.namespace.as_str()
        } else {
            ""
        };
        let call = Call {
            ctx,
            entry,
            namespace,
            name: &info.name,
            subresource: &info.subresource,
        };
        let deprecation = call.entry.rules.deprecation();
        if !deprecation.is_empty() {
            ctx.warnings.add(deprecation);
        } else if !call.entry.custom {
            let entry = &call.entry;
            keelson_kinds::deprecation(&entry.group, &entry.version, &entry.resource, &entry.kind)
                .inspect(|warning| ctx.warnings.add(warning));
        }
        if !call.subresource.is_empty() {
            return self.dispatch_subresource(&call, body).await;
        }
        // Routes that upstream does not have: an object across namespaces, a create at a name, an
        // update of none.
        let all_namespaces = call.entry.namespaced && namespace.is_empty();
        let named = !call.name.is_empty();
        let verb = info.verb.as_str();
        if all_namespaces && named && !matches!(verb, "list" | "watch") {
            return Err(Status::path_not_found());
        }
        let routed = match verb {
            "list" | "watch" => true,
            "create" => !all_namespaces && !named,
            "update" | "patch" => !all_namespaces && named,
            _ => !all_namespaces,
        };
        let refused = call.entry.custom && verb == "create" && !call.entry.has_verb(verb);
        if refused && routed {
            return Err(terminating(&call, &body));
        }
        // A definition that goes away hides verbs from discovery; who knows them may use them.
        let served = call.entry.has_verb(verb) || call.entry.custom;
        if !routed || !served {
            return Err(not_allowed());
        }
        let binds = call.entry.storage_group.is_empty() && call.entry.resource == "bindings";
        match info.verb.as_str() {
            "create" if binds => self.serve_binding(&call, body).await,
            "get" => self.serve_get(&call).await,
            "list" => self.serve_list(&call).await,
            "watch" => self.serve_watch(&call).await,
            "create" => self.serve_create(&call, body).await,
            "update" => self.serve_update(&call, body).await,
            "patch" => self.serve_patch(&call, body).await,
            "delete" => self.serve_delete(&call, body).await,
            "deletecollection" => self.serve_delete_collection(&call, body).await,
            _ => Err(not_allowed()),
        }
    }

    async fn serve_get(&self, call: &Call<'_>) -> Result<Response, Status> {
        let output = negotiate::output(call.ctx, false, call.entry.has_protobuf())?;
        // What is read is the newest there is; a revision asks that it be no older.
        let revision = options::revision_of_get(call.ctx)?;
        self.caches.wait(revision).await?;
        let kv = self.get(&call.entry, call.namespace, call.name).await?;
        Renderer::new(Arc::clone(&call.entry), output).object(200, &kv.value)
    }

    async fn serve_list(&self, call: &Call<'_>) -> Result<Response, Status> {
        let output = negotiate::output(call.ctx, true, call.entry.has_protobuf())?;
        let options = ListOptions::parse(call.ctx)?;
        let selection = Selection::parse(&call.entry, call.namespace, "", &options)?;
        match self.list(&call.entry, &selection, &options).await {
            Ok((objects, meta)) => {
                Renderer::new(Arc::clone(&call.entry), output).list(objects, &meta)
            }
            Err(status) if status.code == 410 && !options.continue_token.is_empty() => {
                render_value(
                    410,
                    &output,
                    &read::with_inconsistent_token(&status, &options.continue_token),
                )
            }
            Err(status) => Err(status),
        }
    }

    async fn serve_watch(&self, call: &Call<'_>) -> Result<Response, Status> {
        let output = negotiate::output(call.ctx, true, call.entry.has_protobuf())?;
        let options = ListOptions::parse(call.ctx)?;
        let selection = Selection::parse(&call.entry, call.namespace, call.name, &options)?;
        self.watch(&call.entry, selection, &options, output).await
    }

    async fn serve_create(&self, call: &Call<'_>, body: Bytes) -> Result<Response, Status> {
        let output = negotiate::output(call.ctx, false, call.entry.has_protobuf())?;
        let options = WriteOptions::parse(call.ctx, "CreateOptions")?;
        let encoding = negotiate::input(call.ctx, call.entry.has_protobuf())?;
        let entry = &call.entry;
        let mut object = codec::decode_object(
            entry,
            &body,
            encoding,
            options.field_validation,
            &call.ctx.warnings,
        )?;
        write::ensure_namespace(&mut object, call.namespace)?;
        entry.to_storage(&mut object)?;
        let written = self.create(&call.write(&options), object).await?;
        Renderer::new(Arc::clone(entry), output).object(201, &written.bytes)
    }

    async fn serve_update(&self, call: &Call<'_>, body: Bytes) -> Result<Response, Status> {
        let output = negotiate::output(call.ctx, false, call.entry.has_protobuf())?;
        let options = WriteOptions::parse(call.ctx, "UpdateOptions")?;
        let encoding = negotiate::input(call.ctx, call.entry.has_protobuf())?;
        let entry = &call.entry;
        let mut object = codec::decode_object(
            entry,
            &body,
            encoding,
            options.field_validation,
            &call.ctx.warnings,
        )?;
        write::ensure_namespace(&mut object, call.namespace)?;
        check_name(&object, call.name)?;
        entry.to_storage(&mut object)?;
        let written = self
            .update(&call.write(&options), &Change::Replace(object))
            .await?;
        let code = if written.created { 201 } else { 200 };
        Renderer::new(Arc::clone(entry), output).object(code, &written.bytes)
    }

    async fn serve_patch(&self, call: &Call<'_>, body: Bytes) -> Result<Response, Status> {
        let output = negotiate::output(call.ctx, false, call.entry.has_protobuf())?;
        let options = WriteOptions::parse(call.ctx, "PatchOptions")?;
        let patch = Patch::parse(call, &options, &body, &self.resources)?;
        let written = self
            .update(&call.write(&options), &Change::Patch(patch))
            .await?;
        let code = if written.created { 201 } else { 200 };
        Renderer::new(Arc::clone(&call.entry), output).object(code, &written.bytes)
    }

    async fn serve_delete(&self, call: &Call<'_>, body: Bytes) -> Result<Response, Status> {
        let output = negotiate::output(call.ctx, false, call.entry.has_protobuf())?;
        let options = delete_options(call.ctx, &body)?;
        let write_options = delete_write_options(&options);
        let renderer = Renderer::new(Arc::clone(&call.entry), output);
        match self.delete(&call.write(&write_options), &options).await? {
            Deleted::Gone(object) => match delete::status_of(&call.entry, call.name, &object) {
                Some(status) => renderer.value(200, &status.to_value()),
                None => renderer.object(200, &object),
            },
            Deleted::Pending(object) => {
                // Upstream's mark of an old option: the cascade was asked for and is not over.
                let code = if options.orphan_dependents == Some(false) {
                    202
                } else {
                    200
                };
                renderer.object(code, &object)
            }
        }
    }

    async fn serve_delete_collection(
        &self,
        call: &Call<'_>,
        body: Bytes,
    ) -> Result<Response, Status> {
        let output = negotiate::output(call.ctx, true, call.entry.has_protobuf())?;
        let mut options = delete_options(call.ctx, &body)?;
        options.of_collection = true;
        let list_options = ListOptions::parse(call.ctx)?;
        let selection = Selection::parse(&call.entry, call.namespace, "", &list_options)?;
        let (objects, meta) = self.list(&call.entry, &selection, &list_options).await?;
        let write_options = delete_write_options(&options);
        // Side by side, so that they share the store's commits.
        let deletions = futures::stream::iter(objects.iter().map(Ok));
        deletions
            .try_for_each_concurrent(DELETIONS_AT_ONCE, |object| {
                let write = Write {
                    name: object.name(),
                    ..call.write(&write_options)
                };
                let options = &options;
                async move {
                    match self.delete(&write, options).await {
                        Err(status) if !status.is_not_found() => Err(status),
                        _ => Ok(()),
                    }
                }
            })
            .await?;
        Renderer::new(Arc::clone(&call.entry), output).list(objects, &meta)
    }
}

/// Objects of a collection that are deleted at once.
const DELETIONS_AT_ONCE: usize = 256;

/// An error, in the encoding that the client accepts.
fn refuse(ctx: &RequestContext, status: &Status) -> Response {
    let mut response = respond_status(status);
    let Ok(wanted) = negotiate::answer_output(ctx) else {
        return response;
    };
    let usual = wanted == negotiate::Output::JSON && status.code != 406;
    if !usual && let Ok(encoded) = render::value(status.code, &wanted, &status.to_value()) {
        let (parts, body) = encoded.into_parts();
        *response.body_mut() = body;
        if let Some(kind) = parts.headers.get(http::header::CONTENT_TYPE) {
            response
                .headers_mut()
                .insert(http::header::CONTENT_TYPE, kind.clone());
        }
    }
    response
}

fn not_allowed() -> Status {
    Status::method_not_allowed("the server does not allow this method on the requested resource")
}

impl<'a> Call<'a> {
    fn write<'b>(&'b self, options: &'b WriteOptions) -> Write<'b> {
        Write {
            entry: &self.entry,
            namespace: self.namespace,
            name: self.name,
            subresource: self.subresource,
            rules_path: self.subresource,
            user: Arc::clone(&self.ctx.user),
            warnings: self.ctx.warnings.clone(),
            annotations: self.ctx.annotations.clone(),
            options,
            admission: true,
        }
    }
}

/// Prunes and defaults an object in the entry's version that did not come from a client.
pub(crate) fn complete(
    entry: &ResourceEntry,
    object: Value,
    warnings: &Warnings,
) -> Result<Value, Status> {
    let mut object = strict::value(entry, object, options::FieldValidation::Ignore, warnings)?;
    codec::finish_object(entry, &mut object)?;
    Ok(object)
}

/// The name in the body must be the one in the path.
fn check_name(object: &Value, name: &str) -> Result<(), Status> {
    let given = meta::name(object);
    if given.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        )));
    }
    if given != name {
        return Err(Status::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    Ok(())
}

fn delete_options(ctx: &RequestContext, body: &Bytes) -> Result<DeleteOptions, Status> {
    let body = if body.is_empty() {
        None
    } else {
        let schema = keelson_api::schema("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions");
        let encoding = negotiate::input(ctx, true)?;
        Some(codec::body_value_as(body, encoding, schema)?)
    };
    DeleteOptions::parse(ctx.query(), body.filter(|body| !body.is_null()))
}

fn delete_write_options(options: &DeleteOptions) -> WriteOptions {
    WriteOptions {
        given: Vec::new(),
        dry_run: options.dry_run,
        field_manager: String::new(),
        field_validation: options::FieldValidation::Ignore,
        force: None,
    }
}

/// The definition is being deleted, and what it defines with it.
fn terminating(call: &Call<'_>, body: &[u8]) -> Status {
    let object: Value = serde_json::from_slice(body).unwrap_or_default();
    Status::forbidden(
        &call.entry.group,
        &call.entry.resource,
        meta::name(&object),
        "create not allowed while custom resource definition is terminating".to_owned(),
    )
}
