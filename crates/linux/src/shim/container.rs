//! A container as its shim sees it: one process, its streams, its log, who is attached.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::log::{LogWriter, Stream};
use super::protocol::{Phase, PidNamespace, RunState, StartRequest};
use crate::cgroups::keyed;
use crate::sys::{self, Ended};

/// An attached reader that is further behind than this stops the container's output for a while.
const MAX_PENDING_BYTES: usize = 64 << 10;
/// A reader that takes nothing for this long is let go, so that it cannot stop the container.
const STALL_SECONDS: u64 = 10;

pub(super) struct Container {
    pub(super) id: String,
    pub(super) directory: PathBuf,
    pub(super) procs: Vec<PathBuf>,
    oom_file: PathBuf,
    pub(super) log: LogWriter,
    pub(super) terminal: bool,
    stdin_once: bool,
    pub(super) pid_namespace: PidNamespace,
    pub(super) state: RunState,
    /// The terminal's master, or the writing end of the standard input.
    pub(super) input: Option<OwnedFd>,
    pub(super) input_pending: Vec<u8>,
    pub(super) outputs: [Option<OwnedFd>; 2],
    pub(super) attached: Vec<Attached>,
    /// Set when the first process was reaped; the container has exited when its output is read.
    pub(super) ended: Option<(Ended, Instant)>,
}

pub(super) struct Attached {
    pub(super) client: u64,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) sinks: [Option<Sink>; 2],
}

pub(super) struct Sink {
    pub(super) fd: OwnedFd,
    pub(super) pending: Vec<u8>,
    stalled_since: Option<Instant>,
}

impl Sink {
    pub(super) fn new(fd: OwnedFd) -> Sink {
        let _ = rustix::io::ioctl_fionbio(&fd, true);
        Sink {
            fd,
            pending: Vec::new(),
            stalled_since: None,
        }
    }

