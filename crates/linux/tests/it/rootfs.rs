use std::path::Path;
use std::time::Duration;

use keelson_linux::LinuxMounts;
use keelson_ports::*;

use crate::machine::{joined, with_machine};

fn mount(host: &Path, container: &str, readonly: bool) -> Mount {
    Mount {
        host_path: host.to_path_buf(),
        container_path: container.into(),
        readonly,
        ..Mount::default()
    }
}

#[test]
fn mounts_go_where_they_should() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("mounts").await;
        let host = machine.directory.join("host");
        std::fs::create_dir_all(host.join("sub")).unwrap();
        std::fs::write(host.join("file"), "text").unwrap();
        let mut config = joined(
            "main",
            "cat /data/file /etc/own; echo; echo new > /data/out; echo no > /ro/out; ls -d /data/sub /a/b/c; cat /proc/mounts",
        );
        config.mounts = vec![
            mount(&host.join("sub"), "/data/sub", false),
            mount(&host, "/data", false),
            mount(&host, "/ro", true),
            mount(&host, "/a/b/c", false),
            mount(&host.join("file"), "/etc/own", true),
        ];
        let (_, text) = machine.run(&sandbox, config).await;
        assert!(text.starts_with("texttext\n"), "{text}");
        assert!(text.contains("Read-only file system"), "{text}");
        assert!(text.contains("/a/b/c\n"), "{text}");
        assert_eq!(std::fs::read_to_string(host.join("out")).unwrap(), "new\n");
        assert!(
            !text.contains(&machine.directory.display().to_string()) || text.contains("overlay"),
            "{text}"
        );
        let mut image = joined("image", "ls /img/bin/busybox; touch /img/x");
        image.mounts = vec![Mount {
            image: Some("busybox".into()),
            container_path: "/img".into(),
            ..Mount::default()
        }];
        let (_, text) = machine.run(&sandbox, image).await;
        assert!(
            text.contains("/img/bin/busybox") && text.contains("Read-only"),
            "{text}"
        );
        machine
    });
}

#[test]
fn a_read_only_root_stays_so() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("readonly").await;
        let mut config = joined(
            "main",
            "touch /x; touch /dev/shm/x && echo shm; cat /etc/resolv.conf",
        );
        config.security.readonly_rootfs = true;
        let (_, text) = machine.run(&sandbox, config).await;
        assert!(text.contains("Read-only file system"), "{text}");
        assert!(text.contains("shm"), "{text}");
        assert!(text.contains("10.96.0.10"), "{text}");
        let (_, text) = machine
            .run(&sandbox, joined("other", "touch /x && echo fine"))
            .await;
        assert_eq!(text, "fine\n");
        machine
    });
}

#[test]
fn links_of_an_image_do_not_leave_it() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("links").await;
        let outside = machine.directory.join("outside");
        std::fs::create_dir_all(&outside).unwrap();
        let layer = machine.directory.join("layer");
        std::os::unix::fs::symlink(&outside, layer.join("escape")).unwrap();
        let host = machine.directory.join("host");
        std::fs::create_dir_all(&host).unwrap();
        let mut config = joined("main", "ls -d /escape/deep");
        config.mounts = vec![mount(&host, "/escape/deep", false)];
        let (status, text) = machine.run(&sandbox, config).await;
        assert_eq!(status.exit_code, Some(0), "{text}");
        assert!(std::fs::read_dir(&outside).unwrap().next().is_none());
        machine
    });
}

#[test]
fn only_shared_mounts_propagate_back() {
    with_machine(|machine| async move {
        let sandbox = machine.sandbox("propagation").await;
        let host = machine.directory.join("host");
        std::fs::create_dir_all(&host).unwrap();
        LinuxMounts
            .mount_tmpfs(&host, Some(1 << 20), 0o755)
            .await
            .unwrap();
        let flags = rustix::mount::MountPropagationFlags::PRIVATE;
        rustix::mount::mount_change(&host, flags).unwrap();
        let both = |name: &str| {
            let mut config = joined(
                name,
                "mkdir -p /data/in && mount -t tmpfs none /data/in && touch /data/in/x; sleep 1000",
            );
            config.security.privileged = true;
            config.mounts = vec![Mount {
                propagation: MountPropagation::Bidirectional,
                ..mount(&host, "/data", false)
            }];
            config
        };
        let id = machine
            .runtime
            .create_container(&sandbox, both("private"))
            .await
            .unwrap();
        let error = machine
            .runtime
            .start_container(&id)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("not a shared mount"), "{error}");
        rustix::mount::mount_change(&host, rustix::mount::MountPropagationFlags::SHARED).unwrap();
        machine.start(&sandbox, both("shared")).await;
        let mut down = joined("down", "sleep 1000");
        down.mounts = vec![Mount {
            propagation: MountPropagation::HostToContainer,
            ..mount(&host, "/data", false)
        }];
        let down = machine.start(&sandbox, down).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(host.join("in/x").exists());
        std::fs::create_dir_all(host.join("late")).unwrap();
        LinuxMounts
            .mount_tmpfs(&host.join("late"), None, 0o755)
            .await
            .unwrap();
        std::fs::write(host.join("late/y"), "y").unwrap();
        assert_eq!(machine.exec(&down, "cat /data/late/y").await.stdout, b"y");
        assert_eq!(LinuxMounts.mounts_below(&host).await.unwrap().len(), 2);
        assert!(LinuxMounts.is_mount_point(&host).await.unwrap());
        machine
    });
}
