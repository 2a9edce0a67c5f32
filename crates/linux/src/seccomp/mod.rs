//! System-call filters: a profile becomes a classic BPF program.
//!
//! Written here because a profile may answer different calls with different errors, which the
//! one-action-per-filter crates cannot express.

mod oci;
mod profile;
mod program;
mod syscalls;

use std::path::Path;

use keelson_ports::{Error, Result, SeccompProfile};

use self::program::{Action, Condition, Profile, Rule};
use crate::sys;

/// Profiles are small; this keeps a wrong path (a disk image, a device) out of memory.
const MAX_PROFILE_BYTES: u64 = 4 << 20;

/// The program for a container, or nothing when it is unconfined. `capabilities` decides which
/// calls the default profile opens.
pub(crate) fn compile(profile: &SeccompProfile, capabilities: u64) -> Result<Option<Vec<u64>>> {
    match profile {
        SeccompProfile::Unconfined => Ok(None),
        SeccompProfile::RuntimeDefault => {
            Ok(Some(profile::runtime_default(capabilities).assemble()))
        }
        SeccompProfile::Localhost(path) => localhost(path).map(Some),
    }
}

fn localhost(path: &Path) -> Result<Vec<u64>> {
    let bytes = sys::read_bounded(path, MAX_PROFILE_BYTES).map_err(|error| {
        Error::Invalid(format!(
            "cannot load seccomp profile {:?}: {error}",
            path.display().to_string()
        ))
    })?;
    let profile = oci::parse(&bytes).map_err(|error| {
        Error::Invalid(format!(
            "decoding seccomp profile {:?} failed: {error}",
            path.display().to_string()
        ))
    })?;
    Ok(profile.assemble())
}
