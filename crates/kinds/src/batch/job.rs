//! Job.

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_machinery::validation;
use serde_json::Value;

use super::indexes;
use crate::cell;
use crate::check::{At, IMMUTABLE, domain_prefixed_path, same};
use crate::core::pod;
use crate::kind::{Column, Kind, UpdateContext};
use crate::rules;
use crate::tree::{Tree, TreeMut};
use crate::workload;

const UID_LABELS: [&str; 2] = ["controller-uid", "batch.kubernetes.io/controller-uid"];
const NAME_LABELS: [&str; 2] = ["job-name", "batch.kubernetes.io/job-name"];

pub(crate) static JOB: Kind = Kind {
    group: "batch",
    resource: "jobs",
    default,
    prepare_create: |obj| {
        rules::first_generation(obj);
        if !obj.flag("spec.manualSelector") {
            generate_selector(obj);
        }
    },
    validate,
    prepare_update: rules::with_generation,
    validate_update,
    warnings: workload::warnings,
    columns: &[
        Column::text("Status"),
        Column::text("Completions"),
        Column::text("Duration"),
        Column::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ],
    cells,
    selectable: |obj| vec![("status.successful", obj.num("status.succeeded").to_string())],
    selectable_names: &["status.successful"],
    orphans_dependents: true,
    template_spec: "spec.template.spec",
    ..Kind::GENERIC
};

fn default(obj: &mut Value) {
    if !obj.has("spec.completions") && !obj.has("spec.parallelism") {
        obj.put("spec.completions", 1);
    }
    obj.fill("spec.parallelism", 1);
    let per_index = obj.has("spec.backoffLimitPerIndex");
    obj.fill("spec.backoffLimit", if per_index { i32::MAX } else { 6 });
    if obj.map("metadata.labels").is_empty() && !obj.map("spec.template.metadata.labels").is_empty()
    {
        obj.put(
            "metadata.labels",
            obj.at("spec.template.metadata.labels").clone(),
        );
    }
    obj.fill("spec.completionMode", "NonIndexed");
    obj.fill("spec.suspend", false);
    let replacement = if obj.has("spec.podFailurePolicy") {
        "Failed"
    } else {
        "TerminatingOrFailed"
    };
    obj.fill("spec.podReplacementPolicy", replacement);
    obj.fill("spec.manualSelector", false);
    for rule in obj.list_mut("spec.podFailurePolicy.rules") {
        default_failure_rule(rule);
    }
    pod::default_template(obj, "spec.template");
}

pub(super) fn default_failure_rule(rule: &mut Value) {
    for pattern in rule.list_mut("onPodConditions") {
        pattern.fill_text("status", "True");
    }
}

/// Pods are the job's by its uid; older clients look for labels without a domain.
fn generate_selector(obj: &mut Value) {
    let follows = obj.map("metadata.labels").is_empty()
        || obj.at("metadata.labels") == obj.at("spec.template.metadata.labels");
    let uid = obj.at("metadata.uid").clone();
    let name = obj.at("metadata.name").clone();
    if let Some(labels) = obj.object("spec.template.metadata.labels") {
        for (keys, value) in [(NAME_LABELS, name), (UID_LABELS, uid.clone())] {
            for key in keys {
                labels.entry(key).or_insert_with(|| value.clone());
            }
        }
    }
    if let Some(labels) = obj.object("spec.selector.matchLabels") {
        labels.entry(UID_LABELS[1]).or_insert(uid);
    }
    // A job without labels of its own has those of its pods.
    if follows {
        let labels = obj.at("spec.template.metadata.labels").clone();
        obj.put("metadata.labels", labels);
    }
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    generated_selector(obj, &mut e);
    selected_spec(obj, &mut e);
    let completions = obj.num("spec.completions");
    if obj.text("spec.completionMode") == "Indexed" && completions > 0 {
        let name = At::new(obj, "metadata").at("name");
        let host = format!("{}-{}", name.text(), completions - 1);
        if !validation::is_dns1123_label(&host).is_empty() {
            e.push(name.invalid(format!(
                "will not able to create pod with invalid DNS label: {host}"
            )));
        }
    }
    e
}

