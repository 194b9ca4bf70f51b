//! Who a container's first process is: numbers from the request, names from the image's own files.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use api::cri::v1::{LinuxContainerSecurityContext, SupplementalGroupsPolicy};
use rustix::fs::{FileType, Mode, OFlags};
use sys::Errno;
use sys::root::Root;

use super::SpecError;
use crate::container::User;

/// Largest `/etc/passwd` or `/etc/group` that is read, in bytes (CVE-2026-47262: an image can make it endless).
const FILE_LIMIT: u64 = 10 << 20;
/// Largest id the kernel and Kubernetes take alike.
const ID_MAX: u32 = i32::MAX.cast_unsigned();

/// The user of a process and its home directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub user: User,
    /// From the image's `/etc/passwd`, `/` when it does not list the user.
    pub home: String,
}

/// The image's account files, read once.
#[derive(Debug, Default)]
struct Accounts {
    passwd: String,
    group: String,
}

#[derive(Debug, PartialEq)]
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// A user or group as written: digits are a number and never looked up as a name (CVE-2024-40635).
#[derive(Debug, PartialEq)]
enum Id<'a> {
    Number(u32),
    Name(&'a str),
}

/// Resolves the user for a container whose image says `image_user` and whose root filesystem is `rootfs`.
///
/// The request wins over the image. The primary group comes from the request, else the image's `user:group`, else
/// `/etc/passwd`, else 0. Policy Merge adds the groups that list the user as a member.
pub(crate) fn resolve(
    context: &LinuxContainerSecurityContext,
    image_user: &str,
    rootfs: BorrowedFd<'_>,
) -> Result<Resolved, SpecError> {
    let accounts = Accounts { passwd: read(rootfs, "/etc/passwd")?, group: read(rootfs, "/etc/group")? };
    accounts.resolve(context, image_user)
}

impl Accounts {
    fn resolve(
        &self,
        context: &LinuxContainerSecurityContext,
        image_user: &str,
    ) -> Result<Resolved, SpecError> {
        let (given, image_group) = match (&context.run_as_user, context.run_as_username.as_str()) {
            (Some(number), _) => (Id::Number(number_in("run_as_user", number.value)?), None),
            (None, "") => split(image_user)?,
            (None, name) => (parse(name)?, None),
        };
        let account = self.account(&given);
        let uid = match (&given, &account) {
            (Id::Number(uid), _) => *uid,
            (Id::Name(_), Some(account)) => account.uid,
            (Id::Name(name), None) => return Err(SpecError::NoSuchUser { name: shorten(name) }),
        };
        let gid = match (&context.run_as_group, image_group) {
            (Some(number), _) => number_in("run_as_group", number.value)?,
            (None, Some(group)) => self.group_id(&group)?,
            (None, None) => account.as_ref().map_or(0, |a| a.gid),
        };
        let mut groups = vec![gid];
        if context.supplemental_groups_policy != SupplementalGroupsPolicy::Strict as i32
            && let Some(account) = &account
        {
            groups.extend(self.memberships(account.name));
        }
        for group in &context.supplemental_groups {
            groups.push(number_in("supplemental_groups", *group)?);
        }
        let mut seen = std::collections::HashSet::new();
        groups.retain(|group| seen.insert(*group));
        let home = account.as_ref().map(|a| a.home).filter(|home| home.starts_with('/'));
        Ok(Resolved { user: User { uid, gid, groups }, home: home.unwrap_or("/").to_owned() })
    }

    fn account(&self, id: &Id<'_>) -> Option<Account<'_>> {
        let mut accounts = self.passwd.lines().filter_map(account);
        accounts.find(|a| match id {
            Id::Number(uid) => a.uid == *uid,
            Id::Name(name) => a.name == *name,
        })
    }

    fn group_id(&self, id: &Id<'_>) -> Result<u32, SpecError> {
        match id {
            Id::Number(gid) => Ok(*gid),
            Id::Name(name) => {
                let found = self.group.lines().filter_map(group).find(|g| g.0 == *name);
                found.map(|g| g.1).ok_or_else(|| SpecError::NoSuchGroup { name: shorten(name) })
            }
        }
    }

    fn memberships<'a>(&'a self, user: &'a str) -> impl Iterator<Item = u32> + 'a {
        let lists = move |members: &str| members.split(',').any(|member| member == user);
        self.group.lines().filter_map(group).filter(move |g| lists(g.2)).map(|g| g.1)
    }
}

/// passwd(5): `name:password:uid:gid:comment:home:shell`.
fn account(line: &str) -> Option<Account<'_>> {
    let mut fields = line.split(':');
    let (name, uid, gid) = (fields.next()?, fields.nth(1)?, fields.next()?);
    Some(Account { name, uid: number(uid)?, gid: number(gid)?, home: fields.nth(1).unwrap_or("/") })
}

/// group(5): `name:password:gid:members`.
fn group(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let (name, gid) = (fields.next()?, fields.nth(1)?);
    Some((name, number(gid)?, fields.next().unwrap_or("")))
}

fn split(user: &str) -> Result<(Id<'_>, Option<Id<'_>>), SpecError> {
    match user.split_once(':') {
        _ if user.is_empty() => Ok((Id::Number(0), None)),
        None => Ok((parse(user)?, None)),
        Some((user, "")) => Ok((parse(user)?, None)),
        Some((user, group)) => Ok((parse(user)?, Some(parse(group)?))),
    }
}

