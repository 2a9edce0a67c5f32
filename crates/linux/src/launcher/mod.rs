//! From a freshly cloned process to the container's program.
//!
//! Everything here runs in a process with one thread that the shim cloned, and ends in `execve`
//! or `_exit`. What goes wrong is told on the channel, in the words that users see.

mod rootfs;
mod user;

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use thiserror::Error;

use crate::capabilities;
use crate::spec::{CgroupView, LaunchSpec, ProcessSpec, Report, RunUser};
use crate::sys;

/// The environment alone may take a megabyte; nothing legitimate takes this much.
const MAX_SPEC_BYTES: u64 = 64 << 20;

#[derive(Debug, Error)]
#[error("{message}")]
pub(crate) struct LaunchError {
    message: String,
}

impl LaunchError {
    fn new(message: String) -> LaunchError {
        LaunchError { message }
    }
}

trait Context<T> {
    fn context(self, what: &str) -> Result<T, LaunchError>;
    fn with_context(self, what: impl FnOnce() -> String) -> Result<T, LaunchError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: &str) -> Result<T, LaunchError> {
        self.with_context(|| what.to_owned())
    }

    fn with_context(self, what: impl FnOnce() -> String) -> Result<T, LaunchError> {
        self.map_err(|error| LaunchError::new(format!("{}: {}", what(), describe(&error.into()))))
    }
}

/// The operating system's words without Rust's suffix, as users know them from elsewhere.
fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut characters = text.chars();
    characters
        .next()
        .map(|first| first.to_lowercase().chain(characters).collect())
        .unwrap_or_default()
}

/// The standard streams that the program gets; with a terminal it gets that instead.
pub(crate) enum Streams {
    Terminal,
    Files {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
}

/// Becomes the first process of a container. The caller was cloned into the container's
/// namespaces and moved into its cgroup.
pub(crate) fn run_container(spec: &Path, streams: Streams, channel: &OwnedFd) -> ! {
    let run = || -> Result<(), LaunchError> {
        prepare()?;
        let spec = read_spec(spec)?;
        if matches!(spec.cgroup, CgroupView::V2) {
            sys::unshare(libc::CLONE_NEWCGROUP).context("making a cgroup namespace")?;
        }
        rootfs::enter(&spec)?;
        become_program(&spec.process, streams, true, channel)
    };
    finish(run(), channel)
}

/// Becomes a command inside a running container. The caller was cloned into its PID namespace
/// and moved into its cgroup.
pub(crate) fn run_command(
    spec: &Path,
    container_pid: sys::Pid,
    arguments: Vec<String>,
    streams: Streams,
    channel: &OwnedFd,
) -> ! {
    let run = || -> Result<(), LaunchError> {
        prepare()?;
        let mut spec = read_spec(spec)?;
        spec.process.arguments = arguments;
        if matches!(streams, Streams::Terminal) && !has_variable(&spec.process.environment, "TERM")
        {
            spec.process.environment.push("TERM=xterm".to_owned());
        }
        let mut namespaces = vec![("mnt", libc::CLONE_NEWNS)];
        if matches!(spec.cgroup, CgroupView::V2) {
            namespaces.push(("cgroup", libc::CLONE_NEWCGROUP));
        }
        // All are opened first: after the mount namespace changed, this /proc is out of reach.
        let opened = namespaces
            .into_iter()
            .map(|(name, kind)| {
                let path = format!("/proc/{container_pid}/ns/{name}");
                let fd = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .context("container is not running")?;
                Ok((fd, kind))
            })
            .collect::<Result<Vec<_>, LaunchError>>()?;
        for (fd, kind) in opened.iter().rev() {
            sys::set_namespace(fd.as_fd(), *kind).context("joining the container's namespaces")?;
        }
        drop(opened);
        become_program(&spec.process, streams, false, channel)
    };
    finish(run(), channel)
}

fn finish(result: Result<(), LaunchError>, channel: &OwnedFd) -> ! {
    if let Err(error) = result {
        report(channel, &Report::Error(error.message), None);
    }
    sys::exit_now(127)
}

/// Tells the shim. If it is gone there is nobody to tell.
fn report(channel: &OwnedFd, report: &Report, fd: Option<BorrowedFd<'_>>) {
    if let Ok(bytes) = serde_json::to_vec(report) {
        let _ = crate::shim::protocol::send(channel.as_fd(), &bytes, fd.as_slice());
    }
}

fn prepare() -> Result<(), LaunchError> {
    // Nobody in the container may look into this process before it is the program: it still has
    // the host's view and its executable is the host's.
    sys::set_undumpable().context("closing /proc/self")?;
    sys::reset_signals();
    sys::join_new_keyring();
    rustix::process::setsid().context("making a session")?;
    rustix::process::umask(Mode::empty());
    Ok(())
}

fn read_spec(path: &Path) -> Result<LaunchSpec, LaunchError> {
    let bytes =
        sys::read_bounded(path, MAX_SPEC_BYTES).context("reading the container's specification")?;
    serde_json::from_slice(&bytes).map_err(|error| {
        LaunchError::new(format!("reading the container's specification: {error}"))
    })
}

fn become_program(
    process: &ProcessSpec,
    streams: Streams,
    console: bool,
    channel: &OwnedFd,
) -> Result<(), LaunchError> {
    // Lowering needs a privilege that not every machine grants; the container runs nevertheless.
    let _ = std::fs::write(
        "/proc/self/oom_score_adj",
        process.oom_score_adj.to_string(),
    );
    install_streams(streams, console, channel)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));

    let account = user::resolve(&process.user)?;
    let mut environment = process.environment.clone();
    if !has_variable(&environment, "HOME") {
        environment.push(format!("HOME={}", account.home));
    }
    let entered = enter_directory(&process.working_directory);
    own_streams(account.run_as.uid);
    report(channel, &Report::User(account.run_as.clone()), None);

    // Without no_new_privs the filter needs a privilege that is about to go.
    if let Some(program) = &process.seccomp
        && !process.no_new_privs
    {
        sys::install_seccomp(program).context("installing the seccomp filter")?;
    }
    take_identity(&account.run_as, process.capabilities)?;
    if entered.is_err() {
        // A directory closed to root (a network share) may be open to the user.
        let directory = &process.working_directory;
        rustix::process::chdir(directory.as_str())
            .with_context(|| format!("chdir to cwd ({directory:?}) failed"))?;
    }
    let program = find_program(&process.arguments, &environment)?;
    let arguments = c_strings(&process.arguments)?;
    let environment = c_strings(&environment)?;
    let path = sys::c_string(program.as_os_str()).context("naming the program")?;
    sys::close_on_exec_from(3).context("closing descriptors")?;
    if process.no_new_privs {
        sys::set_no_new_privs().context("setting no_new_privs")?;
        if let Some(filter) = &process.seccomp {
            sys::install_seccomp(filter).context("installing the seccomp filter")?;
        }
    }
    // Last, because every change of credentials clears it.
    let _ = sys::set_parent_death_kill();
    let error = sys::execute(&path, &arguments, &environment);
    Err(LaunchError::new(format!(
        "exec {}: {}",
        program.display(),
        describe(&error)
    )))
}

