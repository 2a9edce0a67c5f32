#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use oci_client::client::{Client, ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::secrets::RegistryAuth as Credential;

use super::*;

const REGISTRY: &str = "/usr/bin/docker-registry";
/// `hunter2`, in bcrypt.
const HTPASSWD: &str = "user:$2b$05$abcdefghijklmnopqrstuuoXuKqgZXLiJqzfmMXDDhSFPIvxV7t8.\n";

struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        let path =
            std::env::temp_dir().join(format!("keelson-images-{}", uuid::Uuid::new_v4().simple()));
        fs::create_dir_all(&path).unwrap();
        Dir(path)
    }

    fn store(&self, name: &str) -> ImageStore {
        ImageStore::open(&self.0.join(name), RegistryConfig::default()).unwrap()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Registry {
    child: Child,
    address: String,
}

impl Registry {
    /// A registry on the loopback that wants a password; `None` where the program is absent.
    fn start(dir: &Dir) -> Option<Self> {
        if !Path::new(REGISTRY).exists() {
            eprintln!("skipped: {REGISTRY} is not installed");
            return None;
        }
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let (passwords, data) = (dir.0.join("htpasswd"), dir.0.join("registry"));
        fs::write(&passwords, HTPASSWD).unwrap();
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n\
             auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
            data.display(),
            passwords.display()
        );
        fs::write(dir.0.join("config.yml"), config).unwrap();
        let child = Command::new(REGISTRY)
            .args(["serve"])
            .arg(dir.0.join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Registry { child, address };
        for _ in 0..200 {
            if std::net::TcpStream::connect(&registry.address).is_ok() {
                return Some(registry);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the registry does not start");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        builder
            .append_data(&mut header, path, text.as_bytes())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

fn config_of(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|l| unpack::sha256(l)).collect();
    serde_json::to_vec(&serde_json::json!({
        "architecture": config::host_architecture(),
        "os": "linux",
        "config": {"Entrypoint": ["/a"], "Cmd": null, "Env": ["X=1"], "User": "7:8"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))
    .unwrap()
}

async fn push(registry: &Registry, name: &str, layers: &[Vec<u8>]) {
    let client = Client::new(ClientConfig {
        protocol: ClientProtocol::Http,
        ..ClientConfig::default()
    });
    let image: oci_client::Reference = format!("{}/{name}", registry.address).parse().unwrap();
    let blobs: Vec<ImageLayer> = layers
        .iter()
        .map(|l| {
            ImageLayer::new(
                gzip(l),
                "application/vnd.oci.image.layer.v1.tar+gzip".into(),
                None,
            )
        })
        .collect();
    let config = Config::new(
        config_of(layers),
        "application/vnd.oci.image.config.v1+json".into(),
        None,
    );
    let credential = Credential::Basic("user".into(), "hunter2".into());
    client
        .push(&image, &blobs, config, &credential, None)
        .await
        .unwrap();
}

fn auth(password: &str) -> RegistryAuth {
    RegistryAuth {
        username: "user".into(),
        password: password.into(),
        ..RegistryAuth::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_from_a_registry_that_wants_a_password() {
    let dir = Dir::new();
    let Some(registry) = Registry::start(&dir) else {
        return;
    };
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let base = layer(&[("a", "first"), ("b", "base")]);
    push(
        &registry,
        "team/app:v1",
        &[base.clone(), layer(&[("a", "second"), (".wh.b", "")])],
    )
    .await;
    let store = dir.store("data");
    let name = format!("{}/team/app:v1", registry.address);

    let anonymous = store.pull(&name, &[], None).await.unwrap_err();
    assert!(
        matches!(&anonymous, ports::Error::Unauthorized(_)),
        "{anonymous}"
    );
    let wrong = store.pull(&name, &[auth("wrong")], None).await.unwrap_err();
    assert!(matches!(&wrong, ports::Error::Unauthorized(_)), "{wrong}");
    let missing = format!("{}/team/app:nope", registry.address);
    let missing = store
        .pull(&missing, &[auth("hunter2")], None)
        .await
        .unwrap_err();
    assert!(
        missing.is_not_found() && missing.to_string().contains("manifest unknown"),
        "{missing}"
    );

    // The right credential among several; two pulls at once are one.
    let credentials = [auth("wrong"), auth("hunter2")];
    let (one, two) = tokio::join!(
        store.pull(&name, &credentials, None),
        store.pull(&name, &credentials, None)
    );
    let (image, two) = (one.unwrap(), two.unwrap());
    assert_eq!(image.id, two.id);
    assert_eq!(image.repo_tags, [name.as_str()]);
    assert!(image.repo_digests[0].starts_with(&format!("{}/team/app@sha256:", registry.address)));
    assert_eq!(
        (image.user.clone(), image.entrypoint.clone()),
        (ports::ImageUser::Id(7), vec!["/a".to_owned()])
    );
    let rootfs = store.rootfs(&image.id).unwrap();
    assert_eq!(
        fs::read_to_string(rootfs.layers[0].join("b")).unwrap(),
        "base"
    );
    assert_eq!(
        fs::read_to_string(rootfs.layers[1].join("a")).unwrap(),
        "second"
    );

    // By digest, by id; and a tag that moves leaves the old image to its digest.
    let by_digest = store
        .resolve(&image.repo_digests[0])
        .await
        .unwrap()
        .unwrap();
    assert_eq!(by_digest.id, image.id);
    assert_eq!(
        store.resolve(&image.id).await.unwrap().unwrap().id,
        image.id
    );
    push(&registry, "team/app:v1", &[base, layer(&[("c", "third")])]).await;
    let newer = store.pull(&name, &credentials, None).await.unwrap();
    assert_ne!(newer.id, image.id);
    assert_eq!(store.find(&image.id).unwrap().unwrap().repo_tags, [""; 0]);
    let pinned = store
        .pull(&image.repo_digests[0], &credentials, None)
        .await
        .unwrap();
    assert_eq!(pinned.id, image.id);

    // Layers go with the last image that needs them, and not before the last container.
    let unique = store.rootfs(&image.id).unwrap().layers[1].clone();
    store.hold("container", &image.id).unwrap();
    store.remove(&image.id).await.unwrap();
    store.remove(&image.id).await.unwrap();
    assert!(store.find(&image.id).unwrap().is_none() && unique.is_dir());
    store.release("container").unwrap();
    assert!(!unique.exists());
    assert!(
        store
            .rootfs(&newer.id)
            .unwrap()
            .layers
            .iter()
            .all(|l| l.is_dir()),
        "the shared layer stays"
    );
}

#[tokio::test]
async fn an_unreachable_registry_is_named() {
    let dir = Dir::new();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let error = dir
        .store("data")
        .pull(&format!("127.0.0.1:{port}/a"), &[], None)
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("refused") && text.contains(&format!("127.0.0.1:{port}/a:latest")),
        "{text}"
    );
}

fn archive_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder
            .append_data(&mut header, path, bytes.as_slice())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

#[tokio::test]
async fn imports_docker_and_oci_archives() {
    let dir = Dir::new();
    let base = layer(&[("a", "text")]);
    let config = config_of(std::slice::from_ref(&base));
    let manifest = serde_json::json!([{"Config": "c.json", "RepoTags": ["app:v1"], "Layers": ["l/layer.tar"]}]);
    let docker = archive_of(&[
        ("l/layer.tar".into(), base.clone()),
        ("c.json".into(), config.clone()),
        (
            "manifest.json".into(),
            serde_json::to_vec(&manifest).unwrap(),
        ),
    ]);
    let path = dir.0.join("docker.tar.zst");
    fs::write(&path, zstd::encode_all(docker.as_slice(), 1).unwrap()).unwrap();
    let store = dir.store("docker");
    let images = store.import(&path).await.unwrap();
    assert_eq!(images[0].repo_tags, ["docker.io/library/app:v1"]);
    assert!(images[0].pinned, "no registry may have it");

    let blob = |bytes: &[u8]| {
        (
            format!("blobs/{}", unpack::sha256(bytes).replace(':', "/")),
            bytes.to_vec(),
        )
    };
    let describe =
        |bytes: &[u8]| serde_json::json!({"digest": unpack::sha256(bytes), "size": bytes.len()});
    let packed = gzip(&base);
    let manifest = serde_json::json!({"schemaVersion": 2, "config": describe(&config), "layers": [describe(&packed)]});
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let mut entry = describe(&manifest);
    entry["annotations"] = serde_json::json!({"io.containerd.image.name": "example.org/app:v2"});
    let index =
        serde_json::to_vec(&serde_json::json!({"schemaVersion": 2, "manifests": [entry]})).unwrap();
    let oci = archive_of(&[
        (
            "oci-layout".into(),
            b"{\"imageLayoutVersion\":\"1.0.0\"}".to_vec(),
        ),
        ("index.json".into(), index),
        blob(&manifest),
        blob(&config),
        blob(&packed),
    ]);
    let path = dir.0.join("oci.tar");
    fs::write(&path, oci).unwrap();
    // Another handle on the same directory, as `keelson image import` beside a server has it.
    let other = dir.store("docker");
    let images = other.import(&path).await.unwrap();
    assert_eq!(
        images[0].repo_tags,
        ["docker.io/library/app:v1", "example.org/app:v2"]
    );
    assert_eq!(
        store.find("example.org/app:v2").unwrap().unwrap().id,
        images[0].id,
        "seen at once"
    );

    store.remove("app:v1").await.unwrap();
    assert_eq!(
        other.list().await.unwrap()[0].repo_tags,
        ["example.org/app:v2"]
    );

    fs::write(&path, b"no archive at all").unwrap();
    assert!(store.import(&path).await.is_err());
    assert_eq!(
        fs::read_dir(dir.0.join("docker/images/tmp"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
async fn what_a_person_removed_is_not_pinned_when_it_comes_again() {
    let dir = Dir::new();
    let store = dir.store("again");
    let config = serde_json::json!({"architecture": config::host_architecture(), "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": []}});
    let made = store
        .add_local("app:v1", &config, Vec::new(), true)
        .unwrap();
    // A container keeps what it stands on beyond the removal.
    store.hold("container", &made.id).unwrap();
    store.remove("app:v1").await.unwrap();
    assert!(store.find(&made.id).unwrap().is_none());
    let bytes = serde_json::to_vec(&config).unwrap();
    // As a pull enters it.
    let enter = |index: &mut Index| index.set_tag("docker.io/library/app:v1", &made.id);
    store
        .publish(&made.id, &bytes, &[], Vec::new(), enter)
        .unwrap();
    assert!(!store.find("app:v1").unwrap().unwrap().pinned);
}