/// The spec with its selector, which a cron job's template lacks.
fn selected_spec(obj: &Value, e: &mut ErrorList) {
    let spec = At::new(obj, "spec");
    validate_spec(&spec, e);
    let selector = spec.at("selector");
    if !selector.exists() {
        e.push(selector.required(""));
    }
    if workload::label_selector(&selector, e) {
        workload::template_is_selected(&spec, e);
    }
}

fn generated_selector(obj: &Value, e: &mut ErrorList) {
    if obj.flag("spec.manualSelector") || !obj.has("spec.selector") {
        return;
    }
    let (uid, name) = (obj.at("metadata.uid"), obj.at("metadata.name"));
    if uid.is_null() {
        e.push(At::new(obj, "metadata").at("uid").required(""));
    }
    let template = At::new(obj, "spec")
        .at("template")
        .at("metadata")
        .at("labels");
    let mut expected = serde_json::Map::new();
    for (keys, value) in [(UID_LABELS, uid), (NAME_LABELS, name)] {
        for key in keys {
            expected.insert(key.to_owned(), value.clone());
            let found = template.value.get(key);
            let shown = value.as_str().unwrap_or("");
            let path = template.path.key(key);
            match found {
                None => e.push(FieldError::required(&path, format!("must be '{shown}'"))),
                Some(v) if v != value => e.push(FieldError::invalid(
                    &path,
                    template.value.clone(),
                    format!("must be '{shown}'"),
                )),
                Some(_) => {}
            }
        }
    }
    let selector = At::new(obj, "spec").at("selector");
    if !workload::selects(selector.value, &expected) {
        e.push(selector.invalid("`selector` not auto-generated"));
    }
}

/// The rules of a job's spec that a cron job's template has too.
pub(super) fn validate_spec(spec: &At, e: &mut ErrorList) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        spec.at(field).non_negative(e);
    }
    let (per_index, max_failed) = (spec.at("backoffLimitPerIndex"), spec.at("maxFailedIndexes"));
    if max_failed.exists() && !per_index.exists() {
        e.push(per_index.required("when maxFailedIndexes is specified"));
    }
    managed_by(&spec.at("managedBy"), e);
    let mode = spec.at("completionMode");
    mode.one_of(e, &["NonIndexed", "Indexed"]);
    if mode.text() == "Indexed" {
        indexed(spec, e);
    } else if !mode.exists() || mode.text() == "NonIndexed" {
        for at in [&per_index, &max_failed] {
            if at.exists() {
                e.push(at.invalid("requires indexed completion mode"));
            }
        }
    }
    if spec.has("podFailurePolicy") {
        failure_policy(spec, e);
    }
    let success = spec.at("successPolicy");
    if success.exists() {
        if mode.text() == "Indexed" {
            success_policy(spec, &success, e);
        } else {
            e.push(success.invalid("requires indexed completion mode"));
        }
    }
    let replacement = spec.at("podReplacementPolicy");
    if spec.has("podFailurePolicy") {
        replacement.one_of(e, &["Failed"]);
    } else {
        replacement.one_of(e, &["Failed", "TerminatingOrFailed"]);
    }
    let template = spec.at("template");
    pod::pod_template(&template, e);
    let restart = template.at("spec").at("restartPolicy");
    match restart.text() {
        "Always" | "" => e.push(restart.required("valid values: \"OnFailure\", \"Never\"")),
        "Never" => {}
        "OnFailure" => {
            if spec.has("podFailurePolicy") {
                e.push(
                    restart
                        .invalid("only \"Never\" is supported when podFailurePolicy is specified"),
                );
            }
        }
        _ => e.push(restart.not_supported(&["OnFailure", "Never"])),
    }
}

