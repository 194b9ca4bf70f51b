//! A process tree through CRIU and back, held, released on a planned instant, its clocks looked at from inside. Needs
//! root and CRIU.
//!
//! Its own `main`: forking wants a single-threaded caller, and the payload of the containers is this program too.

#![allow(clippy::unwrap_used, reason = "a test, though not of the harness that clippy knows")]

mod bed;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bed::{Container, Node, Pipes, freeze, in_helper, open_dir, read_for};
use migration::clock::{ClockReading, Policy, offsets, plan};
use migration::criu::{DumpOptions, ReleaseDecision, RestoreOptions, dump, enter, probe, restore};
use migration::transport::PageReceiver;
use namespaces::NamespaceKind as Kind;
use sys::clone;
use sys::timens::{Offsets, clocks, monotonic};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.first().is_some_and(|name| name == "/payload") {
        return payload(&args[1..]);
    }
    let Some(command) = bed::criu_command() else {
        println!("skipped: no CRIU here (hack/install brings one)");
        return;
    };
    if !rustix::process::geteuid().is_root() {
        println!("skipped: CRIU needs root");
        return;
    }
    sys::process::become_subreaper().unwrap();
    for (name, test) in [
        ("probe fills CRIU's cache", probe_fills_the_cache as fn(&Node)),
        ("a tree moves, held, without a jump of its clocks", a_tree_moves_held_without_a_jump),
        ("memory streams to another directory", memory_streams_to_another_directory),
        ("a restore given up runs nothing", a_restore_given_up_runs_nothing),
        ("a dump given up leaves the tree running", a_dump_given_up_leaves_the_tree_running),
        ("a deadline rolls the dump back", a_deadline_rolls_the_dump_back),
        ("a failure quotes CRIU", a_failure_quotes_criu),
    ] {
        test(&Node::new(command.clone()));
        println!("ok: {name}");
    }
}

