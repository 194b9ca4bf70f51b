//! A real daemon in directories and namespaces of its own.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use api::meridian::v1::meridian_client::MeridianClient;
use hyper_util::rt::TokioIo;
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// Whether the tests can run; says why when not.
pub fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: the daemon needs root");
    }
    root
}

/// Directories for daemons, and a configuration file.
pub struct Place {
    pub directory: TempDir,
}

impl Place {
    pub fn new() -> Self {
        let place = Self { directory: tempfile::tempdir().unwrap() };
        place.configure("");
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn configure(&self, text: &str) {
        fs::write(self.path("config.toml"), text).unwrap();
    }

    pub fn socket(&self) -> PathBuf {
        self.path("run/meridian.sock")
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meridiand"));
        command.arg("--config").arg(self.path("config.toml"));
        command.arg("--root").arg(self.path("root")).arg("--run").arg(self.path("run"));
        // The shim is only copied here: these tests run no pod.
        command.env("MERIDIAN_SHIM", "/bin/true");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Starts a daemon and waits until it is ready.
    pub fn daemon(&self) -> Daemon {
        Daemon::start(self.command())
    }

    pub async fn client(&self) -> MeridianClient<Channel> {
        let socket = self.socket();
        let connect = service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel =
            Endpoint::from_static("http://localhost").connect_with_connector(connect).await.unwrap();
        MeridianClient::new(channel)
    }
}

/// A running daemon; killed with the value.
pub struct Daemon {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Daemon {
    pub fn start(command: Command) -> Self {
        let mut child = spawn(command);
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("meridiand ready on ") {
            line.clear();
            assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "the daemon ended before it was ready");
            eprint!("{line}");
        }
        Self { child, stderr }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// How it ended and what it said.
    pub fn ended(mut self) -> (ExitStatus, String) {
        let text = self.stderr.by_ref().lines().map(Result::unwrap).collect::<Vec<_>>().join("\n");
        (self.child.wait().unwrap(), text)
    }

    pub fn end(self) {
        self.signal(Signal::TERM);
        let (status, text) = self.ended();
        assert!(status.success(), "{status} {text}");
    }

    pub fn kill(self) {
        self.signal(Signal::KILL);
        assert_eq!(self.ended().0.signal(), Some(9));
    }

    /// Resident memory in kB and number of threads.
    pub fn cost(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let number = |key: &str| {
            let line = status.lines().find(|line| line.starts_with(key)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        (number("VmRSS:"), number("Threads:"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a daemon that is expected to refuse to start, and returns its last line.
pub fn refusal(command: Command) -> String {
    let output = spawn(command).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap().lines().last().unwrap_or_default().to_owned()
}

/// In a network and a mount namespace of its own, which the child inherits from the thread that makes them: bridge and
/// pins go with the daemon.
fn spawn(mut command: Command) -> Child {
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        sys::netns::bring_up_loopback().unwrap(); // the streaming server listens there
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        command.spawn().unwrap()
    })
    .join()
    .unwrap()
}

pub async fn settle() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}