fn managed_by(at: &At, e: &mut ErrorList) {
    if !at.exists() {
        return;
    }
    domain_prefixed_path(at, e);
    if at.text().len() > 63 {
        e.push(FieldError::too_long(&at.path, 63));
    }
}

fn indexed(spec: &At, e: &mut ErrorList) {
    let (completions, parallelism, max_failed) = (
        spec.at("completions"),
        spec.at("parallelism"),
        spec.at("maxFailedIndexes"),
    );
    if !completions.exists() {
        e.push(completions.required("when completion mode is Indexed"));
    }
    let at_most = |at: &At, most: i64, why: &str, e: &mut ErrorList| {
        if at.num() > most {
            e.push(at.invalid(format!("must be less than or equal to {most}{why}")));
        }
    };
    at_most(&parallelism, 100_000, " when completion mode is Indexed", e);
    if completions.exists() && max_failed.num() > completions.num() {
        e.push(max_failed.invalid("must be less than or equal to completions"));
    }
    at_most(&max_failed, 100_000, "", e);
    if completions.num() > 100_000 && spec.has("backoffLimitPerIndex") {
        if !max_failed.exists() {
            e.push(max_failed.required("must be specified when completions is above 100000"));
        }
        let why = " when completions are above 100000 and used with backoff limit per index";
        at_most(&parallelism, 10_000, why, e);
        at_most(&max_failed, 10_000, why, e);
    }
}

fn failure_policy(spec: &At, e: &mut ErrorList) {
    let rules = spec.at("podFailurePolicy").at("rules");
    if rules.len() > 20 {
        e.push(FieldError::too_many(&rules.path, rules.len(), 20));
    }
    for rule in rules.each() {
        let action = rule.at("action");
        match action.text() {
            "" => e.push(
                action.required("valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]"),
            ),
            "FailIndex" => {
                if !spec.has("backoffLimitPerIndex") {
                    e.push(action.invalid("requires the backoffLimitPerIndex to be set"));
                }
            }
            _ => action.one_of(e, &["Count", "FailIndex", "FailJob", "Ignore"]),
        }
        let (codes, conditions) = (rule.at("onExitCodes"), rule.at("onPodConditions"));
        if codes.exists() {
            exit_codes(spec, &codes, e);
        }
        if conditions.len() > 20 {
            e.push(FieldError::too_many(&conditions.path, conditions.len(), 20));
        }
        for pattern in conditions.each() {
            pattern.at("type").label_name(e);
            let status = pattern.at("status");
            if status.is_empty() {
                e.push(status.required("valid values: [\"False\" \"True\" \"Unknown\"]"));
            } else {
                status.one_of(e, &["False", "True", "Unknown"]);
            }
        }
        match (codes.exists(), !conditions.is_empty()) {
            (true, true) => e.push(FieldError::invalid_unshown(
                &rule.path,
                "specifying both OnExitCodes and OnPodConditions is not supported",
            )),
            (false, false) => e.push(FieldError::invalid_unshown(
                &rule.path,
                "specifying one of OnExitCodes and OnPodConditions is required",
            )),
            _ => {}
        }
    }
}

fn exit_codes(spec: &At, codes: &At, e: &mut ErrorList) {
    let operator = codes.at("operator");
    if operator.is_empty() {
        e.push(operator.required("valid values: [\"In\" \"NotIn\"]"));
    } else {
        operator.one_of(e, &["In", "NotIn"]);
    }
    let container = codes.at("containerName");
    let pod = spec.value.at("template.spec");
    let named = |list: &str| {
        pod.list(list)
            .iter()
            .any(|c| c.text("name") == container.text())
    };
    if container.exists() && !named("containers") && !named("initContainers") {
        e.push(
            container
                .invalid("must be one of the container or initContainer names in the pod template"),
        );
    }
    let values = codes.at("values");
    if values.is_empty() {
        e.push(values.invalid("at least one value is required"));
    } else if values.len() > 255 {
        e.push(FieldError::too_many(&values.path, values.len(), 255));
    }
    let mut seen = Vec::new();
    let mut ordered = true;
    for value in values.each() {
        if operator.text() == "In" && value.num() == 0 {
            e.push(value.invalid("must not be 0 for the In operator"));
        }
        if seen.contains(&value.num()) {
            e.push(value.duplicate());
        }
        ordered &= seen.last().is_none_or(|last| *last <= value.num());
        seen.push(value.num());
    }
    if !ordered {
        e.push(values.invalid("must be ordered"));
    }
}

