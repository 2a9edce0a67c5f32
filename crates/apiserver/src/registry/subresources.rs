//! Subresources: those that write a part of the object (`status`, `finalize`, `approval`, …) take
//! the common path with another rule; those with a body of their own are here.

use std::sync::Arc;

use bytes::Bytes;
use keelson_machinery::field::{FieldError, Path};
use keelson_machinery::labels::Selector;
use keelson_machinery::status::Status;
use keelson_machinery::{meta, time};
use serde_json::{Map, Value, json};

use super::change::Change;
use super::delete::Deleted;
use super::options::{DeleteOptions, WriteOptions};
use super::render::Renderer;
use super::write::Write;
use super::{Call, Registry, codec, negotiate};
use crate::admission::Operation;
use crate::request::Response;

/// Evictions that are under way and not yet confirmed by the disruption controller.
const DISRUPTED_PODS_LIMIT: usize = 2000;
/// Rounds of an eviction that other evictions overtake.
const EVICTION_ATTEMPTS: usize = 20;

impl Registry {
    pub(crate) async fn dispatch_subresource(
        &self,
        call: &Call<'_>,
        body: Bytes,
    ) -> Result<Response, Status> {
        let verb = call.ctx.info.verb.as_str();
        let known = call.entry.subresource(call.subresource).ok_or_else(|| {
            // The paths of a custom kind are there, whether its definition uses them or not.
            if call.entry.custom && matches!(call.subresource, "status" | "scale") {
                Status::not_found(&call.entry.group, &call.entry.resource, call.name)
            } else {
                Status::path_not_found()
            }
        })?;
        if !known.verbs.iter().any(|v| v == verb) {
            return Err(Status::method_not_allowed(
                "the server does not allow this method on the requested resource",
            ));
        }
        let group = call.entry.storage_group.as_str();
        match (group, call.entry.resource.as_str(), call.subresource, verb) {
            (_, _, "scale", "get") => self.serve_scale(call).await,
            (_, _, "scale", "update" | "patch") => self.serve_scale_change(call, body, verb).await,
            ("", "pods", "binding", "create") => self.serve_binding(call, body).await,
            ("", "pods", "eviction", "create") => self.serve_eviction(call, body).await,
            (_, _, _, "get") => self.serve_get(call).await,
            (_, _, _, "update") => self.serve_update(call, body).await,
            (_, _, _, "patch") => self.serve_patch(call, body).await,
            _ => Err(Status::method_not_allowed(
                "the server does not allow this method on the requested resource",
            )),
        }
    }

    /// `pods/binding`, and `bindings`, where the name is in the body.
    pub(crate) async fn serve_binding(
        &self,
        call: &Call<'_>,
        body: Bytes,
    ) -> Result<Response, Status> {
        let output = negotiate::output(call.ctx, false, call.entry.has_protobuf())?;
        let options = WriteOptions::parse(call.ctx, "CreateOptions")?;
        let mut binding = codec::body_value(
            &body,
            negotiate::input(call.ctx, call.entry.has_protobuf())?,
        )?;
        check_kind(&binding, "Binding")?;
        meta::set_type(&mut binding, "v1", "Binding");
        super::write::ensure_namespace(&mut binding, call.namespace)?;
        let name = meta::name(&binding).to_owned();
        if !call.name.is_empty() && name != call.name {
            return Err(Status::bad_request(
                "name in URL does not match name in Binding object",
            ));
        }
        let pods = self
            .resources
            .lookup("", "v1", "pods")
            .ok_or_else(Status::path_not_found)?;
        let write = Write {
            entry: &pods,
            name: &name,
            subresource: "binding",
            ..call.write(&options)
        };
        let mut attributes = write.attributes(Operation::Create, Some(binding), None);
        attributes.kind = "Binding".to_owned();
        self.admission.admit(&mut attributes).await?;
        self.admission.validate(&attributes).await?;
        let binding = attributes.object.unwrap_or_default();
        check_binding(&binding)?;
        let bind = |old: &Value| bound(old, &binding);
        let write = Write {
            admission: false,
            rules_path: "binding",
            ..write
        };
        self.update(&write, &Change::Transform(&bind)).await?;
        let mut status = Status::success();
        status.code = 201;
        Renderer::new(pods.clone(), output).value(201, &status.to_value())
    }

