//! Users and groups of the guest, as its /etc/passwd and /etc/group have them (passwd(5), group(5)).

use std::fs;

use crate::sys;

/// Who a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    pub name: String,
    pub home: String,
}

/// Finds `who`: a name or number, and perhaps `:` and a group's name or number. Numbers need no entry. None: whoever the
/// agent is, which is root.
pub fn find(who: Option<&str>) -> Result<User, String> {
    let read = |path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let own = sys::user().to_string();
    lookup(who.unwrap_or(&own), &read("/etc/passwd"), &read("/etc/group"))
}

fn lookup(who: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (name, wanted_group) = who.split_once(':').map_or((who, None), |(user, group)| (user, Some(group)));
    let entry = passwd.lines().map(fields).find(|entry| entry.first() == Some(&name)).or_else(|| {
        let number: u32 = name.parse().ok()?;
        passwd.lines().map(fields).find(|entry| number_at(entry, 2) == Some(number))
    });
    let mut user = match entry {
        Some(entry) => User {
            uid: number_at(&entry, 2).ok_or_else(|| format!("user {name} has no number in /etc/passwd"))?,
            gid: number_at(&entry, 3).unwrap_or(0),
            groups: Vec::new(),
            name: entry.first().copied().unwrap_or_default().into(),
            home: entry.get(5).copied().filter(|home| !home.is_empty()).unwrap_or("/").into(),
        },
        None => {
            let uid = name.parse().map_err(|_| format!("there is no user {name} in the guest's /etc/passwd"))?;
            let home = if uid == 0 { "/root" } else { "/" };
            let name = if uid == 0 { "root" } else { name };
            User { uid, gid: 0, groups: Vec::new(), name: name.into(), home: home.into() }
        }
    };
    match wanted_group {
        Some(wanted) => user.gid = group_number(wanted, group)?,
        None => user.groups = supplementary(&user.name, group),
    }
    if !user.groups.contains(&user.gid) {
        user.groups.push(user.gid);
    }
    Ok(user)
}

fn group_number(wanted: &str, group: &str) -> Result<u32, String> {
    let entry = group.lines().map(fields).find(|entry| entry.first() == Some(&wanted));
    let number = entry.and_then(|entry| number_at(&entry, 2)).or_else(|| wanted.parse().ok());
    number.ok_or_else(|| format!("there is no group {wanted} in the guest's /etc/group"))
}

fn supplementary(name: &str, group: &str) -> Vec<u32> {
    let entries = group.lines().map(fields);
    let member = |entry: &Vec<&str>| entry.get(3).is_some_and(|members| members.split(',').any(|one| one == name));
    entries.filter(member).filter_map(|entry| number_at(&entry, 2)).collect()
}

fn fields(line: &str) -> Vec<&str> {
    line.split(':').collect()
}

fn number_at(entry: &[&str], index: usize) -> Option<u32> {
    entry.get(index)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:100::/home/ann:/bin/sh\nbroken\nx:y:z:1::\n";
    const GROUP: &str = "root:x:0:\nusers:x:100:\nwheel:x:10:bob,ann\ndisk:x:6:annette\n";

    fn find(who: &str) -> Result<User, String> {
        lookup(who, PASSWD, GROUP)
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        let ann = User { uid: 1000, gid: 100, groups: vec![10, 100], name: "ann".into(), home: "/home/ann".into() };
        assert_eq!(find("ann").as_ref(), Ok(&ann));
        assert_eq!(find("1000").as_ref(), Ok(&ann));
        let with_group = User { gid: 6, groups: vec![6], ..ann };
        assert_eq!(find("ann:disk").as_ref(), Ok(&with_group));
        assert_eq!(find("1000:6").as_ref(), Ok(&with_group));
        let nobody = find("4000:4001").unwrap();
        assert_eq!((nobody.uid, nobody.gid, nobody.home.as_str()), (4000, 4001, "/"));
        assert_eq!(lookup("0", "", "").unwrap().home, "/root");
        for wrong in ["bob", "ann:bobs", "x", "", "-1", "4294967296"] {
            assert!(find(wrong).is_err(), "{wrong}");
        }
    }
}
