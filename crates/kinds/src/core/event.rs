//! Event, under both groups that serve it. What is stored is the core group's form.

use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::validation;
use serde_json::Value;

use crate::cell;
use crate::check::{At, same};
use crate::kind::{Column, Kind};
use crate::tree::Tree;

pub(crate) static EVENT: Kind = EVENTS;

pub(crate) static EVENT_OF_ITS_OWN_GROUP: Kind = Kind {
    group: "events.k8s.io",
    ..EVENTS
};

const EVENTS: Kind = Kind {
    group: "",
    resource: "events",
    validate,
    validate_update,
    columns: &[
        Column::text("Last Seen"),
        Column::text("Type"),
        Column::text("Reason"),
        Column::text("Object"),
        Column::wide("Subobject"),
        Column::wide("Source"),
        Column::text("Message"),
        Column::wide("First Seen"),
        Column::wide("Count"),
        Column::wide("Name"),
    ],
    cells,
    selectable,
    selectable_names: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
    allow_create_on_update: true,
    time_to_live_s: Some(3600),
    ..Kind::GENERIC
};

fn selectable(obj: &Value) -> Vec<(&'static str, String)> {
    let text = |path: &str| obj.text(path).to_owned();
    let source = match obj.text("source.component") {
        "" => obj.text("reportingComponent"),
        component => component,
    };
    vec![
        ("involvedObject.kind", text("involvedObject.kind")),
        ("involvedObject.namespace", text("involvedObject.namespace")),
        ("involvedObject.name", text("involvedObject.name")),
        ("involvedObject.uid", text("involvedObject.uid")),
        (
            "involvedObject.apiVersion",
            text("involvedObject.apiVersion"),
        ),
        (
            "involvedObject.resourceVersion",
            text("involvedObject.resourceVersion"),
        ),
        ("involvedObject.fieldPath", text("involvedObject.fieldPath")),
        ("reason", text("reason")),
        ("reportingComponent", text("reportingComponent")),
        ("source", source.to_owned()),
        ("type", text("type")),
    ]
}

/// Events made by the older recorder carry no eventTime; they are held to less.
fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    namespace(obj, &mut e);
    if !obj.has("eventTime") {
        return e;
    }
    let controller = At::new(obj, "reportingComponent");
    let named = At {
        value: controller.value,
        path: Path::new("reportingController"),
    };
    named.required_conforms(&mut e, validation::is_qualified_name);
    for (field, max) in [("reportingInstance", 128), ("action", 128), ("reason", 128)] {
        let at = At::new(obj, field);
        at.require(&mut e);
        if at.text().len() > max {
            e.push(at.invalid(format!("can have at most {max} characters")));
        }
    }
    let message = At {
        value: obj.at("message"),
        path: Path::new("message"),
    };
    if message.text().len() > 1024 {
        e.push(message.invalid("can have at most 1024 characters"));
    }
    let kind = At::new(obj, "type");
    if !matches!(kind.text(), "Normal" | "Warning") {
        e.push(FieldError::invalid(
            &kind.path,
            kind.text(),
            "has invalid value: ".to_owned(),
        ));
    }
    series(obj, &mut e);
    e
}

fn namespace(obj: &Value, e: &mut ErrorList) {
    let (own, involved) = (
        obj.text("metadata.namespace"),
        obj.text("involvedObject.namespace"),
    );
    let path = Path::new("involvedObject.namespace");
    if involved.is_empty() {
        if !matches!(own, "" | "default" | "kube-system") {
            e.push(FieldError::invalid(
                &path,
                involved,
                "does not match event.namespace",
            ));
        }
    } else if own != involved {
        e.push(FieldError::invalid(
            &path,
            involved,
            "does not match event.namespace",
        ));
    }
}

fn series(obj: &Value, e: &mut ErrorList) {
    let series = At::new(obj, "series");
    if !series.exists() {
        return;
    }
    if series.value.num("count") < 2 {
        e.push(FieldError::invalid(
            &Path::new("series.count"),
            "",
            "should be at least 2",
        ));
    }
    if series.at("lastObservedTime").is_empty() {
        e.push(FieldError::required(
            &Path::new("series.lastObservedTime"),
            "",
        ));
    }
}

fn validate_update(new: &Value, old: &Value, _: &crate::kind::UpdateContext) -> ErrorList {
    let mut e = validate(new);
    if !new.has("eventTime") {
        return e;
    }
    for field in [
        "involvedObject",
        "reason",
        "message",
        "source",
        "firstTimestamp",
        "lastTimestamp",
        "count",
        "type",
        "eventTime",
        "action",
        "related",
        "reportingComponent",
        "reportingInstance",
    ] {
        if !same(new.at(field), old.at(field)) {
            let path = Path::new(field);
            e.push(FieldError::invalid(
                &path,
                new.at(field).clone(),
                crate::check::IMMUTABLE,
            ));
        }
    }
    e
}

fn cells(obj: &Value, now: i64) -> Vec<Value> {
    let since = |paths: &[&str]| {
        let time = paths
            .iter()
            .map(|p| obj.text(p))
            .find(|t| !t.is_empty())
            .unwrap_or("");
        cell::since(time, now)
    };
    let first = since(&["firstTimestamp", "eventTime"]);
    let (last, count) = if obj.has("series") {
        (since(&["series.lastObservedTime"]), obj.num("series.count"))
    } else {
        let count = obj.num("count");
        (
            since(&["lastTimestamp", "firstTimestamp", "eventTime"]),
            if count == 0 { 1 } else { count },
        )
    };
    let kind = obj.text("involvedObject.kind").to_lowercase();
    let object = match obj.text("involvedObject.name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let (component, host) = match obj.text("source.component") {
        "" => (
            obj.text("reportingComponent"),
            obj.text("reportingInstance"),
        ),
        component => (component, obj.text("source.host")),
    };
    let source = if host.is_empty() {
        component.to_owned()
    } else {
        format!("{component}, {host}")
    };
    vec![
        last.into(),
        obj.text("type").into(),
        obj.text("reason").into(),
        object.into(),
        obj.text("involvedObject.fieldPath").into(),
        source.into(),
        obj.text("message").trim().into(),
        first.into(),
        count.into(),
        obj.text("metadata.name").into(),
    ]
}
