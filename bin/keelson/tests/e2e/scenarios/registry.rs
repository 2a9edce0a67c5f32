//! Images from a real registry that wants a password.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::lab::Namespace;

const REGISTRY: &str = "/usr/bin/docker-registry";
const BUSYBOX: &str = "/usr/bin/busybox";
const ADDRESS: &str = "127.0.0.1:5000";
/// `hunter2`, in bcrypt.
const HTPASSWD: &str = "user:$2b$05$abcdefghijklmnopqrstuuoXuKqgZXLiJqzfmMXDDhSFPIvxV7t8.\n";

pub(super) fn pull(ns: &Namespace<'_>) {
    if !Path::new(REGISTRY).exists() || !Path::new(BUSYBOX).exists() {
        eprintln!("skipped: docker-registry and busybox-static are not both installed");
        return;
    }
    let _registry = Registry::start(ns);
    let image = format!("{ADDRESS}/team/busybox:1");
    let pod = |name: &str, extra: Value| {
        let mut pod = ns.pod(name, &[], json!({"restartPolicy": "Never"}));
        pod["spec"]["containers"][0] =
            json!({"name": "main", "image": image, "command": ["/bin/busybox", "echo", "pulled"]});
        crate::lab::merge(&mut pod["spec"], extra);
        pod
    };
    ns.apply(&pod("anonymous", json!({})));
    ns.until("a refused pull", || {
        let status =
            ns.get("pod/anonymous")["status"]["containerStatuses"][0]["state"]["waiting"].clone();
        matches!(
            status["reason"].as_str()?,
            "ErrImagePull" | "ImagePullBackOff"
        )
        .then_some(())
    });
    let events = ns.kubectl(&["get", "events"]);
    assert!(events.contains("Failed to pull image"), "{events}");
    let server = format!("--docker-server={ADDRESS}");
    ns.kubectl(&[
        "create",
        "secret",
        "docker-registry",
        "pull",
        &server,
        "--docker-username=user",
        "--docker-password=hunter2",
    ]);
    ns.apply(&pod(
        "allowed",
        json!({"imagePullSecrets": [{"name": "pull"}]}),
    ));
    ns.until("the pulled image to run", || {
        (ns.get("pod/allowed")["status"]["phase"] == "Succeeded").then_some(())
    });
    assert_eq!(ns.kubectl(&["logs", "allowed"]).trim(), "pulled");
    let status = ns.get("pod/allowed")["status"]["containerStatuses"][0].clone();
    assert!(
        status["imageID"].as_str().unwrap().contains("sha256:"),
        "{status}"
    );
}

/// An archive that names one image twice, imported as on a machine without a registry.
pub(super) fn import(ns: &Namespace<'_>) {
    let content = layer(&[("etc/made-by", b"a person")]);
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest(&content)]},
    })
    .to_string();
    let names = ["example.org/imported:1", "example.org/imported:stable"];
    let manifest =
        json!([{"Config": "config.json", "RepoTags": names, "Layers": ["layer.tar"]}]).to_string();
    let archive = ns.lab.dir.join("imported.tar");
    let files: [(&str, &[u8]); 3] = [
        ("config.json", config.as_bytes()),
        ("layer.tar", &content),
        ("manifest.json", manifest.as_bytes()),
    ];
    std::fs::write(&archive, layer(&files)).unwrap();
    let data_dir = ns.lab.data_dir();
    let image = |arguments: &[&str]| {
        let mut all = vec!["image", "--data-dir", data_dir.to_str().unwrap()];
        all.extend(arguments);
        let output = ns.lab.keelson(&all);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let imported = image(&["import", archive.to_str().unwrap()]);
    let listed = image(&["list"]);
    for name in names {
        for said in [&imported, &listed] {
            let rows = said
                .lines()
                .filter(|line| line.split_whitespace().next() == Some(name));
            assert_eq!(rows.count(), 1, "{name} in {said}");
        }
    }
    let facts = || -> Option<Value> {
        let all: Value = serde_json::from_str(&image(&["list", "--output", "json"])).unwrap();
        let mut all = all.as_array().unwrap().iter();
        let ours = all.find(|image| {
            image["repo_tags"]
                .to_string()
                .contains("example.org/imported")
        });
        ours.cloned()
    };
    let known = facts().unwrap();
    assert_eq!(
        (&known["repo_tags"], &known["pinned"]),
        (&json!(names), &json!(true)),
        "{known}"
    );
    image(&["remove", names[0]]);
    assert_eq!(facts().unwrap()["repo_tags"], json!(names[1..]));
    image(&["remove", names[1]]);
    assert_eq!(facts(), None);
}

struct Registry(Child);

impl Registry {
    fn start(ns: &Namespace<'_>) -> Self {
        let dir = ns.lab.dir.join("registry");
        let storage = Storage(dir.join("docker/registry/v2"));
        storage.put_image("team/busybox", "1");
        std::fs::write(dir.join("htpasswd"), HTPASSWD).unwrap();
        let config = json!({
            "version": "0.1",
            "log": {"accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": dir}},
            "http": {"addr": ADDRESS},
            "auth": {"htpasswd": {"realm": "test", "path": dir.join("htpasswd")}},
        });
        std::fs::write(dir.join("config.yml"), config.to_string()).unwrap();
        let mut command = ns.lab.inside(REGISTRY);
        command
            .arg("serve")
            .arg(dir.join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let registry = Self(command.spawn().unwrap());
        let url = format!("http://{ADDRESS}/");
        ns.until("the registry", || {
            ns.lab.hello(&["get", &url]).status.success().then_some(())
        });
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The registry's own layout on disk, so that no client is needed to fill it.
struct Storage(PathBuf);

impl Storage {
    fn put_image(&self, repository: &str, tag: &str) {
        let layer = busybox_layer();
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {"Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        });
        let config = config.to_string().into_bytes();
        let descriptor = |media: &str, bytes: &[u8]| json!({"mediaType": media, "size": bytes.len(), "digest": digest(bytes)});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        let manifest = manifest.to_string().into_bytes();
        let repository = self.0.join("repositories").join(repository);
        for blob in [&layer, &config, &manifest] {
            let hex = digest(blob).replace("sha256:", "");
            write(
                &self
                    .0
                    .join("blobs/sha256")
                    .join(&hex[..2])
                    .join(&hex)
                    .join("data"),
                blob,
            );
            link(&repository.join("_layers/sha256").join(&hex), blob);
        }
        let hex = digest(&manifest).replace("sha256:", "");
        link(
            &repository.join("_manifests/revisions/sha256").join(&hex),
            &manifest,
        );
        let tag = repository.join("_manifests/tags").join(tag);
        link(&tag.join("current"), &manifest);
        link(&tag.join("index/sha256").join(&hex), &manifest);
    }
}

fn link(dir: &Path, blob: &[u8]) {
    write(&dir.join("link"), digest(blob).as_bytes());
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

fn busybox_layer() -> Vec<u8> {
    layer(&[("bin/busybox", &std::fs::read(BUSYBOX).unwrap())])
}

fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        header.set_cksum();
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}
