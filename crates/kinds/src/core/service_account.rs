//! ServiceAccount.

use serde_json::{Value, json};

use crate::check::At;
use crate::kind::Kind;
use crate::tree::{Tree, TreeMut};

const MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";

pub(crate) static SERVICE_ACCOUNT: Kind = Kind {
    group: "",
    resource: "serviceaccounts",
    prepare_create: names_of_secrets,
    prepare_update: |new, _, _| names_of_secrets(new),
    warnings: |new, old| {
        let annotations = |obj| At::new(obj, "metadata").at("annotations");
        let before = old.is_some_and(|old| annotations(old).has_key(MOUNTABLE));
        if before || !annotations(new).has_key(MOUNTABLE) {
            return Vec::new();
        }
        vec![format!(
            "metadata.annotations[{MOUNTABLE}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"
        )]
    },
    ..Kind::GENERIC
};

/// Of a reference to a secret the name alone is kept.
fn names_of_secrets(obj: &mut Value) {
    for secret in obj.list_mut("secrets") {
        *secret = match secret.text("name") {
            "" => json!({}),
            name => json!({"name": name}),
        };
    }
}
