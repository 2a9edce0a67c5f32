//! The shim: one small process for each pod, which outlives the server.
//!
//! It is this same binary, cloned from a process started with [`SHIM_ARGUMENT`]. It lives in the pod's network,
//! IPC and UTS namespaces and so holds them; it is the parent of every process the runtime
//! starts in the pod, owns their streams and logs, and reports how they end. It has one thread,
//! so it may clone itself, and it does little, so it stays small: what is heavy happens in the
//! processes it clones, before they become something else.

mod container;
mod log;
pub(crate) mod protocol;
mod server;

pub use log::LogLimits;
pub(crate) mod template;

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use thiserror::Error;

use self::protocol::ShimConfig;
use self::server::Server;
use self::template::Birth;
use crate::sys;

/// The first argument that makes this binary a shim.
pub const SHIM_ARGUMENT: &str = "__shim";

/// What the shim writes on its standard output when it listens; the pid follows.
pub(crate) const READY: &str = "ready ";

const MAX_CONFIG_BYTES: u64 = 1 << 20;

#[derive(Debug, Error)]
enum ShimError {
    #[error("reading the configuration")]
    Config(#[source] io::Error),
    #[error("decoding the configuration")]
    Decode(#[source] serde_json::Error),
    #[error("{0}")]
    Setup(String, #[source] io::Error),
}

fn setup<T>(what: &str, result: io::Result<T>) -> Result<T, ShimError> {
    result.map_err(|error| ShimError::Setup(what.to_owned(), error))
}

/// Runs the process that shims are cloned from, and in its clones the shims. Never returns. Must
/// be called before the process has a second thread. `arguments` are those after
/// [`SHIM_ARGUMENT`]; a shim takes none, its orders come on the standard input.
pub fn shim_main<S: AsRef<OsStr>>(arguments: &[S]) -> ! {
    if let Some(argument) = arguments.first() {
        let _ = writeln!(io::stderr(), "unexpected argument {:?}", argument.as_ref());
        sys::exit_now(2)
    }
    let code = match template::serve() {
        Ok(None) => 0,
        Ok(Some(birth)) => live(birth),
        Err(error) => {
            let _ = writeln!(io::stderr(), "{}", describe(&error));
            1
        }
    };
    sys::exit_now(code)
}

fn live(birth: Birth) -> i32 {
    let Birth { order, report } = birth;
    let started = redirect(&order.log, &report).and_then(|()| {
        drop(report);
        start(&order.config)
    });
    match started {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stdout(), "error {}", describe(&error));
            1
        }
    }
}

fn describe(error: &ShimError) -> String {
    let cause = std::error::Error::source(error)
        .map(|cause| format!(": {cause}"))
        .unwrap_or_default();
    format!("{error}{cause}")
}

/// The standard streams of a shim that starts: nothing to read, its report, its log.
fn redirect(log: &Path, report: &OwnedFd) -> Result<(), ShimError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
    let log = setup(
        "opening the log",
        rustix::fs::open(log, flags, Mode::from_raw_mode(0o600)).map_err(io::Error::from),
    )?;
    let null = setup("opening /dev/null", container::dev_null())?;
    for (fd, target) in [(&null, 0), (report, 1), (&log, 2)] {
        setup(
            "installing the standard streams",
            sys::duplicate_to(fd.as_fd(), target),
        )?;
    }
    Ok(())
}

