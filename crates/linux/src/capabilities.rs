//! Capability names, and which a container gets.

/// In the kernel's numbering; a name's position is its number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has when its security context says nothing.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

pub(crate) const LAST: u32 = NAMES.len() as u32 - 1;

/// A name, with or without `CAP_`, in any case.
pub(crate) fn number(name: &str) -> Option<u32> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES
        .iter()
        .position(|known| *known == bare)
        .map(|position| position as u32)
}

/// The set of a container as a bit mask. `Err` is the first unknown name.
///
/// `ALL` in `add` starts from every capability, `ALL` in `drop` from none; the other names are
/// then added and taken away. A privileged container has all of them.
pub(crate) fn plan(privileged: bool, add: &[String], drop: &[String]) -> Result<u64, String> {
    let every = (1u64 << NAMES.len()) - 1;
    if privileged {
        return Ok(every);
    }
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let mut set = DEFAULT
        .iter()
        .filter_map(|name| number(name))
        .fold(0, |set, n| set | 1 << n);
    if add.iter().any(is_all) {
        set = every;
    }
    if drop.iter().any(is_all) {
        set = 0;
    }
    for name in add.iter().filter(|name| !is_all(name)) {
        set |= 1 << number(name).ok_or_else(|| name.clone())?;
    }
    for name in drop.iter().filter(|name| !is_all(name)) {
        // An unknown name in `drop` cannot be held, so there is nothing to refuse.
        if let Some(number) = number(name) {
            set &= !(1 << number);
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn numbers_follow_the_kernel() {
        assert_eq!(number("CAP_NET_ADMIN"), Some(12));
        assert_eq!(number("sys_admin"), Some(21));
        assert_eq!(number("checkpoint_restore"), Some(40));
        assert_eq!(number("NO_SUCH"), None);
    }

    #[test]
    fn the_default_set_is_dockers() {
        assert_eq!(plan(false, &[], &[]), Ok(0xa804_25fb));
    }

    #[test]
    fn dropping_all_and_adding_one_leaves_one() {
        assert_eq!(
            plan(false, &names(&["NET_BIND_SERVICE"]), &names(&["ALL"])),
            Ok(1 << 10)
        );
        assert_eq!(
            plan(false, &names(&["ALL"]), &names(&["CHOWN"])),
            Ok(((1 << 41) - 1) & !1)
        );
        assert_eq!(
            plan(false, &names(&["BOGUS"]), &[]),
            Err("BOGUS".to_owned())
        );
        assert_eq!(plan(true, &[], &names(&["ALL"])), Ok((1 << 41) - 1));
    }
}
