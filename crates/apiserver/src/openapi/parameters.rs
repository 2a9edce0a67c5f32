//! Parameters of operations. Where `parameters.json` has one under a name with a digest behind it,
//! the v2 document writes it once and refers to it.

use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use super::Dialect;

const WORDS: &str = include_str!("parameters.json");

/// The keys of `parameters.json` that operations refer to, in the order of their names.
pub(super) const LIST: &[&str] = &[
    "allowWatchBookmarks-HC2hJt-J",
    "continue-QfD61s0i",
    "fieldSelector-xIcQKXFG",
    "labelSelector-5Zw57w4C",
    "limit-1NfNmdNH",
    RESOURCE_VERSION,
    "resourceVersionMatch-t8XhRHeC",
    "sendInitialEvents-rLXlEK_k",
    "shardSelector-Kgyki_3_",
    "timeoutSeconds-yvYezaOC",
    "watch-XNNPZGbK",
];
pub(super) const DELETE_COLLECTION: &[&str] = &[
    "continue-QfD61s0i",
    "dryRun",
    "fieldSelector-xIcQKXFG",
    "gracePeriodSeconds--K5HaBOS",
    "ignoreStoreReadErrorWithClusterBreakingPotential-QbNkfIqj",
    "labelSelector-5Zw57w4C",
    "limit-1NfNmdNH",
    "orphanDependents-uRB25kX5",
    "propagationPolicy-6jk3prlO",
    RESOURCE_VERSION,
    "resourceVersionMatch-t8XhRHeC",
    "sendInitialEvents-rLXlEK_k",
    "shardSelector-Kgyki_3_",
    "timeoutSeconds-yvYezaOC",
];
pub(super) const DELETE: &[&str] = &[
    "dryRun",
    "gracePeriodSeconds--K5HaBOS",
    "ignoreStoreReadErrorWithClusterBreakingPotential-QbNkfIqj",
    "orphanDependents-uRB25kX5",
    "propagationPolicy-6jk3prlO",
];
pub(super) const WRITE: &[&str] = &["dryRun", "fieldManager-Qy4HdaTW", "fieldValidation"];
pub(super) const PATCH: &[&str] = &[
    "dryRun",
    "fieldManager-7c6nTn1T",
    "fieldValidation",
    "force-tOGGb0Yi",
];
pub(super) const RESOURCE_VERSION: &str = "resourceVersion-5WAnf1kx";
pub(super) const NAMESPACE: &str = "namespace-vgWSWtn3";
pub(super) const PRETTY: &str = "pretty-tJGM1-ng";
pub(super) const DELETE_BODY: &str = "body-2Y1dVQaQ";
pub(super) const PATCH_BODY: &str = "body-78PwaGsr";
/// The rest of a path behind a proxy.
pub(super) const PROXY_PATH: &str = "path-z6Ciiujn";

/// What a subresource takes that is not an object.
pub(super) fn of_subresource(kind: &str, name: &str) -> &'static [&'static str] {
    match (kind, name) {
        ("PodAttachOptions", _) => &[
            "container-_Q-EJ3nR",
            "stderr-26jJhFUR",
            "stdin-sEFnN3IS",
            "stdout-005YMKE6",
            "tty-g7MlET_l",
        ],
        ("PodExecOptions", _) => &[
            "command-Py3eQybp",
            "container-i5dOmRiM",
            "stderr-W_1TNlWc",
            "stdin-PSzNhyUC",
            "stdout--EZLRwV1",
            "tty-s0flW37O",
        ],
        ("PodPortForwardOptions", _) => &["ports-91KROJmm"],
        ("PodProxyOptions", _) => &["path-oPbzgLUj"],
        ("ServiceProxyOptions", _) => &["path-QCf0eosM"],
        ("NodeProxyOptions", _) => &["path-rFDtV0x9"],
        ("Pod", "log") => &[
            "container-1GeXxFDC",
            "follow-9OIXh_2R",
            "insecureSkipTLSVerifyBackend-gM00jVbe",
            "limitBytes-zwd1RXuc",
            "previous-1jxDPu3y",
            "sinceSeconds-vE2NLdnP",
            "stream-l-48cgXv",
            "tailLines-9xQLWHMV",
            "timestamps-c17fW1w_",
        ],
        _ => &[],
    }
}

fn all() -> &'static Map<String, Value> {
    static READ: OnceLock<Map<String, Value>> = OnceLock::new();
    READ.get_or_init(|| serde_json::from_str(WORDS).unwrap_or_default())
}

/// Those that the v2 document refers to.
pub(super) fn shared() -> Map<String, Value> {
    let shared = all().iter().filter(|(key, _)| is_shared(key));
    shared.map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn is_shared(key: &str) -> bool {
    key.contains('-')
}

/// A parameter of an operation or a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parameter<'a> {
    /// By its key in `parameters.json`.
    Known(&'a str),
    /// The name in the path of an object of this kind.
    Name(&'a str),
}

impl Parameter<'_> {
    /// By which parameters stand in a document.
    pub(super) fn sort_key(&self) -> (&str, &str) {
        match self {
            Self::Known(key) => {
                let of = |field| all().get(*key).and_then(|p| p[field].as_str());
                (of("name").unwrap_or_default(), of("in").unwrap_or_default())
            }
            Self::Name(_) => ("name", "path"),
        }
    }

    pub(super) fn render(&self, dialect: Dialect) -> Value {
        let whole = match self {
            Self::Known(key) if dialect == Dialect::V2 && is_shared(key) => {
                return json!({"$ref": format!("#/parameters/{key}")});
            }
            Self::Known(key) => all().get(*key).cloned().unwrap_or_default(),
            Self::Name(kind) => json!({
                "name": "name", "in": "path", "type": "string", "uniqueItems": true, "required": true,
                "description": format!("name of the {kind}"),
            }),
        };
        match dialect {
            Dialect::V2 => whole,
            Dialect::V3 => with_schema(whole),
        }
    }
}

/// v3 says what values there are in a schema of its own.
fn with_schema(mut parameter: Value) -> Value {
    if let Some(fields) = parameter.as_object_mut() {
        let mut schema = Map::new();
        for name in ["type", "uniqueItems"] {
            schema.extend(fields.remove(name).map(|value| (name.to_owned(), value)));
        }
        fields.insert("schema".to_owned(), Value::Object(schema));
    }
    parameter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_there() {
        let subresources = [
            ("PodAttachOptions", ""),
            ("PodExecOptions", ""),
            ("PodPortForwardOptions", ""),
            ("PodProxyOptions", ""),
            ("ServiceProxyOptions", ""),
            ("NodeProxyOptions", ""),
            ("Pod", "log"),
        ];
        let mut keys = vec![NAMESPACE, PRETTY, DELETE_BODY, PATCH_BODY, PROXY_PATH];
        for list in [LIST, DELETE_COLLECTION, DELETE, WRITE, PATCH] {
            keys.extend(list);
        }
        for (kind, name) in subresources {
            keys.extend(of_subresource(kind, name));
        }
        for key in &keys {
            assert!(all().contains_key(*key), "{key}");
        }
        assert!(all().keys().all(|key| keys.contains(&key.as_str())));
    }
}
