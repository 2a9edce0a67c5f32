//! Binding, of a pod to its node.

use keelson_machinery::field::ErrorList;
use serde_json::Value;

use crate::check::At;
use crate::kind::Kind;

pub(crate) static BINDING: Kind = Kind {
    group: "",
    resource: "bindings",
    validate,
    ..Kind::GENERIC
};

fn validate(obj: &Value) -> ErrorList {
    let mut e = ErrorList::new();
    let target = At::new(obj, "target");
    let kind = target.at("kind");
    if !matches!(kind.text(), "" | "Node") {
        e.push(kind.not_supported(&["Node", "<empty>"]));
    }
    target.at("name").require(&mut e);
    e
}
