//! The namespaces of a pod from making to the last unpin, on the real kernel. Needs root.
//!
//! Its own `main`: making namespaces forks, which wants a single-threaded caller.

#![allow(clippy::unwrap_used, reason = "a test, though not of the harness that clippy knows")]

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use namespaces::{
    ChannelError, ClockOffsets, IdMapping, IdMaps, Kinds, MakeError, NamespaceKind as Kind, Pins, Request,
    User, identify, make, relate,
};
use sys::Errno;
use sys::clone::{Options, fork};
use sys::namespace::{inode, own, setns};

fn main() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: making namespaces needs root");
        return;
    }
    for (name, test) in [
        ("one helper makes four kinds", one_helper_makes_four_kinds as fn()),
        ("a user namespace owns the others", a_user_namespace_owns_the_others),
        ("offsets are in force inside", offsets_are_in_force_inside),
        ("sysctls and hostname apply inside only", sysctls_and_hostname_apply_inside_only),
        ("failures name step and object", failures_name_step_and_object),
        ("pins keep namespaces and let them go", pins_keep_namespaces_and_let_them_go),
    ] {
        test();
        println!("ok: {name}");
    }
}

fn pod_kinds() -> Kinds {
    [Kind::Net, Kind::Ipc, Kind::Uts, Kind::Time].into_iter().collect()
}

fn make_map(request: &Request<'_>) -> BTreeMap<Kind, OwnedFd> {
    make(request).unwrap().into_iter().collect()
}

/// Runs `probe` in a child inside these namespaces and gives its exit code.
fn inside(fds: &BTreeMap<Kind, OwnedFd>, probe: fn() -> bool) -> u8 {
    let child = fork(&Options::default(), || {
        if fds.iter().any(|(kind, fd)| setns(fd, *kind).is_err()) {
            return 2;
        }
        u8::from(!probe())
    });
    u8::try_from(sys::pidfd::wait(child.unwrap().pidfd).unwrap().code()).unwrap()
}

fn one_helper_makes_four_kinds() {
    let fds = make_map(&Request { kinds: pod_kinds(), ..Request::default() });
    assert_eq!(fds.len(), 4);
    for (kind, fd) in &fds {
        assert_eq!(identify(fd).unwrap().kind, *kind);
        assert_ne!(inode(fd).unwrap(), inode(own(*kind).unwrap()).unwrap());
        assert_eq!(relate(fd).unwrap().owner, Some(inode(own(Kind::User).unwrap()).unwrap()));
    }
    let lo_is_up = || fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap().contains(" lo");
    assert_eq!(inside(&fds, lo_is_up), 0);
}

fn a_user_namespace_owns_the_others() {
    let map = vec![IdMapping { container: 0, host: 200_000, length: 65536 }];
    let maps = IdMaps { uids: map.clone(), gids: map };
    let request = Request {
        kinds: pod_kinds(),
        user: User::New(&maps),
        hostname: "inner",
        sysctls: &[
            ("net.ipv4.ip_unprivileged_port_start".into(), "0".into()),
            ("kernel.shm_rmid_forced".into(), "1".into()),
        ],
        ..Request::default()
    };
    let fds = make_map(&request);
    let user = inode(&fds[&Kind::User]).unwrap();
    for kind in [Kind::Net, Kind::Ipc, Kind::Uts, Kind::Time] {
        assert_eq!(relate(&fds[&kind]).unwrap().owner, Some(user), "{kind:?}");
    }
    assert_eq!(relate(&fds[&Kind::User]).unwrap().parent, Some(inode(own(Kind::User).unwrap()).unwrap()));
    // A later time namespace (a restored pod's) joins the same owner.
    let later = make_map(&Request {
        kinds: Kind::Time.into(),
        user: User::Join(fds[&Kind::User].as_fd()),
        ..Request::default()
    });
    assert_eq!(relate(&later[&Kind::Time]).unwrap().owner, Some(user));
    assert_eq!(later.len(), 1);
}

