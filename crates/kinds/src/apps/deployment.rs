//! Deployment.

use keelson_machinery::field::{ErrorList, FieldError};
use serde_json::Value;

use crate::cell;
use crate::check::At;
use crate::core::pod;
use crate::kind::{Column, Kind, UpdateContext};
use crate::rules;
use crate::tree::{Tree, TreeMut};
use crate::workload::{self, WITHIN_REPLICAS};

pub(crate) static DEPLOYMENT: Kind = Kind {
    group: "apps",
    resource: "deployments",
    default,
    prepare_create: rules::first_generation,
    validate,
    prepare_update,
    validate_update,
    warnings: workload::warnings,
    columns: &[
        Column::text("Ready"),
        Column::text("Up-to-date"),
        Column::text("Available"),
        Column::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ],
    cells,
    template_spec: "spec.template.spec",
    reset_fields: &[("", &["status"]), ("status", &["spec", "metadata.labels"])],
    ..Kind::GENERIC
};

fn default(obj: &mut Value) {
    obj.fill("spec.replicas", 1);
    obj.fill_text("spec.strategy.type", "RollingUpdate");
    if obj.text("spec.strategy.type") == "RollingUpdate" {
        obj.fill("spec.strategy.rollingUpdate.maxUnavailable", "25%");
        obj.fill("spec.strategy.rollingUpdate.maxSurge", "25%");
    }
    obj.fill("spec.revisionHistoryLimit", 10);
    obj.fill("spec.progressDeadlineSeconds", 600);
    pod::default_template(obj, "spec.template");
}

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    spec.at("replicas").non_negative(&mut e);
    let empty = "empty selector is invalid for deployment";
    workload::selector_and_template(&spec, "ReplicaSet", empty, &mut e);
    strategy(&spec.at("strategy"), &mut e);
    for field in [
        "minReadySeconds",
        "revisionHistoryLimit",
        "progressDeadlineSeconds",
    ] {
        spec.at(field).non_negative(&mut e);
    }
    let deadline = spec.at("progressDeadlineSeconds");
    if deadline
        .int()
        .is_some_and(|d| d <= spec.value.num("minReadySeconds"))
    {
        e.push(deadline.invalid("must be greater than minReadySeconds"));
    }
    e
}

fn strategy(strategy: &At, e: &mut ErrorList) {
    let rolling = strategy.at("rollingUpdate");
    match strategy.value.text("type") {
        "Recreate" => {
            if rolling.exists() {
                e.push(
                    rolling.forbidden("may not be specified when strategy `type` is 'Recreate'"),
                );
            }
        }
        "RollingUpdate" if !rolling.exists() => {
            e.push(rolling.required("this should be defaulted and never be nil"));
        }
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.at("maxUnavailable"), rolling.at("maxSurge"));
            workload::int_or_percent(&unavailable, e);
            workload::int_or_percent(&surge, e);
            let none = |at: &At| workload::int_or_percent_value(at.value) == 0;
            if none(&unavailable) && none(&surge) {
                e.push(unavailable.invalid("may not be 0 when `maxSurge` is 0"));
            }
            workload::at_most_all(&unavailable, e);
        }
        _ => {
            let shown = strategy.value.clone();
            e.push(FieldError::not_supported(
                &strategy.path,
                shown,
                &["Recreate", "RollingUpdate"],
            ));
        }
    }
}

fn prepare_update(new: &mut Value, old: &Value, ctx: &UpdateContext) {
    match ctx.subresource {
        "scale" => {
            workload::keep_all_but_replicas(new, old);
            rules::raise_generation(new, old, new.at("spec") != old.at("spec"));
        }
        "status" => {
            rules::only_status(new, old);
            new.keep("metadata.labels", old);
        }
        _ => {
            new.keep("status", old);
            let changed = new.at("spec") != old.at("spec")
                || new.at("metadata.annotations") != old.at("metadata.annotations");
            rules::raise_generation(new, old, changed);
        }
    }
}

fn validate_update(new: &Value, old: &Value, ctx: &UpdateContext) -> ErrorList {
    if ctx.subresource == "status" {
        let mut e = workload::status_counts(
            new,
            &[
                "observedGeneration",
                "replicas",
                "updatedReplicas",
                "readyReplicas",
                "availableReplicas",
                "unavailableReplicas",
                "terminatingReplicas",
                "collisionCount",
            ],
            &[
                ("updatedReplicas", "replicas", WITHIN_REPLICAS),
                ("readyReplicas", "replicas", WITHIN_REPLICAS),
                ("availableReplicas", "replicas", WITHIN_REPLICAS),
                (
                    "availableReplicas",
                    "readyReplicas",
                    "cannot be greater than readyReplicas",
                ),
            ],
        );
        workload::not_decremented(new, old, "status.collisionCount", &mut e);
        return e;
    }
    let mut e = validate(new);
    workload::immutable(new, old, "spec.selector", &mut e);
    e
}

fn cells(obj: &Value, now: i64) -> Vec<Value> {
    let [names, images] = workload::wide_cells(obj, "spec.template");
    vec![
        format!(
            "{}/{}",
            obj.num("status.readyReplicas"),
            obj.num("spec.replicas")
        )
        .into(),
        obj.num("status.updatedReplicas").into(),
        obj.num("status.availableReplicas").into(),
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

    fn deployment() -> Value {
        let mut obj = json!({
            "metadata": {"name": "a"},
            "spec": {"selector": {"matchLabels": {"app": "a"}}, "template": {
                "metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "a", "image": "a"}]}}},
        });
        default(&mut obj);
        obj
    }

    #[test]
    fn defaults_are_sound() {
        let obj = deployment();
        assert_eq!(validate(&obj), ErrorList::new());
        assert_eq!(obj["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%");
        assert_eq!(obj["spec"]["template"]["spec"]["dnsPolicy"], "ClusterFirst");
        assert_eq!(
            obj["spec"]["template"]["spec"].get("enableServiceLinks"),
            None
        );
    }

    #[test]
    fn the_selector_stays() {
        let old = deployment();
        let mut new = deployment();
        new["spec"]["selector"] = json!({"matchLabels": {"app": "b"}});
        let ctx = UpdateContext {
            subresource: "",
            now: "",
        };
        let texts: Vec<_> = validate_update(&new, &old, &ctx)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert!(texts[0].contains("spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match template `labels`"), "{texts:?}");
        assert!(
            texts[1].starts_with("spec.selector: Invalid value: "),
            "{texts:?}"
        );
        assert!(texts[1].ends_with("field is immutable"));
    }

    #[test]
    fn only_a_changed_spec_raises_the_generation() {
        let mut old = deployment();
        rules::first_generation(&mut old);
        let mut new = old.clone();
        old["status"] = json!({});
        new["status"] = json!({"replicas": 4});
        let ctx = UpdateContext {
            subresource: "",
            now: "",
        };
        prepare_update(&mut new, &old, &ctx);
        assert_eq!(new, old);
        new["spec"]["replicas"] = json!(3);
        prepare_update(&mut new, &old, &ctx);
        assert_eq!(new["metadata"]["generation"], 2);
    }
}
