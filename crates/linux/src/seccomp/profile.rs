//! The `RuntimeDefault` profile: what the container runtimes of Kubernetes nodes agree to allow.

use std::collections::BTreeMap;

use super::program::Comparison::{Equal, MaskedEqual, NotEqual};
use super::{Action, Condition, Profile, Rule, syscalls};
use crate::capabilities;

/// Allowed to everyone, whatever the arguments.
#[rustfmt::skip]
const ALWAYS: &[&str] = &[
    "accept", "accept4", "access", "adjtimex", "alarm", "arch_prctl", "bind", "brk", "cachestat", "capget",
    "capset", "chdir", "chmod", "chown", "clock_adjtime", "clock_getres", "clock_gettime", "clock_nanosleep",
    "close", "close_range", "connect", "copy_file_range", "creat", "dup", "dup2", "dup3", "epoll_create",
    "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2", "epoll_wait",
    "epoll_wait_old", "eventfd", "eventfd2", "execve", "execveat", "exit", "exit_group", "faccessat",
    "faccessat2", "fadvise64", "fallocate", "fanotify_mark", "fchdir", "fchmod", "fchmodat", "fchmodat2",
    "fchown", "fchownat", "fcntl", "fdatasync", "fgetxattr", "flistxattr", "flock", "fork", "fremovexattr",
    "fsetxattr", "fstat", "fstatfs", "fsync", "ftruncate", "futex", "futex_requeue", "futex_wait",
    "futex_waitv", "futex_wake", "futimesat", "getcpu", "getcwd", "getdents", "getdents64", "getegid",
    "geteuid", "getgid", "getgroups", "getitimer", "getpeername", "getpgid", "getpgrp", "getpid", "getppid",
    "getpriority", "getrandom", "getresgid", "getresuid", "getrlimit", "get_robust_list", "getrusage",
    "getsid", "getsockname", "getsockopt", "get_thread_area", "gettid", "gettimeofday", "getuid", "getxattr",
    "getxattrat", "inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch", "io_cancel",
    "ioctl", "io_destroy", "io_getevents", "io_pgetevents", "ioprio_get", "ioprio_set", "io_setup",
    "io_submit", "kill", "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "lchown",
    "lgetxattr", "link", "linkat", "listen", "listmount", "listxattr", "listxattrat", "llistxattr",
    "lremovexattr", "lseek", "lsetxattr", "lstat", "madvise", "map_shadow_stack", "membarrier",
    "memfd_create", "memfd_secret", "mincore", "mkdir", "mkdirat", "mknod", "mknodat", "mlock", "mlock2",
    "mlockall", "mmap", "modify_ldt", "mprotect", "mq_getsetattr", "mq_notify", "mq_open",
    "mq_timedreceive", "mq_timedsend", "mq_unlink", "mremap", "mseal", "msgctl", "msgget", "msgrcv",
    "msgsnd", "msync", "munlock", "munlockall", "munmap", "name_to_handle_at", "nanosleep", "newfstatat",
    "open", "openat", "openat2", "pause", "pidfd_open", "pidfd_send_signal", "pipe", "pipe2", "pkey_alloc",
    "pkey_free", "pkey_mprotect", "poll", "ppoll", "prctl", "pread64", "preadv", "preadv2", "prlimit64",
    "process_mrelease", "process_vm_readv", "process_vm_writev", "pselect6", "ptrace", "pwrite64",
    "pwritev", "pwritev2", "read", "readahead", "readlink", "readlinkat", "readv", "recvfrom", "recvmmsg",
    "recvmsg", "remap_file_pages", "removexattr", "removexattrat", "rename", "renameat", "renameat2",
    "restart_syscall", "rmdir", "rseq", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo",
    "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_tgsigqueueinfo", "sched_getaffinity",
    "sched_getattr", "sched_getparam", "sched_get_priority_max", "sched_get_priority_min",
    "sched_getscheduler", "sched_rr_get_interval", "sched_setaffinity", "sched_setattr", "sched_setparam",
    "sched_setscheduler", "sched_yield", "seccomp", "select", "semctl", "semget", "semop", "semtimedop",
    "sendfile", "sendmmsg", "sendmsg", "sendto", "setfsgid", "setfsuid", "setgid", "setgroups", "setitimer",
    "setpgid", "setpriority", "setregid", "setresgid", "setresuid", "setreuid", "setrlimit",
    "set_robust_list", "setsid", "setsockopt", "set_thread_area", "set_tid_address", "setuid", "setxattr",
    "setxattrat", "shmat", "shmctl", "shmdt", "shmget", "shutdown", "sigaltstack", "signalfd", "signalfd4",
    "socketpair", "splice", "stat", "statfs", "statmount", "statx", "symlink", "symlinkat", "sync",
    "sync_file_range", "syncfs", "sysinfo", "tee", "tgkill", "time", "timer_create", "timer_delete",
    "timer_getoverrun", "timer_gettime", "timer_settime", "timerfd_create", "timerfd_gettime",
    "timerfd_settime", "times", "tkill", "truncate", "umask", "uname", "unlink", "unlinkat", "uretprobe",
    "utime", "utimensat", "utimes", "vfork", "vmsplice", "wait4", "waitid", "write", "writev",
];