fn success_policy(spec: &At, policy: &At, e: &mut ErrorList) {
    let rules = policy.at("rules");
    if rules.is_empty() {
        e.push(
            rules.required(
                "at least one rules must be specified when the successPolicy is specified",
            ),
        );
    }
    if rules.len() > 20 {
        e.push(FieldError::too_many(&rules.path, rules.len(), 20));
    }
    let completions = spec.value.num("completions");
    for rule in rules.each() {
        let (count, indexes) = (rule.at("succeededCount"), rule.at("succeededIndexes"));
        if !count.exists() && !indexes.exists() {
            e.push(
                rule.required(
                    "at least one of succeededCount or succeededIndexes must be specified",
                ),
            );
        }
        let mut total = 0;
        if indexes.exists() {
            if indexes.len() > 65536 {
                e.push(FieldError::too_long(&indexes.path, 65536));
            }
            match indexes::count(indexes.text(), completions) {
                Ok(n) => total = n,
                Err(detail) => {
                    e.push(indexes.invalid(format!("error parsing succeededIndexes: {detail}")))
                }
            }
        }
        if count.exists() {
            count.non_negative(e);
            if count.num() > completions {
                e.push(count.invalid(format!(
                    "must be less than or equal to {completions} (the number of specified completions)"
                )));
            }
            if indexes.exists() && count.num() > total {
                e.push(count.invalid(format!(
                    "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
                )));
            }
        }
    }
}

fn validate_update(new: &Value, old: &Value, ctx: &UpdateContext) -> ErrorList {
    if ctx.subresource == "status" {
        return status_update(new, old);
    }
    let mut e = validate(new);
    // An update looks at the spec a second time, and says so.
    selected_spec(new, &mut e);
    let spec = At::new(new, "spec");
    let completions = spec.at("completions");
    if spec.value.text("completionMode") != "Indexed" {
        workload::immutable(new, old, "spec.completions", &mut e);
    } else if completions.int() != old.int("spec.completions")
        && completions.exists()
        && completions.int() != new.int("spec.parallelism")
    {
        e.push(completions.invalid("can only be modified in tandem with spec.parallelism"));
    }
    workload::immutable(new, old, "spec.selector", &mut e);
    template_update(new, old, &mut e);
    for field in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex"] {
        workload::immutable(new, old, &format!("spec.{field}"), &mut e);
    }
    workload::immutable_optional(new, old, "spec.managedBy", &mut e);
    workload::immutable(new, old, "spec.successPolicy", &mut e);
    e
}

/// A job that has not begun may still change where its pods go and what they ask for.
fn template_update(new: &Value, old: &Value, e: &mut ErrorList) {
    let suspended = condition(old, "Suspended");
    let open = old.flag("spec.suspend")
        && (!old.has("status.startTime") || suspended)
        && old.num("status.active") == 0;
    let template = At::new(new, "spec").at("template");
    if !open {
        return template.immutable(e, old.at("spec.template"));
    }
    let mut expected = old.at("spec.template").clone();
    for field in [
        "spec.affinity.nodeAffinity",
        "spec.nodeSelector",
        "spec.tolerations",
        "spec.schedulingGates",
        "metadata.annotations",
        "metadata.labels",
    ] {
        if template.value.has(field) || expected.has(field) {
            expected.put(field, template.value.at(field).clone());
        }
    }
    for list in ["containers", "initContainers"] {
        let path = format!("spec.{list}");
        for (c, wanted) in expected
            .list_mut(&path)
            .iter_mut()
            .zip(template.value.list(&path))
        {
            if c.text("name") == wanted.text("name") {
                c.put("resources", wanted.at("resources").clone());
            }
        }
    }
    if expected.map("spec.affinity").is_empty() && !template.value.has("spec.affinity") {
        expected.remove("spec.affinity");
    }
    let pod = template.at("spec");
    if !same(pod.value, expected.at("spec")) {
        e.push(pod.invalid(IMMUTABLE));
    }
}

