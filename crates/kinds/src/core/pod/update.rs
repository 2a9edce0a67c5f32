//! What an update of a pod may change, by the path it came on.

use std::collections::BTreeSet;

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use super::{container, resources, scheduling, validate};
use crate::check::{self, At, range, same};
use crate::kind::UpdateContext;
use crate::rules;
use crate::tree::{Tree, TreeMut};

const UPDATABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn prepare(new: &mut Value, old: &Value, ctx: &UpdateContext) {
    match ctx.subresource {
        "" => {
            new.keep("status", old);
            if let Some(spec) = new.at_mut("spec") {
                super::disabled::drop(spec, old.at("spec"));
            }
            rules::raise_generation(new, old, !same(new.at("spec"), old.at("spec")));
        }
        "status" => {
            new.keep("spec", old);
            new.keep("metadata.ownerReferences", old);
            for field in [
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
                "generation",
            ] {
                let path = format!("metadata.{field}");
                new.keep(&path, old);
            }
            new.fill_text("status.qosClass", old.text("status.qosClass"));
            if new.num("status.observedGeneration") == 0 {
                new.keep("status.observedGeneration", old);
            }
        }
        "ephemeralcontainers" => {
            let added = new.at("spec.ephemeralContainers").clone();
            keep_all_but_spec(new, old);
            new.keep("spec", old);
            new.put("spec.ephemeralContainers", added);
            rules::raise_generation(new, old, !same(new.at("spec"), old.at("spec")));
        }
        "resize" => prepare_resize(new, old),
        _ => {}
    }
}

fn keep_all_but_spec(new: &mut Value, old: &Value) {
    new.keep("status", old);
    rules::keep_metadata(new, old);
}

fn prepare_resize(new: &mut Value, old: &Value) {
    let lists = ["containers", "initContainers"];
    let aligned = lists.iter().all(|l| {
        let path = format!("spec.{l}");
        let (a, b) = (new.list(&path), old.list(&path));
        a.len() == b.len()
            && a.iter()
                .zip(b)
                .all(|(x, y)| x.text("name") == y.text("name"))
    });
    if aligned {
        let mut spec = old.at("spec").clone();
        spec.put("resources", new.at("spec.resources").clone());
        for list in lists {
            let wanted = new.list(&format!("spec.{list}"));
            for (container, wanted) in spec.list_mut(list).iter_mut().zip(wanted) {
                for field in ["resources", "resizePolicy"] {
                    container.put(field, wanted.at(field).clone());
                }
            }
        }
        new.put("spec", spec);
        keep_all_but_spec(new, old);
    }
    rules::raise_generation(new, old, !same(new.at("spec"), old.at("spec")));
}

pub(super) fn validate(new: &Value, old: &Value, ctx: &UpdateContext) -> ErrorList {
    let mut e = ErrorList::new();
    if ctx.subresource != "status" {
        validate::metadata(new, &mut e);
        // A stored spec was found right when it was written; most updates leave it alone.
        if new.at("spec") != old.at("spec") {
            validate::whole_spec(new, &mut e);
        }
    }
    annotation_changes(new, old, &mut e);
    let mirror = old
        .map("metadata.annotations")
        .contains_key(validate::MIRROR);
    match ctx.subresource {
        "" => spec_update(new, old, &mut e),
        "status" => status_update(new, old, &mut e),
        "ephemeralcontainers" if mirror => {
            return validate::static_pod("static pods do not support ephemeral containers");
        }
        "ephemeralcontainers" => ephemeral_update(new, old, &mut e),
        "resize" if mirror => return validate::static_pod("static pods cannot be resized"),
        "resize" => resize(new, old, &mut e),
        _ => {}
    }
    e
}