    /// Writes what the reader takes. `false`: it is gone or stalled too long.
    pub(super) fn flush(&mut self) -> bool {
        while !self.pending.is_empty() {
            match rustix::io::write(&self.fd, &self.pending) {
                Ok(written) => {
                    self.pending.drain(..written);
                    self.stalled_since = None;
                }
                Err(rustix::io::Errno::AGAIN) => {
                    let since = *self.stalled_since.get_or_insert_with(Instant::now);
                    return since.elapsed().as_secs() < STALL_SECONDS;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

impl Container {
    pub(super) fn new(request: StartRequest) -> io::Result<Container> {
        let log = LogWriter::open(&request.log_path, request.log_limits)?;
        Ok(Container {
            state: RunState::created(&request.container),
            id: request.container,
            directory: request.directory,
            procs: request.procs,
            oom_file: request.oom_file,
            log,
            terminal: request.terminal,
            stdin_once: request.stdin_once,
            pid_namespace: request.pid_namespace,
            input: None,
            input_pending: Vec::new(),
            outputs: [None, None],
            attached: Vec::new(),
            ended: None,
        })
    }

    pub(super) fn started(&mut self) {
        self.state.phase = Phase::Running;
        self.state.started_at_ns = Some(now_ns());
        self.save();
    }

    pub(super) fn failed_to_start(&mut self, message: String) {
        self.state.phase = Phase::Exited;
        self.state.pid = None;
        self.state.exit_code = Some(128);
        self.state.start_error = Some(message);
        self.state.finished_at_ns = Some(now_ns());
        self.close_streams();
        self.save();
    }

    pub(super) fn finished(&mut self, ended: Ended) {
        self.state.phase = Phase::Exited;
        self.state.pid = None;
        self.state.finished_at_ns = Some(now_ns());
        (self.state.exit_code, self.state.signal) = match ended {
            Ended::Code(code) => (Some(code), None),
            Ended::Signal(signal) => (Some(128 + signal), Some(signal)),
        };
        let events = std::fs::read_to_string(&self.oom_file).unwrap_or_default();
        self.state.oom_killed = keyed(&events, "oom_kill") > 0;
        self.log.finish(Stream::Stdout);
        self.log.finish(Stream::Stderr);
        self.close_streams();
        self.save();
    }

    fn close_streams(&mut self) {
        self.input = None;
        self.outputs = [None, None];
        self.input_pending = Vec::new();
        for attached in &mut self.attached {
            attached.stdin = None;
        }
    }

    /// Keeps the state where it is found after the runtime, or this shim, went away.
    fn save(&self) {
        let Ok(bytes) = serde_json::to_vec(&self.state) else {
            return;
        };
        let (temporary, path) = (
            self.directory.join("state.json.tmp"),
            self.directory.join("state.json"),
        );
        if std::fs::write(&temporary, bytes).is_ok() {
            let _ = std::fs::rename(temporary, path);
        }
    }

    pub(super) fn spec_path(&self) -> PathBuf {
        self.directory.join("spec.json")
    }

    pub(super) fn is_running(&self) -> bool {
        self.state.phase == Phase::Running && self.ended.is_none()
    }

    /// The readers are behind; more output has to wait.
    pub(super) fn is_congested(&self) -> bool {
        self.attached
            .iter()
            .flat_map(|attached| attached.sinks.iter().flatten())
            .any(|sink| sink.pending.len() > MAX_PENDING_BYTES)
    }

    pub(super) fn has_pending(&self) -> bool {
        self.attached
            .iter()
            .flat_map(|attached| attached.sinks.iter().flatten())
            .any(|sink| !sink.pending.is_empty())
    }

    /// Reads what the container wrote into its log and to those attached.
    pub(super) fn read_output(&mut self, stream: Stream, buffer: &mut [u8]) {
        let Some(fd) = &self.outputs[stream.index()] else {
            return;
        };
        match rustix::io::read(fd, &mut *buffer) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // A terminal reports the last closing of its other side as an error.
            Ok(0) | Err(_) => {
                self.outputs[stream.index()] = None;
                self.log.finish(stream);
            }
            Ok(count) => {
                let data = &buffer[..count.min(buffer.len())];
                self.log.write(stream, data);
                for attached in &mut self.attached {
                    if let Some(sink) = &mut attached.sinks[stream.index()] {
                        sink.pending.extend_from_slice(data);
                    }
                }
                self.flush_sinks();
            }
        }
    }

    pub(super) fn flush_sinks(&mut self) {
        for attached in &mut self.attached {
            for slot in &mut attached.sinks {
                if slot.as_mut().is_some_and(|sink| !sink.flush()) {
                    *slot = None;
                }
            }
        }
    }

    /// Reads what an attached client typed, for the container.
    pub(super) fn read_attached(&mut self, client: u64, buffer: &mut [u8]) {
        let Some(attached) = self
            .attached
            .iter_mut()
            .find(|attached| attached.client == client)
        else {
            return;
        };
        let Some(fd) = &attached.stdin else { return };
        match rustix::io::read(fd, &mut *buffer) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Ok(0) | Err(_) => {
                attached.stdin = None;
                // A terminal stays open; its reader learns of the end by a character.
                if self.stdin_once && !self.terminal && self.input_pending.is_empty() {
                    self.input = None;
                }
            }
            Ok(count) => {
                self.input_pending
                    .extend_from_slice(&buffer[..count.min(buffer.len())]);
                self.write_input();
            }
        }
    }

    pub(super) fn write_input(&mut self) {
        let Some(input) = &self.input else {
            self.input_pending.clear();
            return;
        };
        while !self.input_pending.is_empty() {
            match rustix::io::write(input, &self.input_pending) {
                Ok(written) => drop(self.input_pending.drain(..written)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => {
                    // The container closed its standard input.
                    self.input_pending.clear();
                    if !self.terminal {
                        self.input = None;
                    }
                    return;
                }
            }
        }
        let typing = self
            .attached
            .iter()
            .any(|attached| attached.stdin.is_some());
        if self.stdin_once && !self.terminal && !typing {
            self.input = None;
        }
    }

    /// Kills every process of the container's cgroup; with an own PID namespace the kernel does
    /// that when the first process dies.
    pub(super) fn kill_group(&self) -> bool {
        let mut found = false;
        for file in &self.procs {
            for pid in std::fs::read_to_string(file).unwrap_or_default().lines() {
                if let Ok(pid) = pid.parse() {
                    found = true;
                    let _ = sys::kill(pid, libc::SIGKILL);
                }
            }
        }
        found
    }
}

pub(super) fn join_group(procs: &[PathBuf], pid: sys::Pid) -> Result<(), String> {
    let text = pid.to_string();
    procs.iter().try_for_each(|file| enter(file, &text))
}

fn enter(file: &Path, pid: &str) -> Result<(), String> {
    std::fs::write(file, pid)
        .map_err(|error| format!("joining the cgroup {}: {error}", file.display()))
}

pub(super) fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) {
    let _ = rustix::io::ioctl_fionbio(fd, true);
}

pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

pub(super) fn dev_null() -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    Ok(rustix::fs::open(
        "/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Both ends of a connected pair of packet sockets.
pub(super) fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let pair = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    set_nonblocking(pair.0.as_fd());
    Ok(pair)
}