fn condition(job: &Value, kind: &str) -> bool {
    job.list("status.conditions")
        .iter()
        .any(|c| c.text("type") == kind && c.text("status") == "True")
}

fn status_update(new: &Value, old: &Value) -> ErrorList {
    let mut e = workload::status_counts(
        new,
        &["active", "succeeded", "failed", "ready", "terminating"],
        &[],
    );
    let status = At::new(new, "status");
    let is = |kind: &str| condition(new, kind);
    let was = |kind: &str| condition(old, kind);
    let finished = is("Complete") || is("Failed");
    let finished_changed = finished != (was("Complete") || was("Failed"));
    let changed = |field: &str| !same(status.value.at(field), old.at("status").at(field));
    let conditions = status.at("conditions");
    let mut conflict = |wrong: bool, detail: &str| {
        if wrong {
            e.push(conditions.invalid(detail));
        }
    };
    conflict(
        is("Complete") && is("Failed"),
        "cannot set Complete=True and Failed=true conditions",
    );
    conflict(
        is("Complete") && is("FailureTarget"),
        "cannot set Complete=True and FailureTarget=true conditions",
    );
    conflict(
        is("Failed") && !is("FailureTarget") && !was("Failed"),
        "cannot set Failed=True condition without the FailureTarget=true condition",
    );
    conflict(
        is("Complete") && !is("SuccessCriteriaMet") && !was("Complete"),
        "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
    );
    conflict(
        is("SuccessCriteriaMet") && is("Failed"),
        "cannot set SuccessCriteriaMet=True and Failed=true conditions",
    );
    conflict(
        is("SuccessCriteriaMet") && is("FailureTarget"),
        "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions",
    );
    for kind in ["Failed", "Complete", "FailureTarget"] {
        conflict(
            was(kind) && !is(kind),
            &format!("cannot disable the terminal {kind}=True condition"),
        );
    }
    conflict(
        was("SuccessCriteriaMet") && !is("SuccessCriteriaMet"),
        "cannot disable the SuccessCriteriaMet=True condition",
    );
    let completion = status.at("completionTime");
    if changed("completionTime") || finished_changed {
        if completion.exists() && !is("Complete") {
            e.push(
                completion
                    .invalid("cannot set completionTime when there is no Complete=True condition"),
            );
        }
        if !completion.exists() && is("Complete") {
            e.push(completion.required("completionTime is required for Complete jobs"));
        }
    }
    let start = status.at("startTime");
    let (s, c) = (
        cell::seconds(start.text()),
        cell::seconds(completion.text()),
    );
    if let (Some(s), Some(c)) = (s, c)
        && c < s
    {
        e.push(completion.invalid("must be equal to or after `startTime`"));
    }
    finished_counts(
        new,
        &status,
        finished && (finished_changed || changed("active") || changed("terminating")),
        &mut e,
    );
    indexes::changed(new, old, &status, &mut e);
    counters(new, old, &status, &mut e);
    e
}

