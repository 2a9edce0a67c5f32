//! Namespace.

use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::validation;
use serde_json::{Value, json};

use crate::cell;
use crate::check::{self, At};
use crate::kind::{Column, Kind, UpdateContext};
use crate::rules;
use crate::tree::{Tree, TreeMut};

pub(crate) static NAMESPACE: Kind = Kind {
    group: "",
    resource: "namespaces",
    default,
    prepare_create,
    validate: |obj| finalizers(obj, false),
    prepare_update,
    validate_update,
    columns: &[Column::text("Status"), Column::AGE],
    cells: |obj, now| vec![obj.text("status.phase").into(), cell::age(obj, now)],
    selectable: |obj| {
        vec![
            ("status.phase", obj.text("status.phase").to_owned()),
            ("name", obj.text("metadata.name").to_owned()),
        ]
    },
    selectable_names: &["status.phase", "name"],
    validate_name: check::name_is_dns1123_label,
    reset_fields: &[
        ("", &["status"]),
        ("status", &["spec"]),
        ("finalize", &["status"]),
    ],
    ..Kind::GENERIC
};

fn default(obj: &mut Value) {
    label_with_name(obj);
    obj.fill_text("status.phase", "Active");
}

fn label_with_name(obj: &mut Value) {
    let name = obj.text("metadata.name").to_owned();
    if name.is_empty() {
        return;
    }
    if let Some(labels) = obj.object("metadata.labels") {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
    }
}

fn prepare_create(obj: &mut Value) {
    // A generated name is not there yet when defaults are filled.
    label_with_name(obj);
    obj.put("status", json!({"phase": "Active"}));
    if let Some(spec) = obj.object("spec") {
        let list = spec.entry("finalizers").or_insert_with(|| json!([]));
        if let Some(list) = list
            .as_array_mut()
            .filter(|l| !l.iter().any(|f| f == "kubernetes"))
        {
            list.push("kubernetes".into());
        }
    }
}

fn prepare_update(new: &mut Value, old: &Value, ctx: &UpdateContext) {
    match ctx.subresource {
        "finalize" => new.keep("status", old),
        "" => {
            new.keep("status", old);
            new.keep("spec.finalizers", old);
        }
        _ => rules::isolate_status(new, old, ctx),
    }
}

fn finalizers(obj: &Value, indexed: bool) -> ErrorList {
    let mut e = ErrorList::new();
    let list = At::new(obj, "spec").at("finalizers");
    for finalizer in list.each() {
        let path = if indexed { &finalizer.path } else { &list.path };
        let text = finalizer.text();
        e.extend(
            validation::is_qualified_name(text)
                .into_iter()
                .map(|m| FieldError::invalid(path, text, m)),
        );
        if !text.contains('/') && !matches!(text, "kubernetes" | "orphan" | "foregroundDeletion") {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            e.push(FieldError::invalid(path, text, detail));
        }
    }
    e
}

fn validate_update(new: &Value, _old: &Value, ctx: &UpdateContext) -> ErrorList {
    match ctx.subresource {
        "finalize" => finalizers(new, true),
        "status" => {
            let deleted = new.has("metadata.deletionTimestamp");
            let (expected, is) = if deleted {
                ("Terminating", "not ")
            } else {
                ("Active", "")
            };
            let phase = new.text("status.phase");
            if phase == expected {
                return ErrorList::new();
            }
            let detail = format!("may only be '{expected}' if `deletionTimestamp` is {is}empty");
            vec![FieldError::invalid(
                &Path::new("status.Phase"),
                phase,
                detail,
            )]
        }
        _ => ErrorList::new(),
    }
}
