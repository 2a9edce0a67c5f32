//! System calls that `rustix` does not wrap, or wraps for threads where we mean the process.
//!
//! The functions that change the calling process (credentials, namespaces, filters) act on the
//! calling thread alone; the shim and what it clones have one thread, so that is the process.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub(crate) type Pid = i32;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn check_long(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

pub(crate) fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "a NUL byte in a string for the kernel",
        )
    })
}

/// Clones the calling process into new namespaces. `None` is the child.
///
/// The raw call skips the C library's fork handlers; they exist for locks that other threads
/// hold, so the caller must have one thread only.
pub(crate) fn clone_process(namespaces: libc::c_int) -> io::Result<Option<Pid>> {
    debug_assert_eq!(namespaces & (libc::CLONE_VM | libc::CLONE_THREAD), 0);
    let flags = libc::c_long::from(namespaces | libc::SIGCHLD);
    // SAFETY: without CLONE_VM the child has its own copy of the memory and continues on the
    // same stack address; all pointer arguments are null.
    let pid = check_long(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })?;
    Ok(if pid == 0 { None } else { Some(pid as Pid) })
}

pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process without running destructors, which a cloned child must not run.
    unsafe { libc::_exit(code) }
}

pub(crate) fn set_namespace(fd: BorrowedFd<'_>, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::setns(fd.as_raw_fd(), kind) }).map(drop)
}

pub(crate) fn unshare(kinds: libc::c_int) -> io::Result<()> {
    // SAFETY: plain integers; the caller has one thread.
    check(unsafe { libc::unshare(kinds) }).map(drop)
}

fn prctl(option: libc::c_int, a: libc::c_ulong, b: libc::c_ulong) -> io::Result<libc::c_int> {
    // SAFETY: only options without pointer arguments are passed by this module's callers.
    check(unsafe { libc::prctl(option, a, b, 0 as libc::c_ulong, 0 as libc::c_ulong) })
}

pub(crate) fn set_child_subreaper() -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).map(drop)
}

/// The process gets SIGKILL when its parent dies. Changing credentials clears this.
pub(crate) fn set_parent_death_kill() -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0).map(drop)
}

/// Keeps `/proc/<pid>` of this process closed to others, until the next exec.
pub(crate) fn set_undumpable() -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, 0, 0).map(drop)
}

pub(crate) fn set_no_new_privs() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop)
}

pub(crate) fn set_keep_capabilities(keep: bool) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(keep), 0).map(drop)
}

pub(crate) fn drop_bounding_capability(number: u32) -> io::Result<()> {
    prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0).map(drop)
}

pub(crate) fn has_bounding_capability(number: u32) -> bool {
    matches!(
        prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(number), 0),
        Ok(1)
    )
}

pub(crate) fn clear_ambient_capabilities() -> io::Result<()> {
    prctl(
        libc::PR_CAP_AMBIENT,
        libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong,
        0,
    )
    .map(drop)
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Sets the three classic sets of the calling thread; bit `n` is capability `n`.
pub(crate) fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let half = |shift: u32| CapabilityData {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: both pointers are to live values of the layout that version 3 asks for.
    check_long(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })
        .map(drop)
}

pub(crate) fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length are of one live slice.
    check_long(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })
        .map(drop)
}

pub(crate) fn set_gid(gid: u32) -> io::Result<()> {
    // SAFETY: plain integers; the raw call acts on this thread, which is the whole process.
    check_long(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

pub(crate) fn set_uid(uid: u32) -> io::Result<()> {
    // SAFETY: plain integers; the raw call acts on this thread, which is the whole process.
    check_long(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

/// Installs a classic BPF program as this process's system-call filter, for good.
pub(crate) fn install_seccomp(program: &[u64]) -> io::Result<()> {
    let filters: Vec<libc::sock_filter> = program
        .iter()
        .map(|word| libc::sock_filter {
            code: (word >> 48) as u16,
            jt: (word >> 40) as u8,
            jf: (word >> 32) as u8,
            k: *word as u32,
        })
        .collect();
    let len = u16::try_from(filters.len()).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "the seccomp program is too long",
        )
    })?;
    let program = libc::sock_fprog {
        len,
        filter: filters.as_ptr().cast_mut(),
    };
    const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
    // SAFETY: the program points to `filters`, which lives until the call returns; the kernel copies it.
    check_long(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    })
    .map(drop)
}

