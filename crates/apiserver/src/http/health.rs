//! `/healthz`, `/livez`, `/readyz` with their single checks.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use keelson_machinery::status::Status;

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

    pub(crate) fn is_ready(&self) -> bool {
        self.checks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .all(|check| check.failure.is_none())
    }

    pub(super) fn answer(&self, info: &RequestInfo) -> Result<Response, Status> {
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
                return Err(Status::path_not_found());
            }
        }
        let mut text = String::new();
        let mut failed = false;
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
        if failed {
            text.push_str(&format!("{endpoint} check failed\n"));
            return Ok(respond_text(500, text));
        }
        if info.query.get("verbose").is_none() || !single.is_empty() {
            return Ok(respond_text(200, "ok"));
        }
        text.push_str(&format!("{endpoint} check passed\n"));
        Ok(respond_text(200, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(health: &Health, uri: &str) -> u16 {
        let info = RequestInfo::parse(&http::Method::GET, &uri.parse().unwrap());
        health
            .answer(&info)
            .map_or_else(|s| s.code, |r| r.status().as_u16())
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
