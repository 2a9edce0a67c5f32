//! `/healthz`, `/livez`, `/readyz` with their single checks.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use keelson_machinery::go;

use crate::request::{RequestInfo, Response, respond_text};

/// A check, and the endpoints that ask it.
pub(crate) struct Row {
    name: &'static str,
    live: bool,
    ready: bool,
}

const fn always(name: &'static str) -> Row {
    Row {
        name,
        live: true,
        ready: true,
    }
}

const fn live(name: &'static str) -> Row {
    Row {
        ready: false,
        ..always(name)
    }
}

const fn ready(name: &'static str) -> Row {
    Row {
        live: false,
        ..always(name)
    }
}

/// Every check by the name that tools and tests look for, in the order in which they are listed.
/// Those called `poststarthook/…` are steps of the start: they fail until they have happened.
pub(crate) const CHECKS: &[Row] = &[
    always("ping"),
    always("log"),
    live("loopback-serving-certificate"),
    always("etcd"),
    ready("etcd-readiness"),
    ready("informer-sync"),
    always("poststarthook/start-apiserver-admission-initializer"),
    always("poststarthook/generic-apiserver-start-informers"),
    always("poststarthook/priority-and-fairness-config-consumer"),
    always("poststarthook/priority-and-fairness-filter"),
    always("poststarthook/storage-object-count-tracker-hook"),
    always("poststarthook/start-apiextensions-informers"),
    always("poststarthook/start-apiextensions-controllers"),
    always("poststarthook/crd-informer-synced"),
    always("poststarthook/start-system-namespaces-controller"),
    always("poststarthook/peer-endpoint-reconciler-controller"),
    always("poststarthook/start-cluster-authentication-info-controller"),
    always("poststarthook/start-kube-apiserver-identity-lease-controller"),
    always("poststarthook/start-kube-apiserver-identity-lease-garbage-collector"),
    always("poststarthook/storage-readiness"),
    always("poststarthook/start-legacy-token-tracking-controller"),
    always("poststarthook/start-service-ip-repair-controllers"),
    always("poststarthook/rbac/bootstrap-roles"),
    always("poststarthook/scheduling/bootstrap-system-priority-classes"),
    always("poststarthook/priority-and-fairness-config-producer"),
    always("poststarthook/bootstrap-controller"),
    always("poststarthook/start-kubernetes-service-cidr-controller"),
    always("poststarthook/start-kube-aggregator-informers"),
    always("poststarthook/apiservice-status-local-available-controller"),
    always("poststarthook/apiservice-status-remote-available-controller"),
    always("poststarthook/apiservice-registration-controller"),
    always("poststarthook/apiservice-wait-for-first-sync"),
    always("poststarthook/apiservice-discovery-controller"),
    always("poststarthook/kube-apiserver-autoregistration"),
    always("autoregister-completion"),
    always("poststarthook/apiservice-openapi-controller"),
    always("poststarthook/apiservice-openapiv3-controller"),
    ready("kms-providers"),
    ready("shutdown"),
];

/// Checks that count only where there is something to check.
const OPTIONAL: [&str; 1] = ["kms-providers"];

/// Named conditions of the server; each is fine or holds why it is not.
pub(crate) struct Health {
    failures: Mutex<BTreeMap<&'static str, Option<String>>>,
}

impl Default for Health {
    /// Nothing has happened yet.
    fn default() -> Self {
        let names = CHECKS.iter().map(|row| row.name);
        let expected = names.filter(|name| *name != "ping" && !OPTIONAL.contains(name));
        let failures = expected.map(|name| (name, Some("not finished".to_owned())));
        Self {
            failures: Mutex::new(failures.chain([("ping", None)]).collect()),
        }
    }
}

/// Probes need no right.
pub(super) fn is_always_allowed(path: &str) -> bool {
    matches!(path, "/healthz" | "/livez" | "/readyz")
}

