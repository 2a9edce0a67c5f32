//! `/proc/self/mountinfo`, parsed.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountEntry {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) shared: bool,
    pub(crate) fstype: String,
    pub(crate) super_options: String,
}

pub(crate) fn read() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The mount that `path` lies on. Of several on one directory the last one is visible.
pub(crate) fn mount_of<'a>(mounts: &'a [MountEntry], path: &Path) -> Option<&'a MountEntry> {
    mounts
        .iter()
        .rev()
        .filter(|mount| path.starts_with(&mount.target))
        .max_by_key(|mount| mount.target.components().count())
}

fn parse(text: &[u8]) -> Vec<MountEntry> {
    text.split(|byte| *byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let root = unescape(fields.nth(3)?);
    let target = unescape(fields.next()?);
    let mut shared = false;
    fields.next()?;
    for field in fields.by_ref() {
        if field == b"-" {
            break;
        }
        shared |= field.starts_with(b"shared:");
    }
    let fstype = String::from_utf8_lossy(fields.next()?).into_owned();
    let super_options = String::from_utf8_lossy(fields.nth(1)?).into_owned();
    Some(MountEntry {
        root,
        target,
        shared,
        fstype,
        super_options,
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = (byte == b'\\').then(|| tail.get(..3)).flatten();
        match digits.and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok()) {
            Some(value) => {
                out.push(value);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_optional_fields_and_escapes() {
        let text = b"36 35 98:0 /mnt1 /a\\040b rw,noatime shared:1 master:2 - ext3 /dev/root rw,errors=continue\n\
                     37 35 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].target, Path::new("/a b"));
        assert_eq!(mounts[0].root, Path::new("/mnt1"));
        assert!(mounts[0].shared);
        assert!(!mounts[1].shared);
        assert_eq!(mounts[1].super_options, "rw,cpu");
    }

    #[test]
    fn the_deepest_and_latest_mount_wins() {
        let text = b"1 0 8:1 / / rw - ext4 a rw\n2 1 0:2 / /run rw - tmpfs b rw\n3 2 0:3 / /run rw - tmpfs c rw\n";
        let mounts = parse(text);
        assert_eq!(
            mount_of(&mounts, Path::new("/run/x")).unwrap().target,
            Path::new("/run")
        );
        assert_eq!(
            mount_of(&mounts, Path::new("/running")).unwrap().target,
            Path::new("/")
        );
    }
}
