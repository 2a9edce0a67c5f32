//! The `scale` subresource: an `autoscaling/v1` Scale made of the object, and written back to it.
//! Its managers are those of the object's replicas.

use std::sync::Arc;

use bytes::Bytes;
use keelson_machinery::apply::scale::{Parent, to_parent, to_scale};
use keelson_machinery::field::{FieldError, Path};
use keelson_machinery::labels::Selector;
use keelson_machinery::meta;
use keelson_machinery::status::Status;
use serde_json::{Map, Value, json};

use super::change::Change;
use super::options::WriteOptions;
use super::patch::Patch;
use super::render::Renderer;
use super::resources::{ResourceEntry, ScalePaths, SchemaRef};
use super::write::{Write, ensure_namespace};
use super::{Call, Registry, codec, managed, negotiate};
use crate::request::Response;

impl Registry {
    pub(super) async fn serve_scale(&self, call: &Call<'_>) -> Result<Response, Status> {
        let output = negotiate::output(call.ctx, false, call.entry.has_protobuf())?;
        let kv = self.get(&call.entry, call.namespace, call.name).await?;
        let scale = scale_of(&call.entry, &codec::parse(&kv.value)?);
        Renderer::new(Arc::clone(&call.entry), output).value(200, &scale)
    }

    pub(super) async fn serve_scale_change(
        &self,
        call: &Call<'_>,
        body: Bytes,
        verb: &str,
    ) -> Result<Response, Status> {
        let output = negotiate::output(call.ctx, false, call.entry.has_protobuf())?;
        let entry = &*call.entry;
        let scale_call = Call {
            entry: Arc::new(scale_entry(entry)?),
            ..*call
        };
        let (options, wanted) = if verb == "patch" {
            let options = WriteOptions::parse(call.ctx, "PatchOptions")?;
            let patch = Patch::parse(&scale_call, &options, &body, &self.resources)?;
            (options, Change::Patch(patch))
        } else {
            let options = WriteOptions::parse(call.ctx, "UpdateOptions")?;
            let mut scale = codec::decode_object(
                &scale_call.entry,
                &body,
                negotiate::input(call.ctx, true)?,
                options.field_validation,
                &call.ctx.warnings,
            )?;
            super::check_name(&scale, call.name)?;
            ensure_namespace(&mut scale, call.namespace)?;
            (options, Change::Replace(scale))
        };
        let api_version = entry.api_version();
        let parent = Parent {
            api_version: &api_version,
            replicas: spec_replicas(entry).trim_start_matches('.'),
        };
        let rescale = |old: &Value| -> Result<Value, Status> {
            let owners = meta::managed_fields(old);
            let mut live = scale_of(entry, old);
            meta::set_managed_fields(&mut live, to_scale(owners, &parent));
            let mut scale = wanted.next(Some(&live))?;
            if !wanted.tracks_managers() {
                let manager = options.field_manager.as_str();
                managed::track(&scale_call.entry, Some(&live), &mut scale, manager, "scale")?;
            }
            let mut new = scaled(entry, call.name, old, &scale)?;
            let owners = to_parent(owners, meta::managed_fields(&scale), &parent);
            meta::set_managed_fields(&mut new, owners);
            Ok(new)
        };
        // Scaling follows the rules of the main resource: it raises the generation.
        let write = Write {
            rules_path: "",
            ..call.write(&options)
        };
        let written = self.update(&write, &Change::Managed(&rescale)).await?;
        let scale = scale_of(entry, &codec::parse(&written.bytes)?);
        Renderer::new(Arc::clone(&call.entry), output).value(200, &scale)
    }
}

/// A row for the Scale itself, so that it is decoded and patched like any object. It is never
/// stored.
fn scale_entry(entry: &ResourceEntry) -> Result<ResourceEntry, Status> {
    let schema = keelson_api::kind_type("autoscaling", "v1", "Scale")
        .and_then(keelson_api::schema)
        .ok_or_else(|| Status::internal("no type Scale"))?;
    Ok(ResourceEntry {
        group: "autoscaling".into(),
        version: "v1".into(),
        kind: "Scale".into(),
        storage_group: "autoscaling".into(),
        storage_version: "v1".into(),
        schema: SchemaRef::Static(schema),
        rules: Arc::new(keelson_kinds::kind("autoscaling", "scales")),
        subresources: Vec::new(),
        custom: false,
        ..entry.clone()
    })
}

fn spec_replicas(entry: &ResourceEntry) -> &str {
    entry
        .scale
        .as_ref()
        .map_or(".spec.replicas", |paths| paths.spec_replicas.as_str())
}

/// `.spec.replicas` and the like, as custom resources name them, to a JSON pointer.
fn pointer(path: &str) -> String {
    path.replace('.', "/")
}

/// The Scale of an object.
pub(super) fn scale_of(entry: &ResourceEntry, object: &Value) -> Value {
    let builtin = ScalePaths {
        spec_replicas: ".spec.replicas".into(),
        status_replicas: ".status.replicas".into(),
        label_selector: None,
    };
    let paths = entry.scale.as_ref().unwrap_or(&builtin);
    let number = |path: &str| {
        object
            .pointer(&pointer(path))
            .and_then(Value::as_i64)
            .unwrap_or(0)
    };
    let mut metadata = Map::new();
    for field in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if let Some(value) = object["metadata"].get(field) {
            metadata.insert(field.into(), value.clone());
        }
    }
    let mut spec = json!({"replicas": number(&paths.spec_replicas)});
    if number(&paths.spec_replicas) == 0 {
        // Zero is left out, as upstream's encoder does.
        spec = json!({});
    }
    let mut status = json!({"replicas": number(&paths.status_replicas)});
    let selector = match &paths.label_selector {
        Some(path) => object
            .pointer(&pointer(path))
            .and_then(Value::as_str)
            .map(str::to_owned),
        None if entry.custom => None,
        None => selector_text(entry, object),
    };
    if let Some(selector) = selector.filter(|selector| !selector.is_empty()) {
        status["selector"] = selector.into();
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

fn selector_text(entry: &ResourceEntry, object: &Value) -> Option<String> {
    let selector = &object["spec"]["selector"];
    if entry.resource == "replicationcontrollers" {
        let labels = selector.as_object()?;
        let pairs = labels
            .iter()
            .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()));
        return Some(Selector::from_set(pairs).to_string());
    }
    Selector::from_label_selector(selector)
        .ok()
        .map(|selector| selector.to_string())
}

/// The object with the replicas of the Scale.
pub(super) fn scaled(
    entry: &ResourceEntry,
    name: &str,
    old: &Value,
    scale: &Value,
) -> Result<Value, Status> {
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    // Custom kinds are judged by their own rules.
    if replicas < 0 && !entry.custom {
        let path = Path::new("spec").child("replicas");
        let errors = vec![FieldError::invalid(
            &path,
            replicas,
            "must be greater than or equal to 0",
        )];
        return Err(Status::invalid("autoscaling", "Scale", name, &errors));
    }
    let mut new = old.clone();
    let mut at = &mut new;
    for part in spec_replicas(entry).trim_start_matches('.').split('.') {
        at = meta::as_map(at).entry(part).or_insert(Value::Null);
    }
    *at = replicas.into();
    // Preconditions of the client: without them the newest state is scaled.
    let version = meta::resource_version(scale).to_owned();
    if !version.is_empty() {
        meta::set_resource_version(&mut new, &version);
    }
    let uid = meta::uid(scale).to_owned();
    if !uid.is_empty() {
        meta::set_uid(&mut new, &uid);
    }
    Ok(new)
}