fn annotation_changes(new: &Value, old: &Value, e: &mut ErrorList) {
    let (now, before) = (
        new.map("metadata.annotations"),
        old.map("metadata.annotations"),
    );
    let path = At::new(new, "metadata")
        .at("annotations")
        .path
        .key(validate::MIRROR);
    match (before.get(validate::MIRROR), now.get(validate::MIRROR)) {
        (Some(b), n) if n != Some(b) => {
            e.push(FieldError::forbidden(
                &path,
                "may not remove or update mirror pod annotation",
            ));
        }
        (None, Some(_)) => e.push(FieldError::forbidden(
            &path,
            "may not add mirror pod annotation",
        )),
        _ => {}
    }
}

fn spec_update(new: &Value, old: &Value, e: &mut ErrorList) {
    let (spec, before) = (At::new(new, "spec"), old.at("spec"));
    for list in ["containers", "initContainers"] {
        let containers = spec.at(list);
        if containers.len() != before.list(list).len() {
            return e.push(containers.forbidden("pod updates may not add or remove containers"));
        }
        for c in containers.each() {
            c.at("image").require(e);
            container::image_is_trimmed(&c, e);
        }
    }
    let deadline = spec.at("activeDeadlineSeconds");
    match (deadline.int(), before.int("activeDeadlineSeconds")) {
        (Some(now), _) if !(0..=i64::from(i32::MAX)).contains(&now) => {
            return e.push(deadline.invalid(range(0, i64::from(i32::MAX))));
        }
        (Some(now), Some(was)) if was < now => {
            return e.push(deadline.invalid("must be less than or equal to previous value"));
        }
        (None, Some(_)) => {
            e.push(deadline.invalid("must not update from a positive integer to nil value"))
        }
        _ => {}
    }
    added_tolerations(&spec.at("tolerations"), before.list("tolerations"), e);
    for gate in spec.at("schedulingGates").each() {
        let name = gate.value.text("name");
        if !before
            .list("schedulingGates")
            .iter()
            .any(|g| g.text("name") == name)
        {
            let detail =
                format!("only deletion is allowed, but found new scheduling gate '{name}'");
            e.push(gate.at("name").forbidden(detail));
        }
    }
    let mut munged = spec.value.clone();
    put_back_updatable(&mut munged, before);
    if !before.list("schedulingGates").is_empty() {
        gated(&mut munged, &spec, before, e);
    }
    if !same(&munged, before) {
        e.push(spec.forbidden(format!("{UPDATABLE}\n{}", changes(&munged, before))));
    }
}

fn put_back_updatable(munged: &mut Value, before: &Value) {
    for list in ["containers", "initContainers"] {
        for (c, was) in munged.list_mut(list).iter_mut().zip(before.list(list)) {
            c.put("image", was.at("image").clone());
        }
    }
    for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        munged.put(field, before.at(field).clone());
    }
    let grace = "terminationGracePeriodSeconds";
    if before.num(grace) < 0 && munged.int(grace) == Some(1) {
        munged.put(grace, before.at(grace).clone());
    }
}

/// A pod that is not yet for scheduling may still narrow where it goes.
fn gated(munged: &mut Value, spec: &At, before: &Value, e: &mut ErrorList) {
    let selector = spec.at("nodeSelector");
    if !same(selector.value, before.at("nodeSelector")) {
        let kept = before
            .map("nodeSelector")
            .iter()
            .all(|(k, v)| selector.value.get(k) == Some(v));
        if !kept {
            e.push(selector.invalid(
                "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
            ));
        }
        munged.put("nodeSelector", before.at("nodeSelector").clone());
    }
    let required =
        "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    if !same(
        munged.at("affinity.nodeAffinity"),
        before.at("affinity.nodeAffinity"),
    ) {
        let (now, was) = (spec.value.list(required), before.list(required));
        let at = spec.at("affinity").at("nodeAffinity");
        let at = at
            .at("requiredDuringSchedulingIgnoredDuringExecution")
            .at("nodeSelectorTerms");
        if was.is_empty() || now.len() == was.len() {
            for (now, was) in at.each().zip(was) {
                if !only_adds(now.value, was) {
                    e.push(now.invalid("only additions are allowed (no mutations or deletions)"));
                }
            }
        } else {
            e.push(
                at.invalid(
                    "no additions/deletions to non-empty NodeSelectorTerms list are allowed",
                ),
            );
        }
        if before.has("affinity") {
            munged.put(
                "affinity.nodeAffinity",
                before.at("affinity.nodeAffinity").clone(),
            );
        } else if !munged.has("affinity.podAffinity") && !munged.has("affinity.podAntiAffinity") {
            munged.remove("affinity");
        } else {
            munged.remove("affinity.nodeAffinity");
        }
    }
}

