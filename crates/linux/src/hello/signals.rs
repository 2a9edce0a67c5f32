//! What the first process of a container must arrange for itself.

extern "C" fn end(_: libc::c_int) {
    // SAFETY: `_exit` may be called from a signal handler.
    unsafe { libc::_exit(0) }
}

/// The kernel delivers no default action to the first process of a PID namespace: without a
/// handler a pod would end only when its grace period does. Orphans are reaped by the kernel.
pub(super) fn end_on_sigterm() {
    if std::process::id() != 1 {
        return;
    }
    let handler = end as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler only calls `_exit`.
    unsafe {
        libc::signal(libc::SIGTERM, handler);
        libc::signal(libc::SIGINT, handler);
    }
}
