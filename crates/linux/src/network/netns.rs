//! Doing something inside another network namespace.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub(crate) fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Runs `work` on a thread of its own that has entered the namespace and ends afterwards: a
/// thread of a pool would carry the namespace into whatever it does next.
pub(crate) fn run_in<T: Send>(
    namespace: &OwnedFd,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .stack_size(256 << 10)
            .spawn_scoped(scope, || {
                use std::os::fd::AsFd as _;
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                work()
            })?;
        thread.join().unwrap_or_else(|_| {
            Err(io::Error::other(
                "the thread in the network namespace panicked",
            ))
        })
    })
}

/// Runs a test in a network namespace that only it has. Answers `false` without privileges.
#[cfg(test)]
pub(crate) fn isolated(test: impl FnOnce() + Send) -> bool {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a network namespace needs root");
        return false;
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            new_here();
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
    true
}

/// A new namespace for the calling thread.
#[cfg(test)]
#[allow(unsafe_code)]
pub(crate) fn new_here() -> OwnedFd {
    // SAFETY: a network namespace concerns only sockets that the thread opens from now on.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
    super::links::Links::open()
        .and_then(|mut l| l.set_up("lo"))
        .unwrap();
    open(Path::new("/proc/thread-self/ns/net")).unwrap()
}

/// A new namespace beside the calling thread's.
#[cfg(test)]
pub(crate) fn new_beside() -> OwnedFd {
    std::thread::spawn(new_here).join().unwrap()
}
