//! `/healthz`, `/livez`, `/readyz` with their single checks.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use keelson_machinery::go;

use crate::request::{RequestInfo, Response, respond_text};

/// Named conditions of the server; each is fine or holds why it is not.
#[derive(Default)]
pub(crate) struct Health {
    checks: Mutex<BTreeMap<&'static str, Check>>,
}

struct Check {
    failure: Option<String>,
    /// Whether the check counts for liveness too.
    live: bool,
}

/// Probes need no right.
pub(super) fn is_always_allowed(path: &str) -> bool {
    matches!(path, "/healthz" | "/livez" | "/readyz")
}

impl Health {
    /// A start-up step that has to happen before the server is ready.
    pub(crate) fn expect(&self, name: &'static str) {
        self.set(name, Some("not finished".to_owned()), false);
    }

    pub(crate) fn done(&self, name: &'static str) {
        self.set(name, None, false);
    }

    pub(crate) fn set(&self, name: &'static str, failure: Option<String>, live: bool) {
        self.checks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name, Check { failure, live });
    }

    /// Takes over a check that was just made; one that is gone no longer counts.
    pub(crate) fn observe(&self, name: &'static str, outcome: Option<Result<(), String>>) {
        match outcome {
            Some(outcome) => self.set(name, outcome.err(), false),
            None => {
                let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
                checks.remove(name);
            }
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.checks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .all(|check| check.failure.is_none())
    }

    pub(super) fn answer(&self, info: &RequestInfo) -> Response {
        let path = info.path.trim_matches('/');
        let (endpoint, single) = path.split_once('/').unwrap_or((path, ""));
        let excluded: Vec<&str> = info.query.all("exclude").collect();
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut selected: Vec<(&str, Option<&String>)> = vec![("ping", None)];
        selected.extend(
            checks
                .iter()
                .filter(|(_, check)| endpoint == "readyz" || endpoint == "healthz" || check.live)
                .map(|(name, check)| (*name, check.failure.as_ref())),
        );
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
        for unknown in excluded
            .iter()
            .filter(|name| **name != "ping" && !checks.contains_key(**name))
        {
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
    fn readiness_waits_for_steps_that_liveness_does_not_know() {
        let health = Health::default();
        health.expect("poststarthook/rbac/bootstrap-roles");
        assert_eq!(ask(&health, "/livez"), 200);
        assert_eq!(ask(&health, "/readyz"), 500);
        assert_eq!(
            ask(
                &health,
                "/readyz?exclude=poststarthook/rbac/bootstrap-roles"
            ),
            200
        );
        assert_eq!(
            ask(&health, "/readyz/poststarthook/rbac/bootstrap-roles"),
            500
        );
        assert_eq!(ask(&health, "/readyz/unknown"), 404);
        health.done("poststarthook/rbac/bootstrap-roles");
        assert_eq!(ask(&health, "/readyz?verbose"), 200);
    }
}
