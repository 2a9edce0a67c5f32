//! What a tree takes on its file system.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use keelson_ports::TreeUsage;

/// Bytes on disk and inodes of a tree without its root, on the root's own file system alone. What
/// vanishes meanwhile is not counted; a file of several names counts once for each.
pub(crate) fn usage(root: &Path) -> TreeUsage {
    let mut total = TreeUsage::default();
    let Ok(device) = std::fs::metadata(root).map(|found| found.dev()) else {
        return total;
    };
    let mut left: Vec<PathBuf> = vec![root.to_path_buf()];
    while let Some(directory) = left.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(found) = entry.metadata() else {
                continue;
            };
            if found.dev() != device {
                continue;
            }
            total.bytes += found.blocks() * 512;
            total.inodes += 1;
            if found.is_dir() {
                left.push(entry.path());
            }
        }
    }
    total
}
