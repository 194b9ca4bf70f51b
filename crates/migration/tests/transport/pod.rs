//! Pods that do what a dump and a restore do with files and sockets, note it, and fail where they are told to.

use std::fs::{self, File};
use std::future::pending;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::id::PodId;
use api::peer::v1::{Container, Offer};
use migration::clock::ClockReading;
use migration::transport::{
    Cut, Destination, DestinationPod, Diff, Dumped, Failure, FailureKind, SourcePod, Unwanted,
};
use sys::timens::Offsets;

/// Bytes of memory of each of the two containers.
pub const MEMORY: u64 = 3 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    StartDumps,
    Freeze,
    Dumps,
    Diffs,
    Shm,
    Hold,
    Receive,
    Images,
    Apply,
    ApplyShm,
    Clocks,
    Restore,
    Release,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
pub struct Trouble {
    pub step: Step,
    pub hang: bool,
}

#[derive(Debug)]
pub struct Diary {
    /// The pod that comes, by its id there.
    id: String,
    lines: Vec<String>,
    trouble: Option<Trouble>,
    dir: tempfile::TempDir,
}

impl Diary {
    pub fn new(trouble: Option<Trouble>) -> Self {
        Self { id: String::new(), lines: Vec::new(), trouble, dir: tempfile::tempdir().unwrap() }
    }
}

async fn note(diary: &Mutex<Diary>, step: Step, line: String) -> Result<(), Failure> {
    let trouble = {
        let mut diary = diary.lock().unwrap();
        diary.lines.push(line);
        diary.trouble.filter(|trouble| trouble.step == step)
    };
    match trouble {
        Some(Trouble { hang: true, .. }) => pending().await,
        Some(_) => Err(Failure::new(FailureKind::Precondition, format!("no luck with {step:?}"))),
        None => Ok(()),
    }
}

/// The pod at the source.
pub struct Leaving {
    diary: Mutex<Diary>,
    dumps: Mutex<Vec<std::thread::JoinHandle<()>>>,
}

impl Leaving {
    pub fn new(trouble: Option<Trouble>) -> Self {
        Self { diary: Mutex::new(Diary::new(trouble)), dumps: Mutex::default() }
    }

    pub fn diary(&self) -> Vec<String> {
        self.diary.lock().unwrap().lines.clone()
    }

    fn line(&self, line: &str) {
        self.diary.lock().unwrap().lines.push(line.to_owned());
    }
}

