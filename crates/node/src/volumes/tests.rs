#![allow(clippy::unwrap_used)]

use super::atomic::{FileContent, Payload, check_path, write_blocking};
use super::*;

struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!(
            "keelson-volumes-{}-{:x}",
            std::process::id(),
            rand::random::<u64>()
        ));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn payload(files: &[(&str, &str)]) -> Payload {
    files
        .iter()
        .map(|(path, data)| {
            (
                (*path).to_owned(),
                FileContent {
                    data: data.as_bytes().to_vec(),
                    mode: 0o640,
                    user: None,
                },
            )
        })
        .collect()
}

#[test]
fn files_are_replaced_together_and_old_ones_go() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    let read = |path: &str| std::fs::read_to_string(scratch.0.join(path));
    assert!(write_blocking(&scratch.0, &payload(&[("a", "1"), ("d/e/f", "2")])).unwrap());
    assert_eq!(
        (read("a").unwrap().as_str(), read("d/e/f").unwrap().as_str()),
        ("1", "2")
    );
    assert_eq!(
        std::fs::metadata(scratch.0.join("a"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o640
    );
    let first = std::fs::read_link(scratch.0.join("..data")).unwrap();
    assert!(!write_blocking(&scratch.0, &payload(&[("a", "1"), ("d/e/f", "2")])).unwrap());
    assert!(write_blocking(&scratch.0, &payload(&[("a", "3")])).unwrap());
    assert_eq!(read("a").unwrap(), "3");
    assert!(read("d/e/f").is_err());
    assert!(!scratch.0.join(first).exists());
    assert!(write_blocking(&scratch.0, &Payload::new()).unwrap());
    assert!(read("a").is_err());
}

#[test]
fn paths_stay_inside() {
    for bad in ["", "/a", "../a", "a/../../b", "..a"] {
        assert!(check_path(bad).is_err(), "{bad}");
    }
    for good in ["a", "a/b", ".hidden", "a..b"] {
        assert!(check_path(good).is_ok(), "{good}");
    }
}

#[test]
fn host_path_types() {
    let scratch = Scratch::new();
    let file = scratch.0.join("f");
    std::fs::write(&file, "").unwrap();
    assert!(host_path::check(&file, "File").is_ok());
    assert!(
        host_path::check(&file, "Directory")
            .unwrap_err()
            .to_string()
            .ends_with("is not a directory")
    );
    assert!(host_path::check(&scratch.0.join("new"), "Directory").is_err());
    assert!(host_path::check(&scratch.0.join("new"), "DirectoryOrCreate").is_ok());
    assert!(host_path::check(&scratch.0.join("made"), "FileOrCreate").is_ok());
    assert!(host_path::check(&file, "Socket").is_err());
    assert!(host_path::check(Path::new("/dev/null"), "CharDevice").is_ok());
    assert!(host_path::check(&file, "Nonsense").is_err());
}