impl Health {
    fn failures(&self) -> MutexGuard<'_, BTreeMap<&'static str, Option<String>>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Steps of the start that have happened.
    pub(crate) fn done(&self, names: &[&'static str]) {
        for name in names {
            self.set(name, Ok(()));
        }
    }

    /// What a check found just now.
    pub(crate) fn set(&self, name: &'static str, outcome: Result<(), String>) {
        debug_assert!(CHECKS.iter().any(|row| row.name == name), "{name}");
        self.failures().insert(name, outcome.err());
    }

    /// A check that has nothing to look at does not count.
    pub(crate) fn withdraw(&self, name: &'static str) {
        self.failures().remove(name);
    }

    pub(crate) fn is_ready(&self) -> bool {
        let failures = self.failures();
        let mut ready = CHECKS.iter().filter(|row| row.ready);
        ready.all(|row| failures.get(row.name).is_none_or(Option::is_none))
    }

    pub(super) fn answer(&self, info: &RequestInfo) -> Response {
        let path = info.path.trim_matches('/');
        let (endpoint, single) = path.split_once('/').unwrap_or((path, ""));
        let excluded: Vec<&str> = info.query.all("exclude").collect();
        let failures = self.failures();
        let asked = |row: &&Row| match endpoint {
            "readyz" => row.ready,
            _ => row.live,
        };
        let mut selected: Vec<(&str, Option<&String>)> = CHECKS
            .iter()
            .filter(asked)
            .filter_map(|row| Some((row.name, failures.get(row.name)?.as_ref())))
            .collect();
        let all: Vec<&str> = selected.iter().map(|(name, _)| *name).collect();
        if !single.is_empty() {
            selected.retain(|(name, _)| *name == single);
            if selected.is_empty() {
                return no_such_path();
            }
        }
        let mut text = String::new();
        let mut failed = false;
        let mut unmatched = Vec::new();
        for (name, failure) in selected {
            if excluded.contains(&name) {
                text.push_str(&format!("[+]{name} excluded: ok\n"));
            } else if let Some(reason) = failure {
                tracing::debug!(check = name, reason, "health check failed");
                failed = true;
                text.push_str(&format!("[-]{name} failed: reason withheld\n"));
            } else {
                text.push_str(&format!("[+]{name} ok\n"));
            }
        }
        for unknown in excluded.iter().filter(|name| !all.contains(name)) {
            tracing::warn!(check = unknown, "no such health check to exclude");
            unmatched.push(go::quote(unknown));
        }
        if !unmatched.is_empty() && single.is_empty() {
            let all = unmatched.join(",");
            text.push_str(&format!(
                "warn: some health checks cannot be excluded: no matches for {all}\n"
            ));
        }
        if failed {
            text.push_str(&format!("{endpoint} check failed\n"));
            return unsniffed(respond_text(500, text));
        }
        if !single.is_empty() {
            return respond_text(200, "ok");
        }
        if info.query.get("verbose").is_none() {
            return unsniffed(respond_text(200, "ok"));
        }
        text.push_str(&format!("{endpoint} check passed\n"));
        unsniffed(respond_text(200, text))
    }
}

/// Text that a browser must not take for anything else.
fn unsniffed(mut response: Response) -> Response {
    response.headers_mut().insert(
        http::header::X_CONTENT_TYPE_OPTIONS,
        http::HeaderValue::from_static("nosniff"),
    );
    response
}

/// The answer for paths that nothing has registered.
pub(super) fn no_such_path() -> Response {
    unsniffed(respond_text(404, "404 page not found\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(health: &Health, uri: &str) -> u16 {
        let info = RequestInfo::parse(&http::Method::GET, &uri.parse().unwrap());
        health.answer(&info).status().as_u16()
    }

    #[test]
    fn a_step_that_has_not_happened_is_told() {
        let health = Health::default();
        let step = "poststarthook/rbac/bootstrap-roles";
        let others = CHECKS.iter().map(|row| row.name);
        health.done(&others.filter(|name| *name != step).collect::<Vec<_>>());
        for endpoint in ["/livez", "/readyz", "/healthz"] {
            assert_eq!(ask(&health, endpoint), 500);
            assert_eq!(ask(&health, &format!("{endpoint}?exclude={step}")), 200);
            assert_eq!(ask(&health, &format!("{endpoint}/{step}")), 500);
        }
        assert_eq!(ask(&health, "/readyz/unknown"), 404);
        assert!(!health.is_ready());
        health.done(&[step]);
        assert_eq!(ask(&health, "/readyz?verbose"), 200);
        health.set("shutdown", Err("stopping".to_owned()));
        assert_eq!(
            (ask(&health, "/readyz"), ask(&health, "/livez")),
            (500, 200)
        );
        assert!(!health.is_ready());
    }

    #[test]
    fn every_check_is_asked_for_once() {
        let mut names: Vec<&str> = CHECKS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CHECKS.len());
    }
}