/// What only grows, and what is set once.
fn counters(new: &Value, old: &Value, status: &At, e: &mut ErrorList) {
    let (start, completion) = (status.at("startTime"), status.at("completionTime"));
    let changed = |field: &str| !same(status.value.at(field), old.at("status").at(field));
    let was = |kind: &str| condition(old, kind);
    if old.has("status.completionTime") && completion.exists() && changed("completionTime") {
        e.push(completion.invalid("field is immutable"));
    }
    let resuming = was("Suspended")
        && new
            .list("status.conditions")
            .iter()
            .any(|c| c.text("type") == "Suspended" && c.text("status") == "False");
    if old.has("status.startTime") && changed("startTime") && !new.flag("spec.suspend") && !resuming
    {
        e.push(start.invalid("field is immutable for unsuspended job once set"));
    }
    if status.value.num("failed") < old.num("status.failed") {
        e.push(
            status
                .at("failed")
                .invalid("cannot decrease the failed counter"),
        );
    }
    let elastic = new.text("spec.completionMode") == "Indexed"
        && new.at("spec.completions") == new.at("spec.parallelism");
    if !elastic && status.value.num("succeeded") < old.num("status.succeeded") {
        e.push(
            status
                .at("succeeded")
                .invalid("cannot decrease the succeeded counter"),
        );
    }
    if (changed("ready") || changed("active"))
        && status.value.num("ready") > status.value.num("active")
    {
        e.push(
            status
                .at("ready")
                .invalid("cannot set more ready pods than active"),
        );
    }
}

fn finished_counts(new: &Value, status: &At, just_finished: bool, e: &mut ErrorList) {
    if !just_finished {
        return;
    }
    for (field, detail) in [
        ("active", "active>0 is invalid for finished job"),
        ("terminating", "terminating>0 is invalid for finished job"),
    ] {
        if status.value.num(field) > 0 {
            e.push(status.at(field).invalid(detail));
        }
    }
    let nothing_to_do = new.flag("spec.suspend") && new.int("spec.completions") == Some(0);
    if !status.has("startTime") && !nothing_to_do {
        e.push(
            status
                .at("startTime")
                .required("startTime is required for finished job"),
        );
    }
    let uncounted = status.at("uncountedTerminatedPods");
    if uncounted.at("failed").len() + uncounted.at("succeeded").len() > 0 {
        e.push(uncounted.invalid("must be empty for finished job"));
    }
}

fn cells(obj: &Value, now: i64) -> Vec<Value> {
    let condition_is = |kind: &str| condition(obj, kind);
    let status = if condition_is("Complete") {
        "Complete"
    } else if condition_is("Failed") {
        "Failed"
    } else if obj.has("metadata.deletionTimestamp") {
        "Terminating"
    } else if condition_is("Suspended") {
        "Suspended"
    } else if condition_is("FailureTarget") {
        "FailureTarget"
    } else if condition_is("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    let succeeded = obj.num("status.succeeded");
    let completions = match (obj.int("spec.completions"), obj.num("spec.parallelism")) {
        (Some(all), _) => format!("{succeeded}/{all}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let duration = match (
        cell::seconds(obj.text("status.startTime")),
        cell::seconds(obj.text("status.completionTime")),
    ) {
        (None, _) => String::new(),
        (Some(start), end) => {
            keelson_semantics::duration::human(end.unwrap_or(now).saturating_sub(start))
        }
    };
    let [names, images] = workload::wide_cells(obj, "spec.template");
    vec![
        status.into(),
        completions.into(),
        duration.into(),
        cell::age(obj, now),
        names,
        images,
        cell::selector(obj.at("spec.selector")).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_new_job_selects_its_own_pods() {
        let mut job = json!({"metadata": {"name": "a", "uid": "u"}, "spec": {"template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "a", "image": "a"}]}}}});
        default(&mut job);
        (JOB.prepare_create)(&mut job);
        assert_eq!(validate(&job), ErrorList::new());
        assert_eq!(
            job["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"],
            "u"
        );
        assert_eq!(
            job["spec"]["template"]["metadata"]["labels"]["job-name"],
            "a"
        );
    }
}