fn offsets_are_in_force_inside() {
    let day = 86_400_000_000_000;
    let offsets = ClockOffsets { monotonic: day, boottime: 2 * day };
    let fds = make_map(&Request { kinds: Kind::Time.into(), offsets, ..Request::default() });
    let jumped = || {
        // Entering moves the caller's children; time_for_children is ours only after fork, setns is for good.
        sys::timens::read_offsets(sys::process::id()).unwrap()
            == ClockOffsets { monotonic: 86_400_000_000_000, boottime: 172_800_000_000_000 }
    };
    assert_eq!(inside(&fds, jumped), 0);
}

fn sysctls_and_hostname_apply_inside_only() {
    let before = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let request = Request {
        kinds: pod_kinds(),
        hostname: "pod-1",
        sysctls: &[
            ("net.ipv4.ip_unprivileged_port_start".into(), "80".into()),
            ("net/ipv4/conf/lo/rp_filter".into(), "2".into()),
        ],
        ..Request::default()
    };
    let fds = make_map(&request);
    let applied = || {
        fs::read_to_string("/proc/sys/kernel/hostname").unwrap() == "pod-1\n"
            && fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap() == "80\n"
            && fs::read_to_string("/proc/sys/net/ipv4/conf/lo/rp_filter").unwrap() == "2\n"
    };
    assert_eq!(inside(&fds, applied), 0);
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), before);
}

fn failures_name_step_and_object() {
    let refused = |sysctl: &str| {
        let sysctls = [(sysctl.to_owned(), "1".to_owned())];
        match make(&Request { kinds: pod_kinds(), sysctls: &sysctls, ..Request::default() }) {
            Err(MakeError::Helper(ChannelError::Failed(failure))) => failure,
            other => panic!("{other:?}"),
        }
    };
    let failure = refused("net.ipv4.no_such_key");
    assert_eq!((failure.step.as_str(), failure.errno), ("write sysctl", Errno::NOENT));
    assert_eq!(failure.object, "net.ipv4.no_such_key");
    assert_eq!(refused("net../../sysrq-trigger").errno, Errno::INVAL);
    let overlapping = IdMaps {
        uids: vec![
            IdMapping { container: 0, host: 0, length: 2 },
            IdMapping { container: 1, host: 9, length: 2 },
        ],
        gids: vec![],
    };
    let request = Request { kinds: pod_kinds(), user: User::New(&overlapping), ..Request::default() };
    assert!(matches!(make(&request), Err(MakeError::Map { map: "uid_map", .. })));
}

fn pins_keep_namespaces_and_let_them_go() {
    let dir = std::env::temp_dir().join(format!("pins-{}", std::process::id()));
    let pins = Pins::open(&dir).unwrap();
    Pins::open(&dir).unwrap(); // again: no second tmpfs
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = |text: &str| text.lines().filter(|l| l.contains(dir.to_str().unwrap())).count();
    assert_eq!(ours(&mounts()), 1);
    let made = make_map(&Request { kinds: pod_kinds(), ..Request::default() });
    for (kind, fd) in &made {
        pins.pin("pod", *kind, fd).unwrap();
    }
    assert_eq!(ours(&mounts()), 5);
    let before = inode(&made[&Kind::Net]).unwrap();
    drop(made);
    assert_eq!(inode(pins.get("pod", Kind::Net).unwrap()).unwrap(), before);
    assert_eq!(pins.kinds("pod"), [Kind::Net, Kind::Ipc, Kind::Uts, Kind::Time]);
    assert_eq!(pins.pods().unwrap(), ["pod"]);
    // A recursive clone of the parent, as a hostPath volume makes it, holds no pin.
    let clone = sys::mount::clone_tree(rustix::fs::CWD, std::env::temp_dir().as_path(), true).unwrap();
    let name = dir.file_name().unwrap();
    let copied =
        rustix::fs::openat(&clone, name, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    assert!(rustix::fs::statat(&copied, "pod", rustix::fs::AtFlags::empty()).is_err());
    assert!(pins.unpin_all("pod").is_empty());
    assert!(pins.unpin_all("pod").is_empty());
    assert_eq!(ours(&mounts()), 1);
    sys::mount::detach(&dir).unwrap();
    fs::remove_dir(&dir).unwrap();
}