fn file_with(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

/// Says what CRIU 4.2 says to its page server.
fn play_criu(mut socket: &UnixStream) {
    let header = |command: u32, pages: u64, id: u64| {
        let words = [u64::from(command), pages, 0, id].map(u64::to_ne_bytes);
        words.concat()
    };
    let (id, mut answer) = (1 << 8 | 1, [0; 4]);
    let _cut_off = socket.write_all(&header(4, 0, id));
    let _cut_off = socket.read_exact(&mut answer[..1]);
    let _cut_off = socket.write_all(&header(4 << 16 | 6, MEMORY / 4096, id));
    let _cut_off = socket.write_all(&vec![5; usize::try_from(MEMORY).unwrap()]);
    let _cut_off = socket.write_all(&header(0x1024, 0, 0));
    let _cut_off = socket.read_exact(&mut answer);
}

impl SourcePod for Leaving {
    fn offer(&self) -> Offer {
        let container = |n: u32| Container {
            id: n.to_string(),
            descriptors: vec![format!("pipe:[{n}]")],
            ..Container::default()
        };
        Offer { pod_id: "at-source".into(), containers: vec![container(0), container(1)], ..Offer::default() }
    }

    async fn start_dumps(&self, pages: Vec<OwnedFd>, _: Duration) -> Result<(), Failure> {
        note(&self.diary, Step::StartDumps, "start dumps".into()).await?;
        let dumps = pages.into_iter().map(|fd| std::thread::spawn(move || play_criu(&fd.into())));
        self.dumps.lock().unwrap().extend(dumps);
        Ok(())
    }

    async fn freeze(&self, _: Duration) -> Result<Cut, Failure> {
        note(&self.diary, Step::Freeze, "freeze".into()).await?;
        let now = sys::timens::clocks();
        let clocks =
            ClockReading { monotonic: now.monotonic, boottime: now.boottime, realtime: now.realtime };
        Ok(Cut { clocks, freezing: Duration::from_micros(200) })
    }

    async fn dumps(&self) -> Result<Vec<Dumped>, Failure> {
        note(&self.diary, Step::Dumps, "dumps".into()).await?;
        let dumps = std::mem::take(&mut *self.dumps.lock().unwrap());
        tokio::task::spawn_blocking(|| dumps.into_iter().for_each(|dump| dump.join().unwrap()))
            .await
            .unwrap();
        let dir = self.diary.lock().unwrap().dir.path().to_owned();
        let dump = |n: u8| {
            let images = dir.join(n.to_string());
            fs::create_dir(&images).unwrap();
            fs::write(images.join("core-1.img"), vec![n; 300_000]).unwrap();
            fs::write(images.join("dump.log"), "words").unwrap();
            Dumped { images: File::open(images).unwrap().into(), descriptors: vec![format!("pipe:[{n}]")] }
        };
        Ok(vec![dump(0), dump(1)])
    }

    async fn diffs(&self) -> Result<Vec<Diff>, Failure> {
        note(&self.diary, Step::Diffs, "diffs".into()).await?;
        let diff =
            |n| Diff { archive: file_with(format!("diff {n}").as_bytes()), deleted: vec!["/gone".into()] };
        Ok(vec![diff(0), diff(1)])
    }

    async fn shm(&self) -> Result<Option<File>, Failure> {
        note(&self.diary, Step::Shm, "shm".into()).await?;
        Ok(Some(file_with(b"shm")))
    }

    async fn hold(&self) -> Result<(), Failure> {
        note(&self.diary, Step::Hold, "hold".into()).await
    }

    async fn thaw(&self) {
        self.line("thaw");
    }

    async fn retire(&self) -> Result<(), Failure> {
        self.line("retire");
        Ok(())
    }
}

/// The destination, and the pod there: there is one at most.
#[derive(Clone)]
pub struct Taking(pub Arc<Mutex<Diary>>);

impl Taking {
    pub fn diary(&self) -> Vec<String> {
        self.0.lock().unwrap().lines.clone()
    }

    pub fn images(&self, index: usize) -> PathBuf {
        self.0.lock().unwrap().dir.path().join(index.to_string())
    }
}

impl Destination for Taking {
    type Pod = Self;

    async fn receive(&self, pod: PodId, offer: Offer, unwanted: Unwanted) -> Result<Self, Failure> {
        assert_eq!(offer.containers.len(), 2);
        self.0.lock().unwrap().id = pod.to_string();
        tokio::select! {
            noted = note(&self.0, Step::Receive, "receive two containers".into()) => noted.map(|()| self.clone()),
            _ = unwanted => {
                self.0.lock().unwrap().lines.push("unwanted".into());
                Err(Failure::new(FailureKind::Precondition, "unwanted"))
            }
        }
    }
}

impl DestinationPod for Taking {
    fn id(&self) -> String {
        self.0.lock().unwrap().id.clone()
    }

    fn images(&self, container: usize) -> Result<OwnedFd, Failure> {
        if self.0.lock().unwrap().trouble.is_some_and(|trouble| trouble.step == Step::Images) {
            return Err(Failure::new(FailureKind::Exhausted, "no luck with Images"));
        }
        let dir = Self::images(self, container);
        fs::create_dir(&dir).unwrap();
        Ok(File::open(dir).unwrap().into())
    }

    async fn apply(&self, container: usize, mut tar: File, deleted: Vec<PathBuf>) -> Result<(), Failure> {
        let mut text = String::new();
        tar.read_to_string(&mut text).unwrap();
        note(&self.0, Step::Apply, format!("apply {container} {deleted:?} {text}")).await
    }

    async fn apply_shm(&self, mut tar: File) -> Result<(), Failure> {
        let mut text = String::new();
        tar.read_to_string(&mut text).unwrap();
        note(&self.0, Step::ApplyShm, text).await
    }

    async fn begin_restore(&self, _: Duration) -> Result<(), Failure> {
        Ok(())
    }

    async fn set_clocks(&self, _: Offsets) -> Result<(), Failure> {
        note(&self.0, Step::Clocks, "clocks".into()).await
    }

    async fn restore(&self) -> Result<(), Failure> {
        note(&self.0, Step::Restore, "restore".into()).await
    }

    async fn release(&self, at: i64) -> Result<i64, Failure> {
        while sys::timens::monotonic() < at {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        note(&self.0, Step::Release, "release".into()).await?;
        Ok(sys::timens::monotonic())
    }

    async fn namespaces(&self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    async fn abort(&self) {
        self.0.lock().unwrap().lines.push("abort".into());
    }
}