/// Blocks these signals for the process and gives a descriptor that reads them.
pub(crate) fn signal_fd(signals: &[libc::c_int]) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before use; the new descriptor is ours.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        check(libc::sigprocmask(
            libc::SIG_BLOCK,
            &set,
            std::ptr::null_mut(),
        ))?;
        let fd = check(libc::signalfd(
            -1,
            &set,
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        ))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Signal mask and dispositions as a program expects them at its start.
pub(crate) fn reset_signals() {
    // SAFETY: the set is initialised; SIG_DFL is a valid disposition for every signal, and the
    // ones that cannot be changed report an error that does not matter.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// Children of this process are reaped by the kernel. Programs inherit this; see [`reset_signals`].
pub(crate) fn ignore_children() {
    // SAFETY: ignoring is a valid disposition of this signal.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Waits for a signal for ever, reaping children: the life of a PID namespace's first process.
pub(crate) fn reap_forever() -> ! {
    // SAFETY: the set is initialised; null pointers are allowed where they are passed.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
        loop {
            let mut signal = 0;
            libc::sigwait(&set, &mut signal);
            if signal == libc::SIGTERM || signal == libc::SIGINT {
                libc::_exit(0);
            }
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Code(i32),
    Signal(i32),
}

/// Reaps one ended child, if there is one.
pub(crate) fn reap() -> Option<(Pid, Ended)> {
    let mut status = 0;
    // SAFETY: the pointer is to a live integer.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    if pid <= 0 {
        return None;
    }
    let ended = if libc::WIFSIGNALED(status) {
        Ended::Signal(libc::WTERMSIG(status))
    } else {
        Ended::Code(libc::WEXITSTATUS(status))
    };
    Some((pid, ended))
}

pub(crate) fn kill(pid: Pid, signal: libc::c_int) -> io::Result<()> {
    // A pid of 0 or below would mean a group of processes.
    if pid <= 0 {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: plain integers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Replaces the process; returns only on failure.
pub(crate) fn execute(
    program: &CString,
    arguments: &[CString],
    environment: &[CString],
) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings
            .iter()
            .map(|s| s.as_ptr())
            .chain(std::iter::once(std::ptr::null()))
            .collect()
    };
    let (argv, envp) = (pointers(arguments), pointers(environment));
    // SAFETY: null-terminated arrays of pointers to strings that outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Marks every descriptor from `first` up to be closed on exec.
pub(crate) fn close_on_exec_from(first: libc::c_uint) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: plain integers.
    check_long(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            CLOSE_RANGE_CLOEXEC,
        )
    })
    .map(drop)
}

/// Makes `fd` the descriptor `target`, which survives exec.
pub(crate) fn duplicate_to(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == target {
        // SAFETY: plain integers; clears close-on-exec.
        return check(unsafe { libc::fcntl(target, libc::F_SETFD, 0) }).map(drop);
    }
    // SAFETY: plain integers; the callers replace only descriptors 0, 1 and 2.
    check(unsafe { libc::dup2(fd.as_raw_fd(), target) }).map(drop)
}

/// Closes a descriptor that no `OwnedFd` of this process stands for.
pub(crate) fn close_raw(fd: RawFd) {
    // SAFETY: a bad number is an ignored error.
    unsafe { libc::close(fd) };
}

/// A new session whose controlling terminal is `terminal`.
pub(crate) fn set_controlling_terminal(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes an integer.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// A fresh session keyring, so that a container does not see the keys of who started it.
pub(crate) fn join_new_keyring() {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring. Kernels without keyrings refuse; then
    // there is nothing to hide.
    unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    };
}

/// Brings the loopback interface of the current network namespace up.
pub(crate) fn bring_loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: an all-zero ifreq is valid; the name is NUL-terminated by the zeroes; the request
    // reads and writes that ifreq only.
    unsafe {
        let mut request = std::mem::zeroed::<libc::ifreq>();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        check(libc::ioctl(
            socket.as_fd().as_raw_fd(),
            libc::SIOCGIFFLAGS,
            &mut request,
        ))?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        check(libc::ioctl(
            socket.as_fd().as_raw_fd(),
            libc::SIOCSIFFLAGS,
            &request,
        ))?;
    }
    Ok(())
}

#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

pub(crate) const MOUNT_READONLY: u64 = 0x1;
pub(crate) const MOUNT_NOSUID: u64 = 0x2;
pub(crate) const MOUNT_NODEV: u64 = 0x4;
pub(crate) const MOUNT_NOEXEC: u64 = 0x8;