/// Process 1: a thread that counts, a child that counts in shared memory, and a tight loop on the clocks that prints
/// how they stand to each other every 20 ms, and each step back.
fn payload(args: &[String]) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    if args[0] == "child" {
        let file = fs::File::create("/dev/shm/beat").unwrap();
        for beat in 0_u64.. {
            file.write_all_at(&beat.to_le_bytes(), 0).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let mut child = std::process::Command::new("/payload").arg("child").spawn().unwrap();
    std::thread::spawn(|| {
        loop {
            COUNT.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let mut last = clocks();
    let mut printed = last.monotonic;
    loop {
        let now = clocks();
        if now.monotonic < last.monotonic || now.boottime < last.boottime {
            println!("back {last:?} {now:?}");
        }
        if now.monotonic - printed > 20_000_000 {
            println!(
                "tick {} {} {}",
                now.realtime - now.monotonic,
                now.boottime - now.monotonic,
                now.monotonic
            );
            printed = now.monotonic;
        }
        if child.try_wait().unwrap().is_some() {
            println!("the child is gone");
        }
        last = now;
    }
}

/// The numbers of the first tick.
fn first_tick(text: &str) -> [i64; 3] {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("tick "))
        .unwrap_or_else(|| panic!("no tick in {text:?}"));
    let numbers: Vec<i64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

fn probe_fills_the_cache(node: &Node) {
    let said = in_helper(|| {
        enter(&node.criu, bed::host_mounts().as_fd()).unwrap();
        format!("{:?}", probe(&node.criu).unwrap())
    });
    assert!(said.starts_with("Probe { version: (4, "), "{said}");
    assert!(node.criu.run.join("criu.kdat").exists());
}

/// Dumps, and gives the error or "".
fn try_dump(node: &Node, container: &Container, images: &Path, deadline: Duration, cut: bool) -> String {
    dump_to(node, container, images, None, deadline, cut)
}

fn dump_to(
    node: &Node,
    container: &Container,
    images: &Path,
    page_socket: Option<BorrowedFd<'_>>,
    deadline: Duration,
    cut: bool,
) -> String {
    let external: Vec<String> = bed::EXTERNAL.iter().map(ToString::to_string).collect();
    fs::create_dir_all(images).unwrap();
    in_helper(|| {
        let (cgroup, images) = (open_dir(&container.cgroup), open_dir(images));
        let options = DumpOptions {
            criu: &node.criu,
            namespaces: &bed::borrow(&container.namespaces),
            pid: container.process.pid,
            cgroup: cgroup.as_fd(),
            images: images.as_fd(),
            page_socket,
            external: &external,
            tcp_established: false,
            deadline,
        };
        enter(&node.criu, bed::host_mounts().as_fd()).unwrap();
        dump(&options, &mut || {
            if cut {
                freeze(&container.cgroup, true);
            }
            cut
        })
        .map_or_else(
            |error| chain(&error),
            |stats| if stats.pages_written > 0 { String::new() } else { "no pages".into() },
        )
    })
}

fn chain(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {}", chain(source)))
}

struct Back {
    namespaces: Vec<(Kind, std::os::fd::OwnedFd)>,
    cgroup: std::path::PathBuf,
    pipes: Pipes,
    said: String,
}

fn try_restore(
    node: &Node,
    images: &Path,
    old: [String; 3],
    offsets: Offsets,
    decision: ReleaseDecision,
) -> Back {
    let namespaces = bed::pod_namespaces(offsets);
    let cgroup = node.cgroup("restored");
    let pipes = Pipes::new();
    let said = in_helper(|| {
        let stage = enter(&node.criu, bed::host_mounts().as_fd()).unwrap();
        let (root, external) = bed::stage(node, &stage);
        let stdio: Vec<_> = old.into_iter().zip(pipes.inner.iter().map(AsFd::as_fd)).collect();
        let (cgroup, images) = (open_dir(&cgroup), open_dir(images));
        let (time, others): (Vec<_>, Vec<_>) =
            bed::borrow(&namespaces).into_iter().partition(|(kind, _)| *kind == Kind::Time);
        let options = RestoreOptions {
            criu: &node.criu,
            namespaces: &others,
            images: images.as_fd(),
            root: &root,
            external: &external,
            cgroup: cgroup.as_fd(),
            legacy_cgroups: &[],
            legacy_cpu: None,
            stdio: &stdio,
            tcp_established: false,
            deadline: Duration::from_secs(20),
        };
        restore(&options, &mut || time[0].1.try_clone_to_owned().ok(), &mut |_| decision)
            .map_or_else(|error| chain(&error), |restored| restored.pid.as_raw_nonzero().to_string())
    });
    Back { namespaces, cgroup, pipes, said }
}

fn stdio_of(container: &Container) -> [String; 3] {
    let pid = container.process.pid.as_raw_nonzero();
    [0, 1, 2].map(|n| fs::read_link(format!("/proc/{pid}/fd/{n}")).unwrap().display().to_string())
}

fn a_tree_moves_held_without_a_jump(node: &Node) {
    const MS: i64 = 1_000_000;
    let mut container = Container::start(node, "source", &["tight"]);
    assert!(read_for(&mut container.pipes.stdout, Duration::from_millis(300)).contains("tick"));
    let images = node.dir.path().join("images");
    let stdio = stdio_of(&container);
    assert_eq!(try_dump(node, &container, &images, Duration::from_secs(20), true), "");
    // The source's namespace has offsets 0: what it reads is what we read, if we are in the initial one ourselves.
    let own = sys::timens::read_offsets(sys::process::id()).unwrap();
    let now = clocks();
    let frozen = ClockReading {
        monotonic: now.monotonic - own.monotonic,
        boottime: now.boottime - own.boottime,
        realtime: now.realtime,
    };
    assert!(fs::read_to_string(container.cgroup.join("cgroup.events")).unwrap().contains("frozen 1"));
    let beat = fs::read(node.dir.path().join("shm/beat")).unwrap();
    container.kill();

    let start = clocks();
    let release = plan(start, own, Duration::from_millis(1200)).unwrap();
    let offsets = offsets(&frozen, &release, Policy::Freeze).unwrap();
    let mut back = try_restore(node, &images, stdio, offsets, ReleaseDecision::Release);
    let pid: i32 = back.said.parse().unwrap_or_else(|_| panic!("{}", back.said));
    assert!(monotonic() < release.at, "the machine is too slow for the plan");
    assert_eq!(read_for(&mut back.pipes.stdout, Duration::from_millis(100)), "", "it ran before its release");
    assert_eq!(beat, fs::read(node.dir.path().join("shm/beat")).unwrap());

    while monotonic() < release.at {}
    freeze(&back.cgroup, false);
    let released = monotonic();
    let after = read_for(&mut back.pipes.stdout, Duration::from_millis(400));
    assert!(!after.contains("back") && !after.contains("gone"), "{after}");
    let [realtime, boottime, monotonic] = first_tick(&after);
    println!(
        "    released {} us after the plan, first tick {} us after the cut",
        (released - release.at) / 1000,
        (monotonic - frozen.monotonic) / 1000
    );
    // At the planned instant the pod's clocks read what they read at the cut.
    let planned = start.realtime + (release.at - start.monotonic) - frozen.monotonic;
    assert!((realtime - planned).abs() < MS, "{} us off", (realtime - planned) / 1000);
    assert!((boottime - (frozen.boottime - frozen.monotonic)).abs() < MS);
    assert_ne!(beat, fs::read(node.dir.path().join("shm/beat")).unwrap());
    for (kind, fd) in &back.namespaces {
        let joined = sys::namespace::of(sys::Pid::from_raw(pid).unwrap(), *kind).unwrap();
        assert_eq!(sys::namespace::inode(joined), sys::namespace::inode(fd), "{kind:?}");
    }
    assert_eq!(fs::read_to_string(back.cgroup.join("cgroup.procs")).unwrap().lines().count(), 2);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains(&format!("PPid:\t{}\n", std::process::id())), "{status}");
}

/// As in a migration: pages go over a socket, everything else into files, and together they restore.
fn memory_streams_to_another_directory(node: &Node) {
    let mut container = Container::start(node, "source", &["tight"]);
    assert!(read_for(&mut container.pipes.stdout, Duration::from_millis(200)).contains("tick"));
    let (images, stdio) = (node.dir.path().join("images"), stdio_of(&container));
    fs::create_dir(&images).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let receiver = PageReceiver::new(open_dir(&images));
    let server = clone::fork(&clone::Options::default(), || u8::from(receive(&ours, receiver) == 0)).unwrap();
    drop(ours);
    let deadline = Duration::from_secs(20);
    assert_eq!(dump_to(node, &container, &images, Some(theirs.as_fd()), deadline, true), "");
    container.kill();
    assert_eq!(sys::pidfd::wait(server.pidfd).unwrap().code(), 0, "no pages came");
    let mut back = try_restore(node, &images, stdio, Offsets::default(), ReleaseDecision::Release);
    assert!(back.said.parse::<i32>().is_ok(), "{}", back.said);
    freeze(&back.cgroup, false);
    assert!(read_for(&mut back.pipes.stdout, Duration::from_millis(300)).contains("tick"));
}

/// Plays the destination until the dump says that it is over; the bytes of memory.
fn receive(mut socket: &UnixStream, mut receiver: PageReceiver) -> u64 {
    let mut piece = vec![0; 1 << 16];
    while !receiver.is_closed() {
        let read = socket.read(&mut piece).unwrap();
        let answer = receiver.feed(&piece[..read]).unwrap();
        socket.write_all(&answer).unwrap();
    }
    receiver.finish().unwrap()
}

fn a_restore_given_up_runs_nothing(node: &Node) {
    let mut container = Container::start(node, "source", &["tight"]);
    assert!(read_for(&mut container.pipes.stdout, Duration::from_millis(200)).contains("tick"));
    let (images, stdio) = (node.dir.path().join("images"), stdio_of(&container));
    assert_eq!(try_dump(node, &container, &images, Duration::from_secs(20), true), "");
    container.kill();
    let mut back = try_restore(node, &images, stdio, Offsets::default(), ReleaseDecision::Abort);
    assert_eq!(back.said, "the restore was given up before anything ran");
    assert_eq!(read_for(&mut back.pipes.stdout, Duration::from_millis(100)), "");
    freeze(&back.cgroup, false);
    assert_eq!(fs::read_to_string(back.cgroup.join("cgroup.procs")).unwrap(), "");
}

fn a_dump_given_up_leaves_the_tree_running(node: &Node) {
    let mut container = Container::start(node, "source", &["tight"]);
    assert!(read_for(&mut container.pipes.stdout, Duration::from_millis(200)).contains("tick"));
    let images = node.dir.path().join("images");
    let said = try_dump(node, &container, &images, Duration::from_secs(20), false);
    assert_eq!(said, "the pod was not frozen");
    assert!(read_for(&mut container.pipes.stdout, Duration::from_millis(200)).contains("tick"));
}

fn a_deadline_rolls_the_dump_back(node: &Node) {
    let mut container = Container::start(node, "source", &["tight"]);
    assert!(read_for(&mut container.pipes.stdout, Duration::from_millis(200)).contains("tick"));
    for ms in [0, 5, 15, 25] {
        let images = node.dir.path().join(format!("images-{ms}"));
        let said = try_dump(node, &container, &images, Duration::from_millis(ms), true);
        assert!(said.is_empty() || said == "criu did not finish before the deadline", "{ms} ms: {said}");
        assert!(ms > 0 || !said.is_empty());
        freeze(&container.cgroup, false);
        assert!(
            read_for(&mut container.pipes.stdout, Duration::from_millis(200)).contains("tick"),
            "{ms} ms"
        );
    }
}

fn a_failure_quotes_criu(node: &Node) {
    let images = node.dir.path().join("images");
    fs::create_dir(&images).unwrap();
    let none = ["a", "b", "c"].map(str::to_owned);
    let back = try_restore(node, &images, none, Offsets::default(), ReleaseDecision::Release);
    assert!(back.said.starts_with("criu: Error (criu/"), "{}", back.said);
}
