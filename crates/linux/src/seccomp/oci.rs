//! Profiles in the OCI runtime specification's JSON form (`linux.seccomp`).

use std::collections::BTreeMap;

use serde::Deserialize;
use thiserror::Error;

use super::program::{Action, Comparison, Condition, Profile, Rule};
use super::syscalls;

#[derive(Debug, Error)]
pub(super) enum ProfileError {
    #[error("reading the JSON")]
    Json(#[from] serde_json::Error),
    #[error("action {0:?} is not supported")]
    Action(String),
    #[error("operator {0:?} is not known")]
    Operator(String),
    #[error("argument index {0} is above 5")]
    Argument(u64),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OciProfile {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    syscalls: Vec<OciRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OciRule {
    #[serde(default)]
    names: Vec<String>,
    /// The older form with one name.
    name: Option<String>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<OciArgument>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OciArgument {
    index: u64,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

pub(super) fn parse(bytes: &[u8]) -> Result<Profile, ProfileError> {
    let profile: OciProfile = serde_json::from_slice(bytes)?;
    let mut rules: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    for rule in &profile.syscalls {
        let action = action(&rule.action, rule.errno_ret)?;
        let conditions: Vec<Condition> = rule
            .args
            .iter()
            .flatten()
            .map(condition)
            .collect::<Result<_, _>>()?;
        for name in rule.names.iter().chain(&rule.name) {
            // A call that this kernel's architecture does not have needs no rule.
            if let Some(number) = syscalls::number(name) {
                rules.entry(number).or_default().push(Rule {
                    action,
                    conditions: conditions.clone(),
                });
            }
        }
    }
    Ok(Profile {
        default: action(&profile.default_action, profile.default_errno_ret)?,
        rules,
    })
}

fn action(name: &str, errno: Option<u16>) -> Result<Action, ProfileError> {
    let errno_or_eperm = errno.unwrap_or(libc::EPERM as u16);
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_ERRNO" => Action::Errno(errno_or_eperm),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_TRACE" => Action::Trace(errno_or_eperm),
        "SCMP_ACT_LOG" => Action::Log,
        other => return Err(ProfileError::Action(other.to_owned())),
    })
}

fn condition(argument: &OciArgument) -> Result<Condition, ProfileError> {
    let (comparison, value) = match argument.op.as_str() {
        "SCMP_CMP_EQ" => (Comparison::Equal, argument.value),
        "SCMP_CMP_NE" => (Comparison::NotEqual, argument.value),
        "SCMP_CMP_GT" => (Comparison::Greater, argument.value),
        "SCMP_CMP_GE" => (Comparison::GreaterOrEqual, argument.value),
        "SCMP_CMP_LT" => (Comparison::Less, argument.value),
        "SCMP_CMP_LE" => (Comparison::LessOrEqual, argument.value),
        "SCMP_CMP_MASKED_EQ" => (Comparison::MaskedEqual(argument.value), argument.value_two),
        other => return Err(ProfileError::Operator(other.to_owned())),
    };
    let index = u8::try_from(argument.index)
        .ok()
        .filter(|index| *index <= 5);
    let argument = index.ok_or(ProfileError::Argument(argument.index))?;
    Ok(Condition {
        argument,
        comparison,
        value,
    })
}

#[cfg(test)]
mod tests {
    use super::super::program::tests::run;
    use super::*;

    #[test]
    fn a_profile_denies_what_it_names() {
        let json = br#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],
            "syscalls":[{"names":["mkdirat","not_a_call"],"action":"SCMP_ACT_ERRNO","errnoRet":13},
                        {"names":["personality"],"action":"SCMP_ACT_KILL_PROCESS",
                         "args":[{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}]}"#;
        let program = parse(json).unwrap().assemble();
        assert_eq!(run(&program, libc::SYS_mkdirat as u32, [0; 6]), 0x0005_000d);
        assert_eq!(
            run(&program, libc::SYS_personality as u32, [8, 0, 0, 0, 0, 0]),
            0x8000_0000
        );
        assert_eq!(
            run(&program, libc::SYS_personality as u32, [0; 6]),
            0x7fff_0000
        );
    }

    #[test]
    fn unknown_actions_are_refused() {
        assert!(matches!(
            parse(br#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#),
            Err(ProfileError::Action(_))
        ));
        assert!(parse(b"{").is_err());
    }
}