/// A term that asks for what it asked before, and for more.
fn only_adds(now: &Value, was: &Value) -> bool {
    let lists = ["matchExpressions", "matchFields"];
    lists.iter().all(|l| now.list(l).starts_with(was.list(l)))
        && (lists.iter().any(|l| !was.list(l).is_empty()) || now == was)
}

fn added_tolerations(list: &At, before: &[Value], e: &mut ErrorList) {
    let without_seconds = |t: &Value| {
        let mut t = t.clone();
        t.remove("tolerationSeconds");
        t
    };
    for was in before.iter().map(without_seconds) {
        if !list.each().any(|t| same(&without_seconds(t.value), &was)) {
            return e.push(list.forbidden(
                "existing toleration can not be modified except its tolerationSeconds",
            ));
        }
    }
    scheduling::tolerations(list, e);
}

/// The fields of a spec that differ, one a line.
fn changes(now: &Value, before: &Value) -> String {
    let mut lines = Vec::new();
    let keys = now.map("").keys().chain(before.map("").keys());
    let mut keys: Vec<_> = keys.collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        let (a, b) = (before.at(key), now.at(key));
        if !same(a, b) {
            lines.push(format!("  {key}: {a} -> {b}"));
        }
    }
    lines.join("\n")
}

fn status_update(new: &Value, old: &Value, e: &mut ErrorList) {
    let status = At::new(new, "status");
    for condition in status.at("conditions").each() {
        if condition.value.num("observedGeneration") < 0 {
            e.push(
                condition
                    .at("observedGeneration")
                    .invalid("must be a non-negative integer"),
            );
        }
        let kind = condition.value.text("type");
        if !matches!(kind, "PodScheduled" | "Ready" | "Initialized") {
            let path = condition.path.child("Type");
            e.extend(
                validation::is_qualified_name(kind)
                    .into_iter()
                    .map(|m| FieldError::invalid(&path, kind, m)),
            );
        }
    }
    let nominated = status.at("nominatedNodeName");
    if !nominated.is_empty() && nominated.text() != old.text("status.nominatedNodeName") {
        nominated.conforms(e, validation::is_dns1123_subdomain);
        if !old.text("spec.nodeName").is_empty() {
            e.push(nominated.forbidden("may not be set on pods that are already bound to a node"));
        }
    }
    if status.value.num("observedGeneration") < 0 {
        e.push(
            status
                .at("observedGeneration")
                .invalid("must be a non-negative integer"),
        );
    }
    status
        .at("qosClass")
        .immutable(e, old.at("status.qosClass"));
    restarts_after_success(&status, old, e);
    claim_statuses(&status, new.at("spec"), e);
    extended_claim(&status.at("extendedResourceClaimStatus"), new.at("spec"), e);
    validate::dual_stack(&status.at("podIPs"), "ip", e);
    let hosts = status.at("hostIPs");
    if let Some(first) = hosts.each().next() {
        let ip = first.at("ip");
        if ip.text() != status.value.text("hostIP") {
            e.push(ip.invalid("must be equal to `hostIP`"));
        }
        validate::dual_stack(&hosts, "ip", e);
    }
}

/// Claims that were made for a pod answer to entries of its spec.
fn claim_statuses(status: &At, spec: &Value, e: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for claim in status.at("resourceClaimStatuses").each() {
        let name = claim.at("name");
        let entries = spec.list("resourceClaims");
        if !entries.iter().any(|c| c.text("name") == name.text()) {
            let detail = "must match the name of an entry in `spec.resourceClaims`";
            e.push(name.invalid(detail));
        }
        if !seen.insert(name.text()) {
            e.push(name.duplicate());
        }
        let made = claim.at("resourceClaimName");
        if made.exists() {
            made.conforms(e, validation::is_dns1123_subdomain);
        }
    }
}

