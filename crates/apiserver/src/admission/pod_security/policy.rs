//! What a namespace's labels ask for.

use std::fmt;

use keelson_machinery::field::{ErrorList, FieldError, Path};
use keelson_machinery::meta;
use serde_json::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "privileged" => Some(Self::Privileged),
            "baseline" => Some(Self::Baseline),
            "restricted" => Some(Self::Restricted),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LevelVersion {
    pub(super) level: Level,
    /// The minor version of v1 whose rules hold; absent for the latest.
    pub(super) version: Option<u32>,
}

impl fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.version {
            Some(minor) => write!(f, "{level}:v1.{minor}"),
            None => write!(f, "{level}:latest"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) enforce: LevelVersion,
    pub(super) audit: LevelVersion,
    pub(super) warn: LevelVersion,
}

impl Policy {
    /// The policy of a namespace and what of its labels is not understood. A bad level is the
    /// strictest to enforce, and none to warn and to audit by.
    pub(super) fn of(namespace: &Value) -> (Self, ErrorList) {
        let mut labels = Labels {
            namespace,
            errors: ErrorList::new(),
        };
        let (enforce, enforce_level) = labels.mode("enforce", Level::Restricted);
        let (audit, _) = labels.mode("audit", Level::Privileged);
        let (mut warn, warn_level) = labels.mode("warn", Level::Privileged);
        // Who enforces without a word on warnings is warned about the same: workloads then tell
        // their authors at once that their pods will be refused.
        if warn_level == Given::Nothing
            && enforce_level == Given::Good
            && enforce.level > warn.level
        {
            warn.level = enforce.level;
            if labels.get("warn-version").is_none() {
                warn.version = enforce.version;
            }
        }
        let policy = Self {
            enforce,
            audit,
            warn,
        };
        (policy, labels.errors)
    }

    pub(super) fn is_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn]
            .iter()
            .all(|at| at.level == Level::Privileged)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Given {
    Nothing,
    Good,
    Bad,
}

struct Labels<'a> {
    namespace: &'a Value,
    errors: ErrorList,
}

impl<'a> Labels<'a> {
    fn get(&self, mode: &str) -> Option<&'a str> {
        meta::label(
            self.namespace,
            &format!("pod-security.kubernetes.io/{mode}"),
        )
    }

    fn mode(&mut self, mode: &str, when_bad: Level) -> (LevelVersion, Given) {
        let (level, given) = match self.get(mode).map(|text| (text, Level::parse(text))) {
            None => (Level::Privileged, Given::Nothing),
            Some((_, Some(level))) => (level, Given::Good),
            Some((text, None)) => {
                let detail = "must be one of privileged, baseline, restricted";
                self.refuse(mode, text, detail);
                (when_bad, Given::Bad)
            }
        };
        let key = format!("{mode}-version");
        let version = match self.get(&key).map(|text| (text, version(text))) {
            None => None,
            Some((_, Some(version))) => version,
            Some((text, None)) => {
                self.refuse(&key, text, "must be \"latest\" or \"v1.x\"");
                None
            }
        };
        (LevelVersion { level, version }, given)
    }

    fn refuse(&mut self, label: &str, value: &str, detail: &str) {
        let path = Path::new("metadata")
            .child("labels")
            .key(&format!("pod-security.kubernetes.io/{label}"));
        self.errors.push(FieldError::invalid(&path, value, detail));
    }
}

/// `latest` is no number; anything but that and `v1.<minor>` is no version.
fn version(text: &str) -> Option<Option<u32>> {
    if text == "latest" {
        return Some(None);
    }
    let minor = text.strip_prefix("v1.")?;
    let plain =
        minor.bytes().all(|b| b.is_ascii_digit()) && (minor == "0" || !minor.starts_with('0'));
    plain.then(|| minor.parse().ok()).flatten().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(labels: &[(&str, &str)]) -> (Policy, usize) {
        let mut namespace = json!({"metadata": {"name": "n"}});
        for (key, value) in labels {
            meta::set_label(
                &mut namespace,
                &format!("pod-security.kubernetes.io/{key}"),
                value,
            );
        }
        let (policy, errors) = Policy::of(&namespace);
        (policy, errors.len())
    }

    #[test]
    fn warnings_follow_what_is_enforced() {
        let (policy, errors) = of(&[("enforce", "restricted"), ("enforce-version", "v1.30")]);
        assert_eq!(
            (policy.warn.to_string().as_str(), errors),
            ("restricted:v1.30", 0)
        );
        let (policy, _) = of(&[("enforce", "restricted"), ("warn", "privileged")]);
        assert_eq!(policy.warn.level, Level::Privileged);
        assert!(of(&[]).0.is_privileged());
    }

    #[test]
    fn a_bad_level_is_the_strictest_to_enforce_and_nothing_to_warn_by() {
        let (policy, errors) = of(&[("enforce", "x"), ("warn", "x"), ("audit-version", "1.2")]);
        assert_eq!(errors, 3);
        assert_eq!(
            (policy.enforce.level, policy.warn.level),
            (Level::Restricted, Level::Privileged)
        );
    }
}