/// Opened by a capability that makes the call harmless to allow, because it may do it anyway.
#[rustfmt::skip]
const BY_CAPABILITY: &[(&str, &[&str])] = &[
    ("DAC_READ_SEARCH", &["open_by_handle_at"]),
    ("SYS_ADMIN", &[
        "bpf", "clone", "clone3", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "lookup_dcookie",
        "lsm_get_self_attr", "lsm_list_modules", "lsm_set_self_attr", "mount", "mount_setattr", "move_mount",
        "open_tree", "perf_event_open", "quotactl", "quotactl_fd", "setdomainname", "sethostname", "setns",
        "syslog", "umount2", "unshare",
    ]),
    ("SYS_BOOT", &["reboot"]),
    ("SYS_CHROOT", &["chroot"]),
    ("SYS_MODULE", &["delete_module", "init_module", "finit_module"]),
    ("SYS_PACCT", &["acct"]),
    ("SYS_PTRACE", &["kcmp", "pidfd_getfd", "process_madvise"]),
    ("SYS_RAWIO", &["iopl", "ioperm"]),
    ("SYS_TIME", &["settimeofday", "clock_settime"]),
    ("SYS_TTY_CONFIG", &["vhangup"]),
    ("SYS_NICE", &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    ("SYSLOG", &["syslog"]),
    ("BPF", &["bpf"]),
    ("PERFMON", &["perf_event_open"]),
];

/// `CLONE_NEW*` but the time namespace, which has no bit of its own in `clone`.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// Sockets of the hypervisor are not namespaced, so a container could speak to the host's.
const AF_VSOCK: u64 = 40;

pub(super) fn runtime_default(capability_set: u64) -> Profile {
    let mut rules: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    let mut add = |name: &str, action: Action, conditions: Vec<Condition>| {
        if let Some(number) = syscalls::number(name) {
            rules
                .entry(number)
                .or_default()
                .push(Rule { action, conditions });
        }
    };
    for name in ALWAYS {
        add(name, Action::Allow, Vec::new());
    }
    for (capability, names) in BY_CAPABILITY {
        if capabilities::number(capability).is_some_and(|number| capability_set & 1 << number != 0)
        {
            for name in *names {
                add(name, Action::Allow, Vec::new());
            }
        }
    }
    let first = |comparison, value| {
        vec![Condition {
            argument: 0,
            comparison,
            value,
        }]
    };
    for persona in PERSONALITIES {
        add("personality", Action::Allow, first(Equal, persona));
    }
    add("socket", Action::Allow, first(NotEqual, AF_VSOCK));
    add(
        "clone",
        Action::Allow,
        first(MaskedEqual(NEW_NAMESPACES), 0),
    );
    // Its flags are behind a pointer that a filter cannot read; "no such call" makes the C
    // libraries fall back to clone.
    add("clone3", Action::Errno(libc::ENOSYS as u16), Vec::new());
    Profile {
        default: Action::Errno(libc::EPERM as u16),
        rules,
    }
}

#[cfg(test)]
mod tests {
    use super::super::program::tests::run;
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;

    fn answer(capabilities: u64, number: libc::c_long, first: u64) -> u32 {
        run(
            &runtime_default(capabilities).assemble(),
            number as u32,
            [first, 0, 0, 0, 0, 0],
        )
    }

    #[test]
    fn a_plain_container_cannot_make_namespaces_or_mounts() {
        assert_eq!(answer(0, libc::SYS_read, 0), ALLOW);
        assert_eq!(answer(0, libc::SYS_mount, 0), EPERM);
        assert_eq!(answer(0, libc::SYS_unshare, 0), EPERM);
        assert_eq!(
            answer(0, libc::SYS_clone, libc::CLONE_NEWUSER as u64),
            EPERM
        );
        assert_eq!(answer(0, libc::SYS_clone, libc::SIGCHLD as u64), ALLOW);
        assert_eq!(
            answer(0, libc::SYS_clone3, 0),
            0x0005_0000 | libc::ENOSYS as u32
        );
        assert_eq!(answer(0, libc::SYS_socket, AF_VSOCK), EPERM);
        assert_eq!(answer(0, libc::SYS_socket, 2), ALLOW);
        assert_eq!(answer(0, libc::SYS_personality, 8), ALLOW);
        assert_eq!(answer(0, libc::SYS_personality, 9), EPERM);
    }

    #[test]
    fn capabilities_open_their_calls() {
        let admin = 1 << 21;
        assert_eq!(answer(admin, libc::SYS_mount, 0), ALLOW);
        assert_eq!(answer(admin, libc::SYS_clone3, 0), ALLOW);
        assert_eq!(
            answer(admin, libc::SYS_clone, libc::CLONE_NEWUSER as u64),
            ALLOW
        );
        assert_eq!(answer(admin, libc::SYS_reboot, 0), EPERM);
    }
}