/// The claim made for extended resources names containers and what they ask for.
fn extended_claim(claim: &At, spec: &Value, e: &mut ErrorList) {
    if !claim.exists() {
        return;
    }
    let mappings = claim.at("requestMappings");
    if mappings.is_empty() {
        e.push(mappings.required("at least one request mapping is required"));
    }
    let mut seen = Vec::new();
    for mapping in mappings.each() {
        let parts = ["containerName", "resourceName", "requestName"].map(|p| mapping.at(p));
        let [container, resource, request] = &parts;
        let lists = ["initContainers", "containers"];
        let mut all = lists.iter().flat_map(|l| spec.list(l));
        match all.find(|c| c.text("name") == container.text()) {
            None => e.push(container.invalid("must match the name of an entry in spec.initContainers.name or spec.containers.name")),
            Some(c) if !c.map("resources.requests").contains_key(resource.text()) => {
                e.push(resource.invalid("must match the extended resource name of an entry in spec.initContainers.resources.requests or spec.containers.resources.requests"));
            }
            Some(_) => {}
        }
        let shown = At {
            value: request.value,
            path: claim.path.child("requestName"),
        };
        shown.conforms(e, validation::is_dns1123_label);
        let key = parts.each_ref().map(At::text);
        if seen.contains(&key) {
            e.extend(parts.iter().map(At::duplicate));
        }
        seen.push(key);
    }
    let name = claim.at("resourceClaimName");
    name.required_conforms(e, validation::is_dns1123_subdomain);
}

/// A container that has ended for good does not run again.
fn restarts_after_success(status: &At, old: &Value, e: &mut ErrorList) {
    let policy = old.text("spec.restartPolicy");
    if policy == "Always" {
        return;
    }
    for (list, field) in [
        ("containerStatuses", "containers"),
        ("initContainerStatuses", "initContainers"),
    ] {
        for was in old.at("status").list(list) {
            let Some(code) = was.int("state.terminated.exitCode") else {
                continue;
            };
            let name = was.text("name");
            let specs = old.at("spec").list(field);
            let own = specs.iter().find(|c| c.text("name") == name);
            let own_policy = own.map_or("", |c| c.text("restartPolicy"));
            let ruled = own.is_some_and(|c| !c.list("restartPolicyRules").is_empty());
            let effective = if own_policy.is_empty() {
                policy
            } else {
                own_policy
            };
            let final_state = effective == "Never" || effective == "OnFailure" && code == 0;
            if !final_state || ruled {
                continue;
            }
            let index = status.at(list).each().position(|s| {
                s.value.text("name") == name && !s.has("state")
                    || s.value.text("name") == name && !s.value.has("state.terminated")
            });
            if let Some(i) = index {
                let at = status.at(list).path.index(i).child("state");
                e.push(FieldError::forbidden(
                    &at,
                    "may not be transitioned to non-terminated state",
                ));
            }
        }
    }
}

fn ephemeral_update(new: &Value, old: &Value, e: &mut ErrorList) {
    let list = At::new(new, "spec").at("ephemeralContainers");
    for was in old.list("spec.ephemeralContainers") {
        let name = was.text("name");
        match list.each().find(|c| c.value.text("name") == name) {
            None => e.push(list.forbidden(format!(
                "existing ephemeral containers {name:?} may not be removed\n"
            ))),
            Some(now) if !same(now.value, was) => {
                let detail = format!(
                    "existing ephemeral containers {name:?} may not be changed\n{}",
                    changes(now.value, was)
                );
                e.push(list.forbidden(detail));
            }
            Some(_) => {}
        }
    }
}