    async fn serve_eviction(&self, call: &Call<'_>, body: Bytes) -> Result<Response, Status> {
        let output = negotiate::output(call.ctx, false, call.entry.has_protobuf())?;
        let options = WriteOptions::parse(call.ctx, "CreateOptions")?;
        let mut eviction = codec::body_value(
            &body,
            negotiate::input(call.ctx, call.entry.has_protobuf())?,
        )?;
        check_kind(&eviction, "Eviction")?;
        super::write::ensure_namespace(&mut eviction, call.namespace)?;
        if meta::name(&eviction) != call.name {
            return Err(Status::bad_request(
                "name in URL does not match name in Eviction object",
            ));
        }
        let write = call.write(&options);
        let mut attributes = write.attributes(Operation::Create, Some(eviction), None);
        attributes.kind = "Eviction".to_owned();
        self.admission.admit(&mut attributes).await?;
        self.admission.validate(&attributes).await?;
        let eviction = attributes.object.unwrap_or_default();
        let mut delete = DeleteOptions::parse(
            call.ctx.query(),
            eviction
                .get("deleteOptions")
                .cloned()
                .filter(|o| !o.is_null()),
        )?;
        delete.dry_run |= options.dry_run;
        self.evict(call, &options, delete).await?;
        let mut status = Status::success();
        status.code = 201;
        Renderer::new(Arc::clone(&call.entry), output).value(201, &status.to_value())
    }

    async fn evict(
        &self,
        call: &Call<'_>,
        options: &WriteOptions,
        mut delete: DeleteOptions,
    ) -> Result<(), Status> {
        let kv = self.get(&call.entry, call.namespace, call.name).await?;
        let pod = codec::parse(&kv.value)?;
        let mut guarded = None;
        if !ignores_budgets(&pod) {
            let budgets = self.budgets_of(&pod);
            if budgets.len() > 1 {
                let mut status = Status::internal("");
                status.message =
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.".into();
                return Err(status);
            }
            if let Some(budget) = budgets.into_iter().next() {
                if spares_unhealthy(&pod, &budget) {
                    delete
                        .resource_version
                        .get_or_insert_with(|| kv.mod_revision.to_string());
                } else {
                    self.charge(call, &pod, meta::name(&budget), delete.dry_run)
                        .await?;
                }
                guarded = Some(meta::name(&budget).to_owned());
            }
        }
        let write = Write {
            admission: false,
            subresource: "status",
            rules_path: "status",
            ..call.write(options)
        };
        if !delete.dry_run {
            let mark = |old: &Value| Ok(disrupted(old));
            let written = self.update(&write, &Change::Transform(&mark)).await?;
            if delete.resource_version.as_deref() == Some(kv.mod_revision.to_string().as_str()) {
                delete.resource_version =
                    Some(meta::resource_version(&codec::parse(&written.bytes)?).to_owned());
            }
        }
        let write = Write {
            admission: false,
            ..call.write(options)
        };
        match self.delete(&write, &delete).await {
            Ok(Deleted::Gone(_) | Deleted::Pending(_)) => Ok(()),
            Err(status) if status.is_conflict() && guarded.is_some() => {
                Err(too_many(&guarded.unwrap_or_default()))
            }
            Err(status) => Err(status),
        }
    }

    fn budgets_of(&self, pod: &Value) -> Vec<Arc<Value>> {
        let Some(cache) = self.caches.get("policy", "poddisruptionbudgets") else {
            return Vec::new();
        };
        let labels = meta::labels(pod);
        let matches = |budget: &Arc<Value>| {
            Selector::from_label_selector(&budget["spec"]["selector"])
                .is_ok_and(|selector| selector.matches(&labels))
        };
        cache
            .list(meta::namespace(pod))
            .iter()
            .map(|object| object.decode())
            .filter(matches)
            .collect()
    }

