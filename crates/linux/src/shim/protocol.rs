//! What the runtime and a shim say to each other: one JSON document per packet over a
//! sequenced-packet socket, with descriptors beside it. Every request has a connection of its own.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

use super::log::LogLimits;
use crate::spec::RunUser;

pub(crate) const MAX_MESSAGE_BYTES: usize = 128 << 10;
const MAX_FDS: usize = 4;

/// Written beside the shim's socket before it starts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ShimConfig {
    pub(crate) sandbox: String,
    pub(crate) socket: PathBuf,
    /// The cgroup files that take the shim out of the group of who started it.
    pub(crate) procs: Vec<PathBuf>,
    pub(crate) own_network: bool,
    pub(crate) own_ipc: bool,
    pub(crate) own_hostname: Option<String>,
    /// All containers share one PID namespace, whose first process is the shim's.
    pub(crate) share_pid: bool,
    /// Path below `/proc/sys` and value.
    pub(crate) sysctls: Vec<(String, String)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Request {
    Start(StartRequest),
    Signal {
        container: String,
        signal: i32,
        all: bool,
    },
    /// Comes with the descriptors of the streams that are set, in the order in, out, error;
    /// with a terminal none come and the answer carries the terminal.
    Exec {
        container: String,
        arguments: Vec<String>,
        terminal: bool,
        streams: [bool; 3],
    },
    /// On the connection of an [`Request::Exec`].
    KillExec,
    Attach {
        container: String,
        streams: [bool; 3],
    },
    Resize {
        container: String,
        columns: u16,
        rows: u16,
    },
    ReopenLog {
        container: String,
    },
    Connect {
        port: u16,
    },
    /// Answered with a snapshot and then with every change.
    Subscribe,
    Forget {
        container: String,
    },
    Shutdown,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StartRequest {
    pub(crate) container: String,
    /// Holds the specification; the run state is written beside it.
    pub(crate) directory: PathBuf,
    pub(crate) procs: Vec<PathBuf>,
    pub(crate) oom_file: PathBuf,
    pub(crate) log_path: PathBuf,
    #[serde(default)]
    pub(crate) log_limits: Option<LogLimits>,
    pub(crate) terminal: bool,
    pub(crate) stdin: bool,
    pub(crate) stdin_once: bool,
    pub(crate) pid_namespace: PidNamespace,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PidNamespace {
    Own,
    Pod,
    Host,
    /// That of another container of this pod.
    Container(String),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    Failed(String),
    Started(RunState),
    ExecStarted,
    Exited { code: i32 },
    Snapshot(Vec<RunState>),
    Changed(RunState),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Phase {
    Created,
    Running,
    Exited,
}

/// What is known of a container's process; kept on disk as `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunState {
    pub(crate) container: String,
    pub(crate) phase: Phase,
    pub(crate) pid: Option<i32>,
    /// With the pid, the process's identity across reuse of pids.
    pub(crate) start_time: Option<u64>,
    /// Nanoseconds since 1970.
    pub(crate) started_at_ns: Option<u64>,
    pub(crate) finished_at_ns: Option<u64>,
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) oom_killed: bool,
    /// Why the program never ran.
    pub(crate) start_error: Option<String>,
    pub(crate) user: Option<RunUser>,
}

impl RunState {
    pub(crate) fn created(container: &str) -> RunState {
        RunState {
            container: container.to_owned(),
            phase: Phase::Created,
            pid: None,
            start_time: None,
            started_at_ns: None,
            finished_at_ns: None,
            exit_code: None,
            signal: None,
            oom_killed: false,
            start_error: None,
            user: None,
        }
    }
}

/// Sends one packet. `WouldBlock` when the reader is behind.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the message is too long for a shim",
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors for one message",
        ));
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives one packet; `None` when the other side closed.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = rustix::net::recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = ancillary {
            fds.extend(rights);
        }
    }
    if message.bytes == 0 {
        return Ok(None);
    }
    if message.flags.contains(rustix::net::ReturnFlags::TRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message was longer than allowed",
        ));
    }
    Ok(Some((message.bytes, fds)))
}
