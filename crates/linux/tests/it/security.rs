use keelson_ports::*;

use crate::machine::{joined, with_machine};

fn field<'a>(text: &'a str, name: &str) -> &'a str {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap_or_default()
        .trim()
}

#[test]
fn a_plain_container_is_confined() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("plain").await;
        let mut config = joined(
            "main",
            "cat /proc/self/status; mount -t tmpfs none /tmp; unshare -m true; echo 1 > /proc/sys/kernel/domainname; \
             cat /proc/kcore | wc -c; ls /sys/firmware | wc -l; cat /proc/1/oom_score_adj; touch /dev/shm/x && echo shm; ls /dev",
        );
        config.security.seccomp = SeccompProfile::RuntimeDefault;
        config.oom_score_adj = 500;
        let (_, text) = machine.run(&sandbox, config).await;
        assert_eq!(field(&text, "CapEff:"), "00000000a80425fb");
        assert_eq!(field(&text, "CapBnd:"), "00000000a80425fb");
        assert_eq!(field(&text, "CapInh:"), "0000000000000000");
        assert_eq!(field(&text, "Seccomp:"), "2");
        assert_eq!(field(&text, "NoNewPrivs:"), "0");
        assert!(
            text.contains("mount: permission denied") || text.contains("Operation not permitted"),
            "{text}"
        );
        assert!(text.contains("unshare"), "{text}");
        assert!(text.contains("Read-only file system"), "{text}");
        assert!(text.contains("\n0\n0\n500\nshm\n"), "{text}");
        for device in ["null", "zero", "urandom", "ptmx", "fd", "stdout", "mqueue"] {
            assert!(
                text.lines().any(|line| line == device),
                "{device} in {text}"
            );
        }
        machine
    });
}

#[test]
fn users_and_groups_are_the_images_and_the_pods() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("users").await;
        let mut config = joined(
            "user",
            "id -u; id -g; id -G; echo $HOME $FROM_IMAGE; echo to-stdout > /dev/stdout; grep CapEff /proc/self/status",
        );
        config.security.run_as_user = Some(1000);
        config.security.supplemental_groups = vec![77];
        config.security.no_new_privs = true;
        config.security.seccomp = SeccompProfile::RuntimeDefault;
        config.working_dir = "/made/for/me".to_owned();
        let (status, text) = machine.run(&sandbox, config).await;
        assert_eq!(
            text,
            "1000\n1001\n1001 50 77\n/home/web yes\nto-stdout\nCapEff:\t0000000000000000\n"
        );
        assert_eq!(status.user, Some((1000, 1001, vec![1001, 50, 77])));
        let mut config = joined("named", "id -u; grep NoNewPrivs /proc/self/status; pwd");
        config.security.run_as_username = Some("web".to_owned());
        config.security.no_new_privs = true;
        config.working_dir = "/etc".to_owned();
        assert_eq!(
            machine.run(&sandbox, config).await.1,
            "1000\nNoNewPrivs:\t1\n/etc\n"
        );
        let mut config = joined("nobody", "id");
        config.security.run_as_username = Some("nobody".to_owned());
        let id = machine
            .runtime
            .create_container(&sandbox, config)
            .await
            .unwrap();
        let error = machine
            .runtime
            .start_container(&id)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("unable to find user nobody"), "{error}");
        machine
    });
}

#[test]
fn capabilities_are_added_and_dropped() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("caps").await;
        let mut config = joined("drop", "grep -E 'Cap(Eff|Bnd)' /proc/self/status");
        config.security.drop_capabilities = vec!["ALL".to_owned()];
        config.security.add_capabilities = vec!["NET_BIND_SERVICE".to_owned()];
        let (_, text) = machine.run(&sandbox, config).await;
        assert_eq!(text.matches("0000000000000400").count(), 2, "{text}");
        let mut config = joined("admin", "mount -t tmpfs none /tmp && echo mounted");
        config.security.add_capabilities = vec!["SYS_ADMIN".to_owned()];
        config.security.seccomp = SeccompProfile::RuntimeDefault;
        assert_eq!(machine.run(&sandbox, config).await.1, "mounted\n");
        let mut config = joined("unknown", "true");
        config.security.add_capabilities = vec!["FLYING".to_owned()];
        assert!(matches!(
            machine.runtime.create_container(&sandbox, config).await,
            Err(Error::Invalid(_))
        ));
        machine
    });
}

#[test]
fn a_privileged_container_has_the_machine() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("privileged").await;
        let mut config = joined(
            "main",
            "mount -t tmpfs none /tmp && echo mounted; touch /sys/fs/cgroup/memory/x 2>/dev/null; \
             cat /proc/self/status; [ -e /dev/kmsg ] && echo kmsg; echo same > /proc/sys/kernel/domainname && echo wrote",
        );
        config.security.privileged = true;
        config.security.seccomp = SeccompProfile::RuntimeDefault;
        let (_, text) = machine.run(&sandbox, config).await;
        assert!(text.starts_with("mounted\n"), "{text}");
        assert_eq!(field(&text, "Seccomp:"), "0");
        assert!(text.contains("wrote"), "{text}");
        assert_eq!(
            text.contains("kmsg"),
            std::path::Path::new("/dev/kmsg").exists()
        );
        machine
    });
}

#[test]
fn a_profile_of_the_host_is_applied() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("seccomp").await;
        let profile = machine.directory.join("profile.json");
        let rule = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}"#;
        std::fs::write(&profile, rule).unwrap();
        let mut config = joined("main", "mkdir /x; touch /y && echo fine");
        config.security.seccomp = SeccompProfile::Localhost(profile);
        let (_, text) = machine.run(&sandbox, config).await;
        assert!(
            text.contains("Permission denied") && text.ends_with("fine\n"),
            "{text}"
        );
        let mut config = joined("missing", "true");
        config.security.seccomp = SeccompProfile::Localhost("/no/such/profile.json".into());
        assert!(
            machine
                .runtime
                .create_container(&sandbox, config)
                .await
                .is_err()
        );
        machine
    });
}

#[test]
fn devices_are_allowed_one_by_one() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("devices").await;
        let look = "cat /dev/mine | head -c 0 && echo readable; head -c 1 /dev/kmsg2 >/dev/null || echo closed";
        let mut config = joined("main", look);
        config.devices = vec![Device {
            container_path: "/dev/mine".into(),
            host_path: "/dev/zero".into(),
            permissions: "r".to_owned(),
        }];
        let (_, text) = machine.run(&sandbox, config).await;
        assert!(text.contains("readable"), "{text}");
        assert!(text.contains("closed"), "{text}");
        machine
    });
}