fn start(path: &Path) -> Result<(), ShimError> {
    let bytes = sys::read_bounded(path, MAX_CONFIG_BYTES).map_err(ShimError::Config)?;
    let config: ShimConfig = serde_json::from_slice(&bytes).map_err(ShimError::Decode)?;

    setup(
        "making a session",
        rustix::process::setsid().map_err(io::Error::from),
    )?;
    setup("becoming a subreaper", sys::set_child_subreaper())?;
    for procs in &config.procs {
        setup(
            "leaving the server's cgroup",
            std::fs::write(procs, std::process::id().to_string()),
        )?;
    }
    // The last to be killed when memory runs out; a machine that refuses is obeyed.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-998");
    enter_namespaces(&config)?;
    let pod_pids = if config.share_pid {
        Some(start_reaper()?)
    } else {
        None
    };
    let signals = setup(
        "watching signals",
        sys::signal_fd(&[
            libc::SIGCHLD,
            libc::SIGTERM,
            libc::SIGINT,
            libc::SIGHUP,
            libc::SIGPIPE,
        ]),
    )?;
    let listener = setup("listening", listen(&config.socket))?;
    let own_pids = setup("opening a namespace", open_readonly("/proc/self/ns/pid"))?;

    let mut out = io::stdout();
    let ready = writeln!(out, "{READY}{}", std::process::id()).and_then(|()| out.flush());
    let handed_over = setup("reporting", ready)
        .and_then(|()| setup("closing the standard streams", close_streams()));
    if handed_over.is_err() {
        // The server has ended meanwhile: a shim that it never heard of has no pod to serve.
        let _ = std::fs::remove_file(&config.socket);
    }
    handed_over?;
    Server::new(config.socket, listener, signals, own_pids, pod_pids).run();
    Ok(())
}

fn enter_namespaces(config: &ShimConfig) -> Result<(), ShimError> {
    let mut kinds = 0;
    for (wanted, kind) in [
        (config.own_network, libc::CLONE_NEWNET),
        (config.own_ipc, libc::CLONE_NEWIPC),
        (config.own_hostname.is_some(), libc::CLONE_NEWUTS),
    ] {
        if wanted {
            kinds |= kind;
        }
    }
    setup("making the pod's namespaces", sys::unshare(kinds))?;
    if config.own_network {
        setup(
            "bringing the loopback interface up",
            sys::bring_loopback_up(),
        )?;
    }
    if let Some(name) = &config.own_hostname {
        setup("setting the host name", sys::set_host_name(name))?;
    }
    for (path, value) in &config.sysctls {
        let written = std::fs::write(Path::new("/proc/sys").join(path), value);
        setup(
            &format!("setting the sysctl {:?}", path.replace('/', ".")),
            written,
        )?;
    }
    Ok(())
}

/// The first process of the pod's PID namespace; gives the namespace.
fn start_reaper() -> Result<(sys::Pid, OwnedFd), ShimError> {
    let (armed, arm) = setup("making a pipe", container::pipe())?;
    match setup(
        "making the pod's PID namespace",
        sys::clone_process(libc::CLONE_NEWPID),
    )? {
        Some(pid) => {
            drop(arm);
            // A shim that ended before the reaper would die with it would leave it behind.
            let mut byte = [0];
            let read = rustix::io::read(&armed, &mut byte).map_err(io::Error::from);
            if setup("waiting for the pod's first process", read)? == 0 {
                let ended = io::Error::from(io::ErrorKind::UnexpectedEof);
                return setup("starting the pod's first process", Err(ended));
            }
            let namespace = setup(
                "opening the pod's PID namespace",
                open_readonly(&format!("/proc/{pid}/ns/pid")),
            )?;
            Ok((pid, namespace))
        }
        None => {
            let _ = sys::set_undumpable();
            let _ = sys::set_parent_death_kill();
            drop(armed);
            // Its reader is the shim alone: without it the shim is gone already.
            if rustix::io::write(&arm, &[1]).is_err() {
                sys::exit_now(0)
            }
            drop(arm);
            for fd in 0..64 {
                sys::close_raw(fd);
            }
            sys::reap_forever()
        }
    }
}

fn open_readonly(path: &str) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

fn listen(path: &Path) -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let _ = std::fs::remove_file(path);
    rustix::process::umask(Mode::from_raw_mode(0o177));
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    // States and logs are the node's alone; a container's process sets its own mask.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    rustix::net::listen(&socket, 128)?;
    Ok(socket)
}

/// The parent's pipe must close, so that it knows that no more comes.
fn close_streams() -> io::Result<()> {
    let null = container::dev_null()?;
    for target in 0..3 {
        sys::duplicate_to(null.as_fd(), target)?;
    }
    Ok(())
}