/// Whatever starts like a number must be one, in range.
fn parse(text: &str) -> Result<Id<'_>, SpecError> {
    let invalid = || SpecError::InvalidUser { text: shorten(text) };
    match text.bytes().next() {
        Some(b'a'..=b'z' | b'A'..=b'Z' | b'_') if !text.contains(|c: char| c.is_control()) => {
            Ok(Id::Name(text))
        }
        Some(b'0'..=b'9') => number(text).map(Id::Number).ok_or_else(invalid),
        _ => Err(invalid()),
    }
}

fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|n| digits && *n <= ID_MAX)
}

fn number_in(field: &'static str, value: i64) -> Result<u32, SpecError> {
    u32::try_from(value).ok().filter(|n| *n <= ID_MAX).ok_or(SpecError::IdOutOfRange { field, value })
}

/// The text of a small regular file of the image, empty when there is none.
fn read(rootfs: BorrowedFd<'_>, path: &'static str) -> Result<String, SpecError> {
    let failed = |source| SpecError::AccountFile { path, source };
    // O_NONBLOCK: a FIFO in its place must not hold us up.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match Root::new(rootfs).open(path, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        other => other.map_err(failed)?,
    };
    let status = rustix::fs::fstat(file.as_fd()).map_err(failed)?;
    let size = u64::try_from(status.st_size).unwrap_or(u64::MAX);
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile || size > FILE_LIMIT {
        return Err(SpecError::AccountFileKind { path });
    }
    let mut bytes = Vec::new();
    let mut file = std::fs::File::from(file).take(FILE_LIMIT);
    file.read_to_end(&mut bytes).map_err(|e| failed(sys::errno_of(&e)))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// As much of a name as a message needs: images may have any.
fn shorten(name: &str) -> String {
    name.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use api::cri::v1::Int64Value;

    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:34:www:/var/www:/bin/sh\n\
                     member:x:1000:1000::/home/member:/bin/sh\n4294967296:x:0:0::/:\nbad line\n"
                .to_owned(),
            group: "root:x:0:\nwheel:x:10:root,member\nextra:x:50000:member\n".to_owned(),
        }
    }

    fn resolve(context: &LinuxContainerSecurityContext, image: &str) -> Result<Resolved, SpecError> {
        accounts().resolve(context, image)
    }

    fn user(uid: u32, gid: u32, groups: &[u32]) -> User {
        User { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn users_of_images() {
        let none = LinuxContainerSecurityContext::default();
        let table = [
            ("", user(0, 0, &[0, 10])),
            ("root", user(0, 0, &[0, 10])),
            ("www-data", user(33, 34, &[34])),
            ("www-data:extra", user(33, 50000, &[50000])),
            ("1003:1004", user(1003, 1004, &[1004])),
            ("1002", user(1002, 0, &[0])),
            ("1000", user(1000, 1000, &[1000, 10, 50000])),
        ];
        for (image, expected) in table {
            assert_eq!(resolve(&none, image).unwrap().user, expected, "{image}");
        }
        assert_eq!(resolve(&none, "member").unwrap().home, "/home/member");
        assert_eq!(resolve(&none, "77").unwrap().home, "/");
    }

    #[test]
    fn the_request_wins() {
        let context = LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: 1000 }),
            run_as_group: Some(Int64Value { value: 7 }),
            supplemental_groups: vec![8, 10],
            ..Default::default()
        };
        assert_eq!(resolve(&context, "www-data").unwrap().user, user(1000, 7, &[7, 10, 50000, 8]));
        let strict = LinuxContainerSecurityContext {
            supplemental_groups_policy: SupplementalGroupsPolicy::Strict as i32,
            ..context
        };
        assert_eq!(resolve(&strict, "www-data").unwrap().user, user(1000, 7, &[7, 8, 10]));
    }

    #[test]
    fn what_looks_like_a_number_is_never_a_name() {
        let none = LinuxContainerSecurityContext::default();
        let bad = [
            "2147483648",
            "4294967295",
            "4294967296",
            "-1",
            "+0",
            " 0",
            "0x0",
            "1:-1",
            "99999999999999999999",
            "a\nb",
        ];
        for image in bad {
            assert!(resolve(&none, image).is_err(), "{image}");
        }
        let context = LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: 1 << 31 }),
            ..Default::default()
        };
        assert!(matches!(resolve(&context, ""), Err(SpecError::IdOutOfRange { .. })));
        assert!(matches!(resolve(&none, "nobody"), Err(SpecError::NoSuchUser { .. })));
        assert!(matches!(resolve(&none, "root:nobody"), Err(SpecError::NoSuchGroup { .. })));
    }

    #[test]
    fn account_files_are_small_regular_files_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let etc = dir.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        std::os::unix::fs::symlink("/real", etc.join("passwd")).unwrap();
        std::fs::write(dir.path().join("real"), "inside:x:5:6::/:").unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        assert!(read(root.as_fd(), "/etc/passwd").unwrap().starts_with("inside"));
        assert_eq!(read(root.as_fd(), "/etc/group").unwrap(), "");
        rustix::fs::mknodat(&root, "etc/group", FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert!(matches!(read(root.as_fd(), "/etc/group"), Err(SpecError::AccountFileKind { .. })));
        std::fs::remove_file(etc.join("group")).unwrap();
        std::fs::File::create(etc.join("group")).unwrap().set_len(FILE_LIMIT + 1).unwrap();
        assert!(matches!(read(root.as_fd(), "/etc/group"), Err(SpecError::AccountFileKind { .. })));
    }
}
