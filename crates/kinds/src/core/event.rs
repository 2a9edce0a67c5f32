//! Event, under both groups that serve it. What is stored is the core group's form.

use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::validation;
use serde_json::Value;

use crate::cell;
use crate::check::{self, At, IMMUTABLE, same};
use crate::kind::{Column, Kind};
use crate::tree::Tree;

pub(crate) static EVENT: Kind = EVENTS;

pub(crate) static EVENT_OF_ITS_OWN_GROUP: Kind = Kind {
    group: "events.k8s.io",
    validate: validate_new,
    validate_update: |new, old, _| validate_changed(new, old),
    ..EVENTS
};

const EVENTS: Kind = Kind {
    group: "",
    resource: "events",
    validate: |obj| common(obj, "reportingComponent"),
    validate_update: |new, _, _| common(new, "reportingComponent"),
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
        Column {
            format: "name",
            ..Column::wide("Name")
        },
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
    validate_name: check::name_is_path_segment,
    nameless_table: true,
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

/// What both groups ask for. Events of the older recorder carry no eventTime and are held to less.
fn common(obj: &Value, controller: &str) -> ErrorList {
    let mut e = ErrorList::new();
    let (own, involved) = (
        obj.text("metadata.namespace"),
        obj.text("involvedObject.namespace"),
    );
    let namespace = Path::new("involvedObject.namespace");
    let timed = obj.has("eventTime");
    let fits = match (involved, timed) {
        ("", true) => matches!(own, "default" | "kube-system"),
        ("", false) => matches!(own, "" | "default"),
        (_, true) => true,
        (involved, false) => own == involved,
    };
    if !fits {
        e.push(FieldError::invalid(
            &namespace,
            involved,
            "does not match event.namespace",
        ));
    }
    if !timed {
        return e;
    }
    let by = At {
        value: obj.at("reportingComponent"),
        path: Path::new(controller),
    };
    by.require(&mut e);
    by.conforms(&mut e, validation::is_qualified_name);
    for (field, max, required) in [
        ("reportingInstance", 128, true),
        ("action", 128, true),
        ("reason", 128, true),
        ("message", 1024, false),
    ] {
        let at = At::new(obj, field);
        if required {
            at.require(&mut e);
        }
        if at.text().len() > max {
            e.push(FieldError::invalid(
                &at.path,
                "",
                format!("can have at most {max} characters"),
            ));
        }
    }
    e
}

/// The stricter rules of the group of its own.
fn validate_new(obj: &Value) -> ErrorList {
    let mut e = common(obj, "reportingController");
    series(obj, &mut e);
    if !obj.has("eventTime") {
        e.push(FieldError::required(&Path::new("eventTime"), ""));
    }
    let kind = obj.text("type");
    if !matches!(kind, "Normal" | "Warning") {
        e.push(FieldError::invalid(
            &Path::new("type"),
            "",
            format!("has invalid value: {kind}"),
        ));
    }
    let source = !obj.text("source.component").is_empty() || !obj.text("source.host").is_empty();
    for (field, set) in [
        ("firstTimestamp", obj.has("firstTimestamp")),
        ("lastTimestamp", obj.has("lastTimestamp")),
        ("count", obj.num("count") != 0),
        ("source", source),
    ] {
        if set {
            e.push(FieldError::invalid(
                &Path::new(field),
                "",
                "needs to be unset",
            ));
        }
    }
    e
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

/// Only the series goes on; all else was said when the event was made.
fn validate_changed(new: &Value, old: &Value) -> ErrorList {
    const BY: &str = "reportingController";
    // What is wrong with its text is told after what changed.
    let (last, mut e): (ErrorList, ErrorList) = common(new, BY)
        .into_iter()
        .partition(|error| error.field == BY);
    if !same(new.at("series"), old.at("series")) {
        series(new, &mut e);
    }
    for (field, shown) in [
        ("involvedObject", "involvedObject"),
        ("reason", "reason"),
        ("message", "message"),
        ("source", "source"),
        ("firstTimestamp", "firstTimestamp"),
        ("lastTimestamp", "lastTimestamp"),
        ("count", "count"),
        ("type", "type"),
        ("eventTime", "eventTime"),
        ("action", "action"),
        ("related", "related"),
        ("reportingComponent", "reportingController"),
        ("reportingInstance", "reportingInstance"),
    ] {
        if !same(new.at(field), old.at(field)) {
            let now = match (new.at(field), old.at(field)) {
                // A text that is gone is an empty one, a time is none.
                (Value::Null, Value::String(_)) if !shown.to_lowercase().contains("time") => {
                    Value::from("")
                }
                (now, _) => now.clone(),
            };
            e.push(FieldError::invalid(&Path::new(shown), now, IMMUTABLE));
        }
    }
    e.extend(last);
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
    let first_of = |paths: [&str; 2]| {
        paths
            .map(|p| obj.text(p))
            .into_iter()
            .find(|t| !t.is_empty())
            .unwrap_or("")
    };
    let component = first_of(["source.component", "reportingComponent"]);
    let host = first_of(["source.host", "reportingInstance"]);
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
