//! Who a process runs as: from the security context, the image and the files of its root.

use std::path::Path;

use super::LaunchError;
use crate::spec::{RunUser, UserBase, UserSpec};
use crate::sys;

/// Larger account files are cut; no image that works has them.
const MAX_FILE_BYTES: u64 = 4 << 20;

pub(super) struct Account {
    pub(super) run_as: RunUser,
    pub(super) home: String,
}

/// Reads `/etc/passwd` and `/etc/group` of the current root, which is the container's by now.
pub(super) fn resolve(user: &UserSpec) -> Result<Account, LaunchError> {
    let read = |path: &str| {
        let bytes = sys::read_bounded(Path::new(path), MAX_FILE_BYTES).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    plan(user, &read("/etc/passwd"), &read("/etc/group"))
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Entry<'_>> {
    passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        Some(Entry {
            name: fields.first()?,
            uid: fields.get(2)?.parse().ok()?,
            gid: fields.get(3)?.parse().ok()?,
            home: fields.get(5).copied().unwrap_or(""),
        })
    })
}

/// Name, id and members.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        Some((
            fields.next()?,
            fields.nth(1)?.parse().ok()?,
            fields.next().unwrap_or(""),
        ))
    })
}

fn plan(user: &UserSpec, passwd: &str, group: &str) -> Result<Account, LaunchError> {
    let (wanted_user, wanted_group) = match &user.base {
        UserBase::Id(uid) => (uid.to_string(), None),
        UserBase::Image(text) => match text.split_once(':') {
            Some((user, group)) => (user.to_owned(), Some(group.to_owned())),
            None => (text.clone(), None),
        },
    };
    let by_name = accounts(passwd).find(|entry| entry.name == wanted_user);
    let entry = match (by_name, wanted_user.parse::<u32>()) {
        (Some(entry), _) => Some(entry),
        (None, Ok(uid)) => accounts(passwd).find(|entry| entry.uid == uid),
        (None, Err(_)) if wanted_user.is_empty() => accounts(passwd).find(|entry| entry.uid == 0),
        (None, Err(_)) => {
            return Err(LaunchError::new(format!(
                "unable to find user {wanted_user}: no matching entries in passwd file"
            )));
        }
    };
    let uid = entry
        .as_ref()
        .map_or_else(|| wanted_user.parse().unwrap_or(0), |entry| entry.uid);
    let named_group = match wanted_group.filter(|name| !name.is_empty()) {
        None => None,
        Some(name) => Some(
            groups(group)
                .find(|(known, _, _)| *known == name)
                .map(|(_, gid, _)| gid)
                .or_else(|| name.parse().ok())
                .ok_or_else(|| {
                    LaunchError::new(format!(
                        "unable to find group {name}: no matching entries in group file"
                    ))
                })?,
        ),
    };
    let gid = user
        .group
        .or(named_group)
        .or(entry.as_ref().map(|entry| entry.gid))
        .unwrap_or(0);
    let mut all = vec![gid];
    if !user.strict_groups
        && let Some(entry) = &entry
    {
        let member = |members: &str| members.split(',').any(|name| name.trim() == entry.name);
        all.extend(
            groups(group)
                .filter(|(_, _, members)| member(members))
                .map(|(_, gid, _)| gid),
        );
    }
    all.extend(&user.supplemental_groups);
    let mut unique = Vec::with_capacity(all.len());
    for gid in all {
        if !unique.contains(&gid) {
            unique.push(gid);
        }
    }
    let home = entry
        .map(|entry| entry.home.to_owned())
        .filter(|home| !home.is_empty());
    Ok(Account {
        run_as: RunUser {
            uid,
            gid,
            groups: unique,
        },
        home: home.unwrap_or_else(|| "/".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:1000:1001::/srv/web:/bin/sh\n";
    const GROUP: &str = "root:x:0:root\nweb:x:1001:\nlogs:x:50:other,web\ndisk:x:6:web\n";

    fn spec(base: UserBase) -> UserSpec {
        UserSpec {
            base,
            group: None,
            supplemental_groups: vec![],
            strict_groups: false,
        }
    }

    fn run(user: &UserSpec) -> (u32, u32, Vec<u32>, String) {
        let account = plan(user, PASSWD, GROUP).unwrap_or_else(|error| panic!("{error}"));
        (
            account.run_as.uid,
            account.run_as.gid,
            account.run_as.groups,
            account.home,
        )
    }

    #[test]
    fn names_and_numbers_find_the_account() {
        let expected = (1000, 1001, vec![1001, 50, 6], "/srv/web".to_owned());
        assert_eq!(run(&spec(UserBase::Image("web".into()))), expected);
        assert_eq!(run(&spec(UserBase::Image("1000".into()))), expected);
        assert_eq!(run(&spec(UserBase::Id(1000))), expected);
        assert_eq!(
            run(&spec(UserBase::Image(String::new()))),
            (0, 0, vec![0], "/root".to_owned())
        );
    }

    #[test]
    fn an_unknown_number_is_allowed_and_an_unknown_name_is_not() {
        assert_eq!(
            run(&spec(UserBase::Id(4242))),
            (4242, 0, vec![0], "/".to_owned())
        );
        let error = plan(&spec(UserBase::Image("nobody".into())), PASSWD, GROUP)
            .err()
            .unwrap();
        assert!(
            error.to_string().contains("unable to find user nobody"),
            "{error}"
        );
    }

    #[test]
    fn groups_add_up_unless_strict() {
        let mut user = spec(UserBase::Image("web:logs".into()));
        user.supplemental_groups = vec![7, 6];
        assert_eq!(run(&user).2, [50, 6, 7]);
        user.strict_groups = true;
        user.group = Some(99);
        assert_eq!(run(&user).2, [99, 7, 6]);
    }
}
