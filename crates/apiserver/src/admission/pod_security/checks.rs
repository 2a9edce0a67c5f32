//! The table of checks: which hold at which level, since which version, and what they replace.

use serde_json::Value;

use super::Violation;
use super::policy::{Level, LevelVersion};
use super::{baseline, restricted};

type Check = fn(&Value) -> Option<Violation>;

struct Row {
    id: &'static str,
    level: Level,
    /// A baseline check that this restricted one takes the place of, from its first version on.
    replaces: &'static str,
    /// Minor version of v1 since when each form holds, rising.
    forms: &'static [(u32, Check)],
}

const fn baseline(id: &'static str, forms: &'static [(u32, Check)]) -> Row {
    Row {
        id,
        level: Level::Baseline,
        replaces: "",
        forms,
    }
}

const fn restricted(
    id: &'static str,
    replaces: &'static str,
    forms: &'static [(u32, Check)],
) -> Row {
    Row {
        id,
        level: Level::Restricted,
        replaces,
        forms,
    }
}

/// In the order violations are told: by level, then by id.
const CHECKS: &[Row] = &[
    baseline("appArmorProfile", &[(0, baseline::app_armor)]),
    baseline("capabilities_baseline", &[(0, baseline::capabilities)]),
    baseline("hostNamespaces", &[(0, baseline::host_namespaces)]),
    baseline("hostPathVolumes", &[(0, baseline::host_path_volumes)]),
    baseline("hostPorts", &[(0, baseline::host_ports)]),
    baseline("hostProbesAndHostLifecycle", &[(34, baseline::host_probes)]),
    baseline("privileged", &[(0, baseline::privileged)]),
    baseline(
        "procMount",
        &[
            (0, baseline::proc_mount),
            (35, baseline::proc_mount_or_own_users),
        ],
    ),
    baseline(
        "seLinuxOptions",
        &[(0, baseline::se_linux_v1_0), (31, baseline::se_linux_v1_31)],
    ),
    baseline(
        "seccompProfile_baseline",
        &[(0, baseline::seccomp_v1_0), (19, baseline::seccomp_v1_19)],
    ),
    baseline(
        "sysctls",
        &[
            (0, baseline::sysctls_v1_0),
            (27, baseline::sysctls_v1_27),
            (29, baseline::sysctls_v1_29),
            (32, baseline::sysctls_v1_32),
        ],
    ),
    baseline("windowsHostProcess", &[(0, baseline::windows_host_process)]),
    restricted(
        "allowPrivilegeEscalation",
        "",
        &[
            (8, restricted::privilege_escalation),
            (25, restricted::privilege_escalation_v1_25),
        ],
    ),
    restricted(
        "capabilities_restricted",
        "capabilities_baseline",
        &[
            (22, restricted::capabilities),
            (25, restricted::capabilities_v1_25),
        ],
    ),
    restricted(
        "procMount_restricted",
        "procMount",
        &[(35, baseline::proc_mount)],
    ),
    restricted(
        "restrictedVolumes",
        "hostPathVolumes",
        &[(0, restricted::volumes)],
    ),
    restricted(
        "runAsNonRoot",
        "",
        &[
            (0, restricted::run_as_non_root),
            (35, restricted::run_as_non_root_v1_35),
        ],
    ),
    restricted(
        "runAsUser",
        "",
        &[
            (23, restricted::run_as_user),
            (35, restricted::run_as_user_v1_35),
        ],
    ),
    restricted(
        "seccompProfile_restricted",
        "seccompProfile_baseline",
        &[(19, restricted::seccomp), (25, restricted::seccomp_v1_25)],
    ),
];

/// The form of a check that holds at a version.
fn form(row: &Row, minor: u32) -> Option<Check> {
    let known = row.forms.iter().rev().find(|(since, _)| *since <= minor);
    known.map(|(_, check)| *check)
}

/// What of a level a pod breaks.
pub(super) fn violations(at: LevelVersion, pod: &Value) -> Vec<Violation> {
    let minor = at.version.unwrap_or(u32::MAX);
    let replaced = |id: &str| {
        at.level == Level::Restricted
            && CHECKS
                .iter()
                .any(|row| row.replaces == id && form(row, minor).is_some())
    };
    CHECKS
        .iter()
        .filter(|row| row.level <= at.level && !replaced(row.id))
        .filter_map(|row| form(row, minor)?(pod))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_are_in_the_order_they_are_told() {
        let order = |row: &Row| (row.level, row.id);
        assert!(
            CHECKS
                .windows(2)
                .all(|pair| order(&pair[0]) < order(&pair[1]))
        );
        for row in CHECKS {
            assert!(
                row.forms.windows(2).all(|pair| pair[0].0 < pair[1].0),
                "{}",
                row.id
            );
        }
    }

    #[test]
    fn a_version_knows_what_was_a_rule_then() {
        let pod = json!({"spec": {
            "securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem", "value": "1"}], "runAsUser": 0},
            "containers": [{"name": "c", "livenessProbe": {"httpGet": {"host": "10.0.0.1"}}}],
        }});
        let reasons = |level, minor| -> Vec<String> {
            let at = LevelVersion {
                level,
                version: Some(minor),
            };
            violations(at, &pod).into_iter().map(|v| v.reason).collect()
        };
        assert_eq!(reasons(Level::Baseline, 31), ["forbidden sysctls"]);
        assert_eq!(reasons(Level::Baseline, 34), ["probe or lifecycle host"]);
        assert_eq!(
            reasons(Level::Restricted, 7),
            ["forbidden sysctls", "runAsNonRoot != true"]
        );
        assert!(reasons(Level::Restricted, 23).contains(&"runAsUser=0".to_owned()));
        assert_eq!(reasons(Level::Privileged, 34), Vec::<String>::new());
    }

    #[test]
    fn users_of_their_own_relax_the_restricted_level_since_v1_35() {
        let pod = json!({"spec": {"hostUsers": false, "securityContext": {"runAsUser": 0},
            "containers": [{"name": "c", "securityContext": {"procMount": "Unmasked"}}]}});
        let has = |level, minor, reason: &str| {
            let at = LevelVersion {
                level,
                version: Some(minor),
            };
            violations(at, &pod).iter().any(|v| v.reason == reason)
        };
        assert!(
            has(Level::Restricted, 34, "runAsUser=0") && !has(Level::Restricted, 35, "runAsUser=0")
        );
        assert!(!has(Level::Baseline, 35, "procMount") && has(Level::Restricted, 35, "procMount"));
    }
}