    /// Takes one allowed disruption from the budget, or refuses.
    async fn charge(
        &self,
        call: &Call<'_>,
        pod: &Value,
        budget: &str,
        dry_run: bool,
    ) -> Result<(), Status> {
        let entry = self
            .resources
            .any_version("policy", "poddisruptionbudgets")
            .ok_or_else(Status::path_not_found)?;
        let options = WriteOptions {
            given: Vec::new(),
            dry_run,
            field_manager: "keelson".to_owned(),
            field_validation: super::options::FieldValidation::Ignore,
            force: None,
        };
        let write = Write {
            entry: &entry,
            namespace: call.namespace,
            name: budget,
            subresource: "status",
            rules_path: "status",
            admission: false,
            ..call.write(&options)
        };
        let take = |old: &Value| charged(old, meta::name(pod));
        for _ in 0..EVICTION_ATTEMPTS {
            match self.update(&write, &Change::Transform(&take)).await {
                Err(status) if status.is_conflict() => {}
                result => return result.map(|_| ()),
            }
        }
        Err(Status::timeout(format!(
            "couldn't update PodDisruptionBudget {budget:?} due to conflicts"
        )))
    }
}

fn check_kind(object: &Value, kind: &str) -> Result<(), Status> {
    match object.get("kind").and_then(Value::as_str) {
        None | Some("") => Ok(()),
        Some(given) if given == kind => Ok(()),
        Some(given) => Err(Status::bad_request(format!(
            "{given} cannot be handled as a {kind}"
        ))),
    }
}

fn check_binding(binding: &Value) -> Result<(), Status> {
    let target = &binding["target"];
    let path = Path::new("target");
    let mut errors = Vec::new();
    let kind = target["kind"].as_str().unwrap_or_default();
    if !matches!(kind, "" | "Node") {
        errors.push(FieldError::not_supported(
            &path.child("kind"),
            kind,
            &["Node", "<empty>"],
        ));
    }
    if target["name"].as_str().unwrap_or_default().is_empty() {
        errors.push(FieldError::required(&path.child("name"), ""));
    }
    if errors.is_empty() {
        return Ok(());
    }
    // Upstream hands these on as they are, without a kind and a code of their own.
    Err(Status::unclassified(keelson_machinery::field::aggregate(
        &errors,
    )))
}

