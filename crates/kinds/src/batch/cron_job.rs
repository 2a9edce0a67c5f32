//! CronJob.

use keelson_machinery::field::{ErrorList, FieldError};
use keelson_semantics::schedule::Schedule;
use serde_json::Value;

use super::job;
use crate::cell::{self, NONE};
use crate::check::{At, same};
use crate::core::pod;
use crate::kind::{Column, Kind};
use crate::rules;
use crate::tree::{Tree, TreeMut};
use crate::workload;

pub(crate) static CRON_JOB: Kind = Kind {
    group: "batch",
    resource: "cronjobs",
    default,
    prepare_create: rules::first_generation,
    validate: |obj| {
        let mut e = validate(obj, None);
        let name = At::new(obj, "metadata").at("name");
        if name.text().len() > 52 {
            e.push(name.invalid("must be no more than 52 characters"));
        }
        e
    },
    prepare_update: rules::with_generation,
    validate_update: |new, old, ctx| match ctx.subresource {
        "status" => ErrorList::new(),
        _ => validate(new, Some(old)),
    },
    warnings: |new, old| {
        let path = "spec.jobTemplate.spec.template";
        let mut out: Vec<_> = workload::name_warning(new, old).into_iter().collect();
        if old.is_some_and(|old| old.at(path) == new.at(path)) {
            return out;
        }
        out.extend(pod::template_warnings(
            &At::new(new, "spec")
                .at("jobTemplate")
                .at("spec")
                .at("template"),
        ));
        out
    },
    columns: &[
        Column::text("Schedule"),
        Column::text("Timezone"),
        Column::of("Suspend", "boolean"),
        Column::integer("Active"),
        Column::text("Last Schedule"),
        Column::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ],
    cells,
    template_spec: "spec.jobTemplate.spec.template.spec",
    ..Kind::GENERIC
};

fn default(obj: &mut Value) {
    obj.fill_text("spec.concurrencyPolicy", "Allow");
    obj.fill("spec.suspend", false);
    obj.fill("spec.successfulJobsHistoryLimit", 3);
    obj.fill("spec.failedJobsHistoryLimit", 1);
    pod::default_template(obj, "spec.jobTemplate.spec.template");
    for rule in obj.list_mut("spec.jobTemplate.spec.podFailurePolicy.rules") {
        job::default_failure_rule(rule);
    }
}

fn validate(obj: &Value, old: Option<&Value>) -> ErrorList {
    let mut e = ErrorList::new();
    let spec = At::new(obj, "spec");
    let text = spec.at("schedule");
    if text.is_empty() {
        e.push(text.required(""));
    } else {
        if let Err(error) = Schedule::parse(text.text()) {
            e.push(text.invalid(error.to_string()));
        }
        let kept = old.is_some_and(|o| o.text("spec.schedule").contains("TZ"));
        if text.text().contains("TZ") {
            if !kept {
                e.push(
                    text.invalid(
                        "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
                    ),
                );
            } else if spec.has("timeZone") {
                e.push(
                    text.invalid("cannot use both timeZone field and TZ or CRON_TZ in schedule"),
                );
            }
        }
    }
    spec.at("startingDeadlineSeconds").non_negative(&mut e);
    if !old.is_some_and(|o| same(o.at("spec.timeZone"), spec.value.at("timeZone"))) {
        time_zone(&spec.at("timeZone"), &mut e);
    }
    spec.at("concurrencyPolicy")
        .required_one_of(&mut e, &["Allow", "Forbid", "Replace"]);
    let template = spec.at("jobTemplate").at("spec");
    job::validate_spec(&template, &mut e);
    if template.has("selector") {
        e.push(
            template
                .at("selector")
                .invalid("`selector` will be auto-generated"),
        );
    }
    if template.value.flag("manualSelector") {
        e.push(
            template
                .at("manualSelector")
                .not_supported(&["nil", "false"]),
        );
    }
    spec.at("successfulJobsHistoryLimit").non_negative(&mut e);
    spec.at("failedJobsHistoryLimit").non_negative(&mut e);
    e
}

fn time_zone(zone: &At, e: &mut ErrorList) {
    if !zone.exists() {
        return;
    }
    let text = zone.text();
    if text.is_empty() {
        return e.push(zone.invalid("timeZone must be nil or non-empty string"));
    }
    let fine = |part: &str| {
        !part.starts_with('-')
            && !matches!(part, "." | "..")
            && (1..=14).contains(&part.len())
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-+".contains(c))
    };
    if !text.split('/').all(fine) {
        return e.push(zone.invalid(format!("unknown time zone {text}")));
    }
    if text.eq_ignore_ascii_case("local") {
        e.push(zone.invalid(
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        ));
    } else if text != "UTC" && jiff::tz::TimeZone::get(text).is_err() {
        e.push(FieldError::invalid(
            &zone.path,
            text,
            format!("unknown time zone {text}"),
        ));
    }
}

fn cells(obj: &Value, now: i64) -> Vec<Value> {
    let zone = obj.at("spec.timeZone").as_str().unwrap_or(NONE).to_owned();
    let last = match obj.text("status.lastScheduleTime") {
        "" => NONE.to_owned(),
        time => cell::since(time, now),
    };
    let [names, images] = workload::wide_cells(obj, "spec.jobTemplate.spec.template");
    vec![
        obj.text("spec.schedule").into(),
        zone.into(),
        if obj.flag("spec.suspend") {
            "True".into()
        } else {
            "False".into()
        },
        obj.list("status.active").len().into(),
        last.into(),
        cell::age(obj, now),
        names,
        images,
        cell::selector(obj.at("spec.jobTemplate.spec.selector")).into(),
    ]
}
