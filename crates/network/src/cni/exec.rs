//! Runs one plugin: a process of its own group, with bounds on time and output.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, fcntl_setfl, memfd_create};
use rustix::process::{Pid, Signal, kill_process_group};

/// Of standard output and standard error together, in bytes. A result takes some hundred.
const OUTPUT_LIMIT: usize = 1 << 20;

/// Why a plugin gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It cannot be started, or not be talked to.
    #[error("start it")]
    Start(#[source] io::Error),
    /// It was killed, with its children.
    #[error("it did not end within {} s and was killed", deadline.as_secs())]
    Deadline {
        /// As configured.
        deadline: Duration,
    },
    /// It was killed, with its children.
    #[error("it wrote more than {OUTPUT_LIMIT} bytes and was killed")]
    Output,
    /// It crashed, or somebody killed it.
    #[error("it was ended by signal {signal}")]
    Signal {
        /// See signal(7).
        signal: i32,
    },
}

/// What a plugin left.
#[derive(Debug)]
pub(super) struct Output {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Runs `program` to its end, which is that of all processes in its group: nobody would look after one that stays behind.
pub(super) fn run(
    program: &Path,
    environment: &[(&str, OsString)],
    input: &[u8],
    deadline: Duration,
) -> Result<Output, ExecError> {
    let mut child = Command::new(program)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(memory(input).map_err(ExecError::Start)?)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .current_dir("/")
        .process_group(0)
        .spawn()
        .map_err(ExecError::Start)?;
    let heard = listen(&mut child, deadline);
    // The child is not reaped yet, so its number is still its own and its group's.
    let _ = pid(&child).map(|group| kill_process_group(group, Signal::KILL));
    let status = child.wait().map_err(ExecError::Start)?;
    let (stdout, stderr) = heard?;
    match (status.code(), status.signal()) {
        (Some(code), _) => Ok(Output { code, stdout, stderr }),
        (None, signal) => Err(ExecError::Signal { signal: signal.unwrap_or(0) }),
    }
}

fn pid(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

/// Standard input that needs nobody to write it while the plugin reads, or does not.
fn memory(input: &[u8]) -> io::Result<Stdio> {
    let mut file = File::from(memfd_create("cni", MemfdFlags::CLOEXEC)?);
    file.write_all(input)?;
    file.rewind()?;
    Ok(file.into())
}

/// What the plugin writes until it ends; a child that keeps the pipes open is not waited for.
fn listen(child: &mut Child, deadline: Duration) -> Result<(Vec<u8>, Vec<u8>), ExecError> {
    let end = Instant::now() + deadline;
    let process = pid(child).ok_or_else(|| ExecError::Start(io::ErrorKind::NotFound.into()))?;
    let process = sys::pidfd::open(process).map_err(|error| ExecError::Start(error.into()))?;
    let mut out = Stream::new(child.stdout.take()).map_err(ExecError::Start)?;
    let mut err = Stream::new(child.stderr.take()).map_err(ExecError::Start)?;
    loop {
        let open = [&out, &err].into_iter().filter_map(|stream| stream.pipe.as_ref());
        let mut fds = vec![PollFd::new(&process, PollFlags::IN)];
        fds.extend(open.map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        let left = end.saturating_duration_since(Instant::now());
        let timeout = left.try_into().map_err(|_| ExecError::Deadline { deadline })?;
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Err(ExecError::Deadline { deadline }),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(ExecError::Start(error.into())),
        }
        let ended = fds.first().is_some_and(|process| !process.revents().is_empty());
        out.drain();
        err.drain();
        if out.text.len() + err.text.len() > OUTPUT_LIMIT {
            return Err(ExecError::Output);
        }
        if ended {
            return Ok((out.text, err.text));
        }
    }
}

/// A pipe and what came out of it.
struct Stream {
    /// Absent after its end.
    pipe: Option<File>,
    text: Vec<u8>,
}

impl Stream {
    fn new(pipe: Option<impl Into<OwnedFd>>) -> io::Result<Self> {
        let pipe = pipe.map(|pipe| File::from(pipe.into()));
        if let Some(pipe) = &pipe {
            fcntl_setfl(pipe, fcntl_getfl(pipe)? | OFlags::NONBLOCK)?;
        }
        Ok(Self { pipe, text: Vec::new() })
    }

    /// Takes what is there, as long as it is within the limit.
    fn drain(&mut self) {
        let mut buffer = [0; 16 * 1024];
        while let Some(pipe) = self.pipe.as_mut().filter(|_| self.text.len() <= OUTPUT_LIMIT) {
            match pipe.read(&mut buffer) {
                Ok(read) if read > 0 => self.text.extend_from_slice(buffer.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => self.pipe = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn sh(script: &str, deadline: u64) -> Result<Output, ExecError> {
        let name = format!("cni-exec-{}-{:?}", std::process::id(), thread::current().id());
        let shell = std::env::temp_dir().join(name);
        std::fs::write(&shell, "#!/bin/sh\neval \"$SCRIPT\"\n").unwrap();
        std::fs::set_permissions(&shell, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let environment = [("SCRIPT", script.into())];
        let result = run(&shell, &environment, b"input", Duration::from_millis(deadline));
        std::fs::remove_file(&shell).unwrap();
        result
    }

    #[test]
    fn input_output_and_code_are_the_plugins() {
        let output = sh("cat; echo oops >&2; exit 3", 5000).unwrap();
        assert_eq!((output.code, &output.stdout[..], &output.stderr[..]), (3, &b"input"[..], &b"oops\n"[..]));
    }

    #[test]
    fn what_hangs_floods_or_dies_is_told_apart() {
        let began = Instant::now();
        assert!(matches!(sh("sleep 60 & sleep 60", 100), Err(ExecError::Deadline { .. })));
        assert!(matches!(sh("exec >&- 2>&-; sleep 60", 100), Err(ExecError::Deadline { .. })));
        assert!(matches!(sh("exec cat /dev/zero", 5000), Err(ExecError::Output)));
        assert!(matches!(sh("kill -SEGV $$", 5000), Err(ExecError::Signal { signal: 11 })));
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_child_left_behind_is_neither_waited_for_nor_left() {
        let began = Instant::now();
        let output = sh("sleep 60 & echo $!", 30_000).unwrap();
        assert!(began.elapsed() < Duration::from_secs(5));
        let child = String::from_utf8(output.stdout).unwrap();
        let alive = || {
            std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).is_ok_and(|s| !s.contains(" Z "))
        };
        while alive() {
            assert!(began.elapsed() < Duration::from_secs(5), "{child} is alive");
            thread::sleep(Duration::from_millis(5));
        }
    }
}