/// The pod, assigned to the node of the binding.
fn bound(old: &Value, binding: &Value) -> Result<Value, Status> {
    let name = meta::name(old);
    let conflict = |reason: String| Err(Status::conflict("", "pods/binding", name, reason));
    let precondition = |field: &str, wanted: &str, found: &str| {
        let key = format!("/registry/pods/{}/{name}", meta::namespace(old));
        let reason = format!(
            "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: {field} in precondition: {wanted}, {field} in object meta: {found}"
        );
        Err(Status::conflict("", "pods", name, reason))
    };
    let uid = meta::uid(binding);
    if !uid.is_empty() && uid != meta::uid(old) {
        return precondition("UID", uid, meta::uid(old));
    }
    let version = meta::resource_version(binding);
    if !version.is_empty() && version != meta::resource_version(old) {
        return precondition("ResourceVersion", version, meta::resource_version(old));
    }
    if meta::deletion_timestamp(old).is_some() {
        return conflict(format!(
            "pod {name} is being deleted, cannot be assigned to a host"
        ));
    }
    let node = old["spec"]["nodeName"].as_str().unwrap_or_default();
    if !node.is_empty() {
        return conflict(format!("pod {name} is already assigned to node {node:?}"));
    }
    if old["spec"]["schedulingGates"]
        .as_array()
        .is_some_and(|gates| !gates.is_empty())
    {
        return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut pod = old.clone();
    pod["spec"]["nodeName"] = binding["target"]["name"].clone();
    if let Some(status) = pod["status"].as_object_mut() {
        status.remove("nominatedNodeName");
    }
    for (key, value) in meta::annotations(binding) {
        meta::set_annotation(&mut pod, &key, &value);
    }
    for (key, value) in meta::labels(binding) {
        meta::set_label(&mut pod, &key, &value);
    }
    set_condition(&mut pod, "PodScheduled", None);
    Ok(pod)
}

/// Sets a pod condition to True; its transition time moves when it was not.
fn set_condition(pod: &mut Value, kind: &str, reason: Option<(&str, &str)>) {
    let now = time::now();
    let status = meta::as_map(pod).entry("status").or_insert(Value::Null);
    let conditions = meta::as_map(status)
        .entry("conditions")
        .or_insert(Value::Null);
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(conditions) = conditions.as_array_mut() else {
        return;
    };
    let mut condition = json!({"type": kind, "status": "True", "lastProbeTime": Value::Null, "lastTransitionTime": now});
    if let Some((reason, message)) = reason {
        condition["reason"] = reason.into();
        condition["message"] = message.into();
    }
    match conditions.iter_mut().find(|c| c["type"] == kind) {
        Some(known) => {
            if known["status"] == "True" {
                condition["lastTransitionTime"] = known["lastTransitionTime"].clone();
            }
            if let Some(generation) = known.get("observedGeneration") {
                condition["observedGeneration"] = generation.clone();
            }
            *known = condition;
        }
        None => conditions.push(condition),
    }
}

fn disrupted(pod: &Value) -> Value {
    let mut pod = pod.clone();
    set_condition(
        &mut pod,
        "DisruptionTarget",
        Some(("EvictionByEvictionAPI", "Eviction API: evicting")),
    );
    pod
}

fn ignores_budgets(pod: &Value) -> bool {
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    matches!(phase, "Succeeded" | "Failed" | "Pending") || meta::deletion_timestamp(pod).is_some()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    conditions
        .iter()
        .any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// An unhealthy pod does not count towards the budget, so evicting it costs nothing.
fn spares_unhealthy(pod: &Value, budget: &Value) -> bool {
    if is_ready(pod) {
        return false;
    }
    let status = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        || (status("currentHealthy") >= status("desiredHealthy") && status("desiredHealthy") > 0)
}

fn too_many(budget: &str) -> Status {
    Status::too_many_requests(
        "Cannot evict pod as it would violate the pod's disruption budget.",
        10,
    )
    .with_cause(
        "DisruptionBudget",
        "",
        format!("The disruption budget {budget} is still being processed by the server."),
    )
}

/// The budget after one more disruption, or why there is none left.
fn charged(budget: &Value, pod: &str) -> Result<Value, Status> {
    let name = meta::name(budget);
    let number = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    if number("observedGeneration") < meta::generation(budget) {
        return Err(too_many(name));
    }
    let forbidden = |reason| {
        Err(Status::forbidden(
            "policy",
            "poddisruptionbudget",
            name,
            reason,
        ))
    };
    let allowed = number("disruptionsAllowed");
    if allowed < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    let disrupted = budget["status"]["disruptedPods"]
        .as_object()
        .map_or(0, Map::len);
    if disrupted > DISRUPTED_PODS_LIMIT {
        return forbidden(
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        );
    }
    if allowed == 0 {
        let (desired, current) = (number("desiredHealthy"), number("currentHealthy"));
        let message = if current <= desired {
            format!(
                "The disruption budget {name} needs {desired} healthy pods and has {current} currently"
            )
        } else {
            format!("The disruption budget {name} does not allow evicting pods currently")
        };
        let status = Status::too_many_requests(
            "Cannot evict pod as it would violate the pod's disruption budget.",
            0,
        );
        return Err(status.with_cause("DisruptionBudget", "", message));
    }
    let mut new = budget.clone();
    new["status"]["disruptionsAllowed"] = (allowed - 1).into();
    if allowed == 1 {
        let now = time::now();
        for condition in new["status"]["conditions"]
            .as_array_mut()
            .into_iter()
            .flatten()
        {
            if condition["type"] == "DisruptionAllowed" && condition["status"] != "False" {
                condition["status"] = "False".into();
                condition["reason"] = "InsufficientPods".into();
                condition["lastTransitionTime"] = now.as_str().into();
            }
        }
    }
    if !new["status"]["disruptedPods"].is_object() {
        new["status"]["disruptedPods"] = json!({});
    }
    new["status"]["disruptedPods"][pod] = time::now().into();
    Ok(new)
}