fn has_variable(environment: &[String], name: &str) -> bool {
    environment
        .iter()
        .any(|entry| entry.split_once('=').is_some_and(|(key, _)| key == name))
}

fn c_strings(strings: &[String]) -> Result<Vec<CString>, LaunchError> {
    strings
        .iter()
        .map(|text| sys::c_string(OsStr::new(text)).context("an argument or variable"))
        .collect()
}

fn install_streams(streams: Streams, console: bool, channel: &OwnedFd) -> Result<(), LaunchError> {
    match streams {
        Streams::Files {
            stdin,
            stdout,
            stderr,
        } => {
            // The three may themselves be numbered 0 to 2 in another order.
            let high = [stdin, stdout, stderr]
                .iter()
                .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3))
                .collect::<Result<Vec<_>, _>>()
                .context("duplicating a stream")?;
            for (fd, target) in high.iter().zip(0..) {
                sys::duplicate_to(fd.as_fd(), target).context("installing a stream")?;
            }
        }
        Streams::Terminal => {
            let master = rustix::fs::open(
                "/dev/pts/ptmx",
                OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .context("opening a terminal")?;
            rustix::pty::unlockpt(&master).context("unlocking the terminal")?;
            let slave = sys::open_terminal_peer(master.as_fd())
                .context("opening the terminal's other side")?;
            if console {
                mount_console(&master)?;
            }
            sys::set_controlling_terminal(slave.as_fd()).context("taking the terminal")?;
            report(channel, &Report::Terminal, Some(master.as_fd()));
            for target in 0..3 {
                sys::duplicate_to(slave.as_fd(), target).context("installing the terminal")?;
            }
        }
    }
    Ok(())
}

