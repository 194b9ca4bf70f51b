//! From a running container to images and back, with real CRIU: what ran runs on, in a new pod, at the planned instant.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod bed;

use std::{
    fs,
    io::Read,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use api::shim::v1::{self as proto, container_state::Phase, request::Call, response};
use bed::{Bed, Tmpfs, Wish, directory, plan::Wanted, wait_for};
use sys::timens;

/// Counts, with the seconds of CLOCK_BOOTTIME beside it, as the pod sees them.
const COUNT: [&str; 3] =
    ["sh", "-c", "i=0; while :; do read up _ < /proc/uptime; echo $i $up; i=$((i+1)); usleep 5000; done"];

/// A pod that CRIU works on. The tmpfs goes first when it ends.
struct Pod {
    _run: Tmpfs,
    bed: Bed,
}

fn pod() -> Option<Pod> {
    let criu = bed::criu()?;
    let mut bed = Bed::bare()?;
    let run = Tmpfs::new(bed.dir.join("criu"), 16 << 20);
    bed.create_sandbox(Wish { criu, ..Wish::default() });
    Some(Pod { _run: run, bed })
}

impl Pod {
    /// A directory for the images of a container.
    fn images(&self, id: &str) -> (PathBuf, OwnedFd) {
        let path = self.bed.dir.join(format!("images-{id}"));
        fs::create_dir_all(&path).unwrap();
        let fd = directory(&path);
        (path, fd)
    }

    /// Dumps at one cut; the dumps are asked for first, so that CRIU is up when the pod is frozen.
    fn dump(&mut self, ids: &[&str]) -> (proto::FreezeResponse, Vec<proto::DumpResponse>) {
        let asked: Vec<u64> = ids.iter().map(|id| self.ask_dump(id)).collect();
        let ids = ids.iter().map(|&id| id.to_owned()).collect();
        let freeze = Call::Freeze(proto::FreezeRequest { ids, watchdog_ms: 20_000 });
        let frozen = match self.bed.client.call(freeze, &[]) {
            Ok((response::Result::Freeze(frozen), _)) => frozen,
            other => panic!("{other:?}"),
        };
        let answers = asked.into_iter().map(|asked| match self.bed.client.answer(asked) {
            Ok((response::Result::Dump(dump), _)) => dump,
            other => panic!("{other:?}"),
        });
        (frozen, answers.collect())
    }

    fn ask_dump(&mut self, id: &str) -> u64 {
        let (_, images) = self.images(id);
        let request = proto::DumpRequest { id: id.into(), deadline_ms: 10_000, ..Default::default() };
        self.bed.client.ask(Call::Dump(request), &[images.as_fd()])
    }

    fn resume(&mut self, kill: bool) {
        self.bed.client.done(Call::Resume(proto::ResumeRequest { kill }));
    }

    /// The numbers in a container's log.
    fn numbers(&self, id: &str) -> Vec<u64> {
        self.bed.log(id).lines().map(|line| line.split(' ').nth(2).unwrap().parse().unwrap()).collect()
    }

    /// The clock readings in a container's log, in ms.
    fn uptimes(&self, id: &str) -> Vec<u64> {
        let millis = |text: &str| text.replace('.', "").parse::<u64>().unwrap() * 10;
        self.bed.log(id).lines().map(|line| millis(line.split(' ').nth(3).unwrap())).collect()
    }

    fn restore(&mut self, id: &str) -> proto::RestoreResponse {
        let request = proto::RestoreRequest { id: id.into(), deadline_ms: 10_000 };
        match self.bed.client.call(Call::Restore(request), &[]) {
            Ok((response::Result::Restore(held), _)) => held,
            other => panic!("{other:?} {}", self.bed.complaints()),
        }
    }

    fn release(&mut self, ids: &[&str], at: i64) -> u64 {
        let ids = ids.iter().map(|&id| id.to_owned()).collect();
        let request = proto::ReleaseRequest { ids, at: at.unsigned_abs() };
        match self.bed.client.call(Call::Release(request), &[]) {
            Ok((response::Result::Release(released), _)) => released.released_at,
            other => panic!("{other:?}"),
        }
    }
}

fn assert_consecutive(numbers: &[u64], first: u64) {
    let expected: Vec<u64> = (first..first + numbers.len() as u64).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn a_dump_leaves_the_container_as_it_was() {
    let Some(mut pod) = pod() else { return };
    pod.bed.run(Wanted::new("c", &COUNT));
    wait_for("some numbers", || pod.numbers("c").len() > 5);
    let (frozen, dumps) = pod.dump(&["c"]);
    println!(
        "cut {} us, dump {} us of it",
        (frozen.frozen_at - frozen.froze_at) / 1000,
        dumps[0].total_ns / 1000
    );
    let descriptors: Vec<String> = serde_json::from_str(&dumps[0].descriptors).unwrap();
    assert!(descriptors[0] == "/dev/null" && descriptors[1].starts_with("pipe:["), "{descriptors:?}");
    assert!(pod.images("c").0.join("core-1.img").exists());
    let at_cut = pod.numbers("c").len();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(pod.numbers("c").len(), at_cut, "frozen after the dump");
    pod.resume(false);
    wait_for("more numbers", || pod.numbers("c").len() > at_cut + 5);
    assert_consecutive(&pod.numbers("c"), 0);
}

#[test]
fn a_cut_in_the_middle_of_vfork_is_made_again() {
    let Some(mut pod) = pod() else { return };
    // Nothing but vfork and execve.
    pod.bed.run(Wanted::new("c", &["sh", "-c", "while :; do usleep 1; done"]));
    let mut cuts = Vec::new();
    for _ in 0..15 {
        let (frozen, dumps) = pod.dump(&["c"]);
        cuts.push((frozen.frozen_at - frozen.froze_at) / 1000);
        assert!(dumps[0].total_ns < 3_000_000_000, "{} ns", dumps[0].total_ns);
        pod.resume(false);
        fs::remove_dir_all(pod.images("c").0).unwrap();
    }
    println!("us from the first to the last task stopped: {cuts:?}");
}

#[test]
fn two_containers_move_to_another_pod_and_go_on_at_one_instant() {
    let (Some(mut source), Some(mut destination)) = (pod(), pod()) else { return };
    let ids = ["one", "two"];
    for id in ids {
        source.bed.run(Wanted::new(id, &COUNT));
    }
    wait_for("some numbers", || ids.iter().all(|id| source.numbers(id).len() > 5));
    let (frozen, dumps) = source.dump(&ids);
    source.resume(true);
    for id in ids {
        assert_eq!(source.bed.client.exit(id).code, 137);
    }

    // The clocks of the new pod, so that at the instant of release they show what was read at the cut.
    let at = timens::monotonic() + 3_000_000_000;
    let clocks = frozen.clocks.unwrap();
    let ahead = at - timens::monotonic();
    let time = proto::CreateTimeNamespaceRequest {
        monotonic_offset: clocks.monotonic - at,
        boottime_offset: clocks.boottime - (timens::clocks().boottime + ahead),
    };
    destination.bed.client.call(Call::CreateTimeNamespace(time), &[]).unwrap();
    for (id, dump) in ids.into_iter().zip(dumps) {
        let (_, images) = source.images(id);
        let pid = destination
            .bed
            .create(Wanted { restore: Some((images, dump.descriptors)), ..Wanted::new(id, &COUNT) })
            .unwrap();
        assert_eq!(pid, 0);
        let held = destination.restore(id);
        let state = destination.bed.client.state_of(id);
        assert_eq!((state.phase(), state.pid, state.started_at), (Phase::Created, held.pid, 0));
        println!("held {} ms before the instant", at.unsigned_abs().saturating_sub(held.held_at) / 1_000_000);
    }
    std::thread::sleep(Duration::from_millis(30));
    assert!(ids.iter().all(|id| destination.numbers(id).is_empty()), "nothing runs before the release");
    let released = destination.release(&ids, at);
    let late = released.checked_sub(at.unsigned_abs()).expect("never before the instant");
    println!("released {} us late", late / 1000);
    assert!(late < 100_000_000, "{late} ns");
    wait_for("numbers again", || ids.iter().all(|id| destination.numbers(id).len() > 5));
    for id in ids {
        let before = source.numbers(id);
        assert_consecutive(&destination.numbers(id), before.len() as u64);
        let (last, first) = (*source.uptimes(id).last().unwrap(), destination.uptimes(id)[0]);
        println!("the clock of {id} went on after {} ms", first - last);
        assert!(first >= last && first - last < 1000, "{last} {first}");
        assert_eq!(destination.bed.client.state_of(id).phase(), Phase::Running);
    }
    // The shim is the parent of what came back: exits and execs are as with any other.
    let [out, _] = destination.bed.exec("e", "one", &["sh", "-c", "echo $PPID"]).unwrap();
    let mut text = String::new();
    fs::File::from(out).read_to_string(&mut text).unwrap();
    assert_eq!(text, "0\n");
    destination.bed.kill("one", 9, false);
    assert_eq!(destination.bed.client.exit("one").code, 137);
}

#[test]
fn a_freeze_that_never_comes_ends_the_dump_and_not_the_container() {
    let Some(mut pod) = pod() else { return };
    pod.bed.run(Wanted::new("c", &COUNT));
    let (_, images) = pod.images("c");
    let request = proto::DumpRequest { id: "c".into(), deadline_ms: 300, ..Default::default() };
    assert!(pod.bed.client.call(Call::Dump(request), &[images.as_fd()]).is_err());
    let before = pod.numbers("c").len();
    wait_for("the container to run on", || pod.numbers("c").len() > before + 5);
}

#[test]
fn a_restore_from_nothing_is_an_error_and_leaves_a_plan() {
    let Some(mut pod) = pod() else { return };
    let (_, images) = pod.images("c");
    let none = "[\"/dev/null\",\"pipe:[1]\",\"pipe:[2]\"]".to_owned();
    pod.bed.create(Wanted { restore: Some((images, none)), ..Wanted::new("c", &COUNT) }).unwrap();
    let request = proto::RestoreRequest { id: "c".into(), deadline_ms: 5000 };
    let error = pod.bed.client.call(Call::Restore(request), &[]).unwrap_err();
    println!("{error:?}");
    assert_eq!(pod.bed.client.state_of("c").phase(), Phase::Created);
    assert_eq!(fs::read_to_string(pod.bed.unified().join("c/cgroup.procs")).unwrap(), "");
    pod.bed.delete("c");
    assert!(!pod.bed.unified().join("c").exists());
}

#[test]
fn a_difference_is_a_tar_and_a_list() {
    let Some(mut pod) = pod() else { return };
    let script = "echo hello > /new; rm /bin/yes; sleep 1000";
    pod.bed.run(Wanted::new("c", &["sh", "-c", script]));
    let upper = pod.bed.dir.join("overlay1/upper");
    wait_for("the changes", || upper.join("bin/yes").symlink_metadata().is_ok());
    let [archive, deleted] = ["diff.tar", "deleted"].map(|name| pod.bed.dir.join(name));
    let files = [&archive, &deleted].map(|path| fs::File::create(path).unwrap());
    let upper = directory(&upper);
    let request = proto::DiffRequest { id: "c".into(), upper_fd: 0, archive_fd: 1, deleted_fd: 2 };
    let fds = [upper.as_fd(), files[0].as_fd(), files[1].as_fd()];
    let answer = pod.bed.client.call(Call::Diff(request), &fds).unwrap();
    assert!(matches!(answer.0, response::Result::Done(_)));
    let deleted: Vec<String> = serde_json::from_slice(&fs::read(deleted).unwrap()).unwrap();
    assert_eq!(deleted, ["/bin/yes"]);
    let tar = fs::read(archive).unwrap();
    assert!(tar.windows(6).any(|bytes| bytes == b"hello\n"));
}