fn resize(new: &Value, old: &Value, e: &mut ErrorList) {
    let (spec, before) = (At::new(new, "spec"), old.at("spec"));
    if before.text("os.name") == "windows" {
        *e = validate::static_pod("windows pods cannot be resized");
        return;
    }
    let class = match old.text("status.qosClass") {
        "" => resources::qos_class(before),
        class => class,
    };
    if class != resources::qos_class(spec.value) {
        e.push(FieldError::invalid(
            &spec.path,
            class,
            "Pod QOS Class may not change as a result of resizing",
        ));
    }
    let running = old
        .list("status.containerStatuses")
        .iter()
        .find(|s| s.has("state.running"));
    if running.is_some_and(|s| !s.has("resources")) {
        e.push(spec.forbidden("Pod running on node without support for resize"));
    }
    let errors = e.len();
    for list in ["containers", "initContainers"] {
        let (now, was) = (spec.at(list), before.list(list));
        if now.len() != was.len() {
            e.push(now.forbidden(format!("{list} may not be added or removed on resize")));
            continue;
        }
        for (c, was) in now.each().zip(was) {
            if c.value.text("name") != was.text("name") {
                let detail = format!("{list} may not be renamed or reordered on resize");
                e.push(c.at("name").forbidden(detail));
            }
        }
    }
    if e.len() > errors {
        return;
    }
    let mut munged = spec.value.clone();
    for list in ["containers", "initContainers"] {
        for (c, was) in spec.at(list).each().zip(before.list(list)) {
            for which in ["requests", "limits"] {
                let gone = was
                    .at("resources")
                    .map(which)
                    .keys()
                    .any(|k| !c.value.at("resources").map(which).contains_key(k));
                if gone {
                    let detail = format!("resource {which} cannot be removed");
                    e.push(c.at("resources").at(which).forbidden(detail));
                }
            }
        }
        for (c, was) in munged.list_mut(list).iter_mut().zip(before.list(list)) {
            put_back_compute(c, was);
        }
    }
    put_back_compute(&mut munged, before);
    if !check::same(&munged, before) {
        e.push(spec.forbidden("only cpu and memory resources are mutable"));
    }
}

fn put_back_compute(owner: &mut Value, was: &Value) {
    for which in ["requests", "limits"] {
        for name in ["cpu", "memory"] {
            let path = format!("resources.{which}.{name}");
            if owner.has(&path) || was.has(&path) {
                owner.put(&path, was.at(&path).clone());
            }
        }
    }
    if !was.has("resources")
        && owner
            .map("resources")
            .values()
            .all(|v| v.as_object().is_some_and(|o| o.is_empty()))
    {
        owner.remove("resources");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const MAIN: UpdateContext = UpdateContext {
        subresource: "",
        now: "2026-01-01T00:00:00Z",
    };

    fn pod() -> Value {
        let mut pod = json!({"metadata": {"name": "a", "generation": 1}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
        super::super::default::pod(&mut pod);
        pod
    }

    #[test]
    fn only_images_and_a_few_fields_change() {
        let old = pod();
        let mut new = pod();
        new["spec"]["containers"][0]["image"] = json!("i:2");
        prepare(&mut new, &old, &MAIN);
        assert!(validate(&new, &old, &MAIN).is_empty());
        assert_eq!(new["metadata"]["generation"], 2);
        new["spec"]["hostname"] = json!("other");
        let errors = validate(&new, &old, &MAIN);
        assert_eq!(errors.len(), 1);
        assert!(errors[0].to_string().starts_with("spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`"));
    }

    #[test]
    fn status_and_spec_are_written_by_their_own_paths() {
        let old = pod();
        let mut new = pod();
        new["status"] = json!({"phase": "Running"});
        prepare(&mut new, &old, &MAIN);
        assert_eq!(new.get("status"), None);
        let mut new = pod();
        new["status"] = json!({"phase": "Running"});
        new["spec"]["nodeName"] = json!("elsewhere");
        prepare(
            &mut new,
            &old,
            &UpdateContext {
                subresource: "status",
                ..MAIN
            },
        );
        assert_eq!(new["status"]["phase"], "Running");
        assert_eq!(new["spec"].get("nodeName"), None);
    }
}