fn mount_console(master: &OwnedFd) -> Result<(), LaunchError> {
    let name = rustix::pty::ptsname(master, Vec::new()).context("naming the terminal")?;
    let flags =
        OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY | OFlags::NOCTTY;
    // With the host's /dev mounted there is a console already, and it stays the host's.
    let Ok(place) = rustix::fs::open("/dev/console", flags, Mode::from_raw_mode(0o600)) else {
        return Ok(());
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, name.as_c_str(), flags)
        .context("mounting the console")?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree.as_fd(), "", place.as_fd(), "", flags)
        .context("mounting the console")
}

/// `/dev/stdout` is opened again by many programs, which a pipe owned by root refuses to others.
fn own_streams(uid: u32) {
    if uid == 0 {
        return;
    }
    for fd in [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ] {
        let Ok(stat) = rustix::fs::fstat(fd) else {
            continue;
        };
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        let terminal = kind == rustix::fs::FileType::CharacterDevice && rustix::termios::isatty(fd);
        if kind == rustix::fs::FileType::Fifo || kind == rustix::fs::FileType::Socket || terminal {
            // A file system that refuses leaves the stream as it is.
            let _ = rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None);
        }
    }
}

fn enter_directory(directory: &str) -> Result<(), LaunchError> {
    if !Path::new(directory).exists() {
        // A read-only root refuses; entering then tells why.
        let _ = std::fs::create_dir_all(directory);
    }
    rustix::process::chdir(directory)
        .with_context(|| format!("chdir to cwd ({directory:?}) failed"))
}

fn take_identity(user: &RunUser, wanted: u64) -> Result<(), LaunchError> {
    let mut held = 0u64;
    for number in 0..64 {
        if !sys::has_bounding_capability(number) {
            continue;
        }
        if number <= capabilities::LAST && wanted & 1 << number != 0 {
            held |= 1 << number;
        } else {
            sys::drop_bounding_capability(number).context("dropping a capability")?;
        }
    }
    sys::set_keep_capabilities(true).context("keeping capabilities")?;
    sys::set_groups(&user.groups).context("setting the groups")?;
    sys::set_gid(user.gid).context("setting the group")?;
    sys::set_uid(user.uid).context("setting the user")?;
    sys::set_keep_capabilities(false).context("keeping capabilities")?;
    let _ = sys::clear_ambient_capabilities();
    sys::set_capabilities(held, held, 0).context("setting capabilities")
}

/// The file that runs for `arguments[0]`, looked for as a shell would.
fn find_program(arguments: &[String], environment: &[String]) -> Result<PathBuf, LaunchError> {
    let Some(name) = arguments.first().filter(|name| !name.is_empty()) else {
        return Err(LaunchError::new("no command specified".to_owned()));
    };
    if name.contains('/') {
        let path = PathBuf::from(name);
        let metadata = std::fs::metadata(&path).map_err(|error| {
            LaunchError::new(format!("exec: {name:?}: stat {name}: {}", describe(&error)))
        })?;
        if metadata.is_dir() {
            return Err(LaunchError::new(format!("exec: {name:?}: is a directory")));
        }
        if metadata.permissions().mode() & 0o111 == 0 {
            return Err(LaunchError::new(format!(
                "exec: {name:?}: permission denied"
            )));
        }
        return Ok(path);
    }
    let path = environment
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or("");
    path.split(':')
        .map(|directory| Path::new(if directory.is_empty() { "." } else { directory }).join(name))
        .find(|candidate| {
            std::fs::metadata(candidate).is_ok_and(|metadata| {
                metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
            })
        })
        .ok_or_else(|| {
            LaunchError::new(format!(
                "exec: {name:?}: executable file not found in $PATH"
            ))
        })
}

/// Waits until the parent has put this process where it belongs. `false`: the parent is gone.
pub(crate) fn wait_for_go(channel: &OwnedFd) -> bool {
    let mut byte = [0u8; 1];
    debug_assert!(channel.as_raw_fd() >= 0);
    matches!(rustix::io::read(channel, &mut byte), Ok(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_programs_are_named_as_users_know_it() {
        let arguments = |name: &str| vec![name.to_owned()];
        let path = ["PATH=/nonexistent:/bin".to_owned()];
        let error = find_program(&arguments("no-such-program"), &path)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "exec: \"no-such-program\": executable file not found in $PATH"
        );
        let error = find_program(&arguments("/no/such"), &path)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "exec: \"/no/such\": stat /no/such: no such file or directory"
        );
        let error = find_program(&arguments("/etc"), &path)
            .unwrap_err()
            .to_string();
        assert_eq!(error, "exec: \"/etc\": is a directory");
        assert_eq!(
            find_program(&arguments("sh"), &path).unwrap(),
            Path::new("/bin/sh")
        );
        assert_eq!(
            find_program(&[], &path).unwrap_err().to_string(),
            "no command specified"
        );
    }
}
