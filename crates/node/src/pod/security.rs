//! Security contexts: the container's over the pod's, in the runtime's words.

use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile as ApiSeccomp};
use keelson_ports::{ImageUser, SeccompProfile, SecurityContext};
use thiserror::Error;

use super::spec;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum SecurityError {
    #[error("container has runAsNonRoot and image will run as root{0}")]
    ImageIsRoot(String),
    #[error("container's runAsUser breaks non-root policy{0}")]
    UserIsRoot(String),
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({0}), cannot verify user is non-root{1}"
    )]
    UserIsName(String, String),
    #[error("seccomp profile of type Localhost needs localhostProfile")]
    NoLocalhostProfile,
    #[error("unknown seccomp profile type {0}")]
    UnknownSeccomp(String),
}

/// What the image and the node contribute.
pub(crate) struct SecurityInput<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) container: &'a Container,
    pub(crate) image_user: &'a ImageUser,
    /// Directory of local seccomp profiles.
    pub(crate) seccomp_root: &'a Path,
    /// Groups that volumes ask for.
    pub(crate) extra_groups: &'a [i64],
}

pub(crate) fn merge(input: &SecurityInput<'_>) -> Result<SecurityContext, SecurityError> {
    let pod_level = spec(input.pod).security_context.clone().unwrap_or_default();
    let own = input.container.security_context.clone().unwrap_or_default();
    let run_as_user = own.run_as_user.or(pod_level.run_as_user);
    let run_as_non_root = own
        .run_as_non_root
        .or(pod_level.run_as_non_root)
        .unwrap_or(false);
    if run_as_non_root {
        verify_non_root(input, run_as_user)?;
    }
    let (run_as_user, run_as_username) = match (run_as_user, input.image_user) {
        (Some(user), _) => (Some(user), None),
        (None, ImageUser::Id(user)) => (Some(*user), None),
        (None, ImageUser::Name(user)) => (None, Some(user.clone())),
        (None, ImageUser::Unset) => (None, None),
    };
    let mut supplemental_groups = pod_level.supplemental_groups.clone().unwrap_or_default();
    supplemental_groups.extend(pod_level.fs_group);
    supplemental_groups.extend_from_slice(input.extra_groups);
    supplemental_groups.sort_unstable();
    supplemental_groups.dedup();
    let privileged = own.privileged.unwrap_or(false);
    let capabilities = own.capabilities.unwrap_or_default();
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked");
    Ok(SecurityContext {
        privileged,
        run_as_user,
        run_as_group: own.run_as_group.or(pod_level.run_as_group),
        run_as_username,
        supplemental_groups,
        supplemental_groups_strict: pod_level.supplemental_groups_policy.as_deref()
            == Some("Strict"),
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        // A privileged container may always gain privileges; the API forbids saying otherwise.
        no_new_privs: own.allow_privilege_escalation == Some(false),
        seccomp: if privileged {
            SeccompProfile::Unconfined
        } else {
            seccomp(
                own.seccomp_profile
                    .as_ref()
                    .or(pod_level.seccomp_profile.as_ref()),
                input.seccomp_root,
            )?
        },
        masked_paths: unmasked.then(Vec::new),
        readonly_paths: unmasked.then(Vec::new),
        target_container: None,
    })
}

fn verify_non_root(
    input: &SecurityInput<'_>,
    run_as_user: Option<i64>,
) -> Result<(), SecurityError> {
    let place = || {
        format!(
            " (pod: \"{}_{}({})\", container: {})",
            super::name(input.pod),
            super::namespace(input.pod),
            super::uid(input.pod),
            input.container.name
        )
    };
    match (run_as_user, input.image_user) {
        (Some(0), _) => Err(SecurityError::UserIsRoot(place())),
        (Some(_), _) => Ok(()),
        (None, ImageUser::Unset | ImageUser::Id(0)) => Err(SecurityError::ImageIsRoot(place())),
        (None, ImageUser::Id(_)) => Ok(()),
        (None, ImageUser::Name(name)) => Err(SecurityError::UserIsName(name.clone(), place())),
    }
}

fn seccomp(profile: Option<&ApiSeccomp>, root: &Path) -> Result<SeccompProfile, SecurityError> {
    let Some(profile) = profile else {
        return Ok(SeccompProfile::Unconfined);
    };
    match profile.type_.as_str() {
        "Unconfined" | "" => Ok(SeccompProfile::Unconfined),
        "RuntimeDefault" => Ok(SeccompProfile::RuntimeDefault),
        "Localhost" => profile
            .localhost_profile
            .as_deref()
            .filter(|path| {
                !path.is_empty()
                    && !path.split('/').any(|part| part == "..")
                    && !path.starts_with('/')
            })
            .map(|path| SeccompProfile::Localhost(root.join(path)))
            .ok_or(SecurityError::NoLocalhostProfile),
        other => Err(SecurityError::UnknownSeccomp(other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn run(
        pod_level: serde_json::Value,
        own: serde_json::Value,
        user: ImageUser,
    ) -> Result<SecurityContext, SecurityError> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": pod_level, "containers": [{"name": "c", "securityContext": own}]}}))
        .unwrap();
        let container = super::super::regular_containers(&pod)[0].clone();
        merge(&SecurityInput {
            pod: &pod,
            container: &container,
            image_user: &user,
            seccomp_root: Path::new("/seccomp"),
            extra_groups: &[],
        })
    }

    #[test]
    fn the_container_wins_over_the_pod() {
        let merged = run(
            json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 9, "supplementalGroups": [7, 9], "seccompProfile": {"type": "RuntimeDefault"}}),
            json!({"runAsUser": 5, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}),
            ImageUser::Name("www".into()),
        )
        .unwrap();
        assert_eq!(
            (merged.run_as_user, merged.run_as_group),
            (Some(5), Some(2))
        );
        assert_eq!(merged.supplemental_groups, [7, 9]);
        assert!(merged.no_new_privs);
        assert_eq!(merged.drop_capabilities, ["ALL"]);
        assert!(matches!(merged.seccomp, SeccompProfile::RuntimeDefault));
    }

    #[test]
    fn non_root_is_verified() {
        let non_root = json!({"runAsNonRoot": true});
        let message = run(non_root.clone(), json!({}), ImageUser::Unset)
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with("container has runAsNonRoot and image will run as root"),
            "{message}"
        );
        assert!(
            run(non_root.clone(), json!({"runAsUser": 0}), ImageUser::Id(5))
                .unwrap_err()
                .to_string()
                .contains("breaks non-root policy")
        );
        assert!(
            run(non_root.clone(), json!({}), ImageUser::Name("x".into()))
                .unwrap_err()
                .to_string()
                .contains("non-numeric user (x)")
        );
        assert!(run(non_root.clone(), json!({}), ImageUser::Id(5)).is_ok());
        assert!(run(non_root, json!({"runAsNonRoot": false}), ImageUser::Unset).is_ok());
    }

    #[test]
    fn local_profiles_stay_below_their_directory() {
        let profile =
            |path: &str| json!({"seccompProfile": {"type": "Localhost", "localhostProfile": path}});
        assert!(run(json!({}), profile("../x"), ImageUser::Unset).is_err());
        assert!(
            matches!(run(json!({}), profile("a/b.json"), ImageUser::Unset).unwrap().seccomp,
            SeccompProfile::Localhost(path) if path == Path::new("/seccomp/a/b.json"))
        );
    }
}
