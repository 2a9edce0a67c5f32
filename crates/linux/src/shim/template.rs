//! The process that shims are cloned from.
//!
//! A fresh start of this binary dirties megabytes before `main` (the linker relocates all of
//! it). Done once, in a process that does nothing else, the shims share those pages, and
//! a clone is quicker than a start. It lives as long as the server that started it; the shims
//! live on.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ShimError, protocol, setup};
use crate::sys;

/// Comes with the writing end of a pipe on which the shim reports.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The shim's configuration.
    pub(crate) config: PathBuf,
    /// Where the shim's last words go, should it have any.
    pub(crate) log: PathBuf,
}

/// What a cloned process has to become.
pub(super) struct Birth {
    pub(super) order: Order,
    pub(super) report: OwnedFd,
}

/// Clones a shim for each order. `None` is the template itself, when its server is gone.
pub(super) fn serve() -> Result<Option<Birth>, ShimError> {
    let socket = setup(
        "taking the orders' socket",
        rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map_err(io::Error::from),
    )?;
    sys::ignore_children();
    let mut buffer = vec![0; protocol::MAX_MESSAGE_BYTES];
    loop {
        let received = setup(
            "receiving an order",
            protocol::receive(socket.as_fd(), &mut buffer),
        )?;
        let Some((count, fds)) = received else {
            return Ok(None);
        };
        let order = serde_json::from_slice(buffer.get(..count).unwrap_or_default())
            .map_err(ShimError::Decode)?;
        let Some(report) = fds.into_iter().next() else {
            continue;
        };
        // A clone that fails closes the pipe without a report, which the server notices.
        if let Ok(None) = sys::clone_process(0) {
            sys::reset_signals();
            return Ok(Some(Birth { order, report }));
        }
    }
}