/// Changes attributes and propagation of a mount, or with `recursive` of the tree below too.
pub(crate) fn set_mount_attributes(
    mount: BorrowedFd<'_>,
    set: u64,
    propagation: libc::c_ulong,
    recursive: bool,
) -> io::Result<()> {
    let attributes = MountAttributes {
        set,
        clear: 0,
        propagation,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, the structure lives through the call and its size is given.
    check_long(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            std::mem::size_of::<MountAttributes>(),
        )
    })
    .map(drop)
}

/// Makes a device node or another special file; the mode carries the type.
pub(crate) fn make_node(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    mode: u32,
    device: u64,
) -> io::Result<()> {
    let name = c_string(name)?;
    // SAFETY: the name is a live C string.
    check(unsafe { libc::mknodat(directory.as_raw_fd(), name.as_ptr(), mode, device) }).map(drop)
}

/// The open pseudo-terminal's slave, opened without a path.
pub(crate) fn open_terminal_peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const TIOCGPTPEER: libc::c_ulong = 0x5441;
    // SAFETY: the request takes open flags and gives a new descriptor, which is ours.
    unsafe {
        let fd = check(libc::ioctl(
            master.as_raw_fd(),
            TIOCGPTPEER as _,
            libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
        ))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

pub(crate) fn set_terminal_size(
    terminal: BorrowedFd<'_>,
    columns: u16,
    rows: u16,
) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the request reads the structure only.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

pub(crate) fn set_host_name(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length are of one live string.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Attaches a device filter to a cgroup v2 directory. The program is eBPF instructions.
pub(crate) fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    instructions: &[u64],
) -> io::Result<()> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;

    #[repr(C)]
    #[derive(Default)]
    struct Load {
        program_type: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buffer: u64,
        kernel_version: u32,
        flags: u32,
    }
    #[repr(C)]
    struct Attach {
        target_fd: u32,
        program_fd: u32,
        attach_type: u32,
        flags: u32,
    }
    let load = Load {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"Apache".as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: the structures live through the calls, their sizes are given, and the new
    // descriptor is ours.
    unsafe {
        let fd = check_long(libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const load,
            std::mem::size_of::<Load>(),
        ))?;
        let program = OwnedFd::from_raw_fd(fd as RawFd);
        let attach = Attach {
            target_fd: cgroup.as_raw_fd() as u32,
            program_fd: program.as_raw_fd() as u32,
            attach_type: BPF_CGROUP_DEVICE,
            flags: BPF_F_ALLOW_MULTI,
        };
        check_long(libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attach,
            std::mem::size_of::<Attach>(),
        ))?;
    }
    Ok(())
}

/// Changes owner of what the descriptor stands for, also when it was opened as a path only.
pub(crate) fn change_owner(
    fd: BorrowedFd<'_>,
    uid: Option<u32>,
    gid: Option<u32>,
) -> io::Result<()> {
    let keep = libc::uid_t::MAX;
    // SAFETY: the path is an empty C string.
    check(unsafe {
        libc::fchownat(
            fd.as_raw_fd(),
            c"".as_ptr(),
            uid.unwrap_or(keep),
            gid.unwrap_or(keep),
            libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW,
        )
    })
    .map(drop)
}

/// When a process started, in clock ticks since boot: with the pid, its identity.
pub(crate) fn start_time(pid: Pid) -> Option<u64> {
    process_field(pid, 21)
}

pub(crate) fn parent(pid: Pid) -> Option<Pid> {
    process_field(pid, 3)
}

/// A field of `/proc/<pid>/stat`, counted from zero as proc(5) lists them; `None` for what has
/// ended.
fn process_field<T: std::str::FromStr>(pid: Pid, index: usize) -> Option<T> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold spaces and parentheses; fields count from after the last one.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(index.checked_sub(3)?)?.parse().ok()
}

/// Reads at most `limit` bytes of a file.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(limit)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Watches a descriptor for readiness. Must be called within the async runtime.
pub(crate) fn watch_readiness(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays open and the same until it is dropped, which the AsyncFd owns.
    unsafe { tokio::io::unix::AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// Opens a path without leaving `root`. A mount or rename elsewhere on the machine at the same
/// moment makes the kernel unsure whether `..` left the root, so it asks to try again.
pub(crate) fn open_confined(
    root: BorrowedFd<'_>,
    path: &Path,
    resolve: rustix::fs::ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    const ATTEMPTS: u32 = 10_000;
    let mut attempt = 0;
    loop {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Err(rustix::io::Errno::AGAIN) if attempt < ATTEMPTS => attempt += 1,
            result => return result,
        }
    }
}
