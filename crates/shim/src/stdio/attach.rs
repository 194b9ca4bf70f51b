//! Copies of a container's output for whoever is attached, beside the log.
//!
//! **Policy**: a container never waits for a reader. Each reader has a pipe, which is the buffer; when a piece does not
//! fit, the reader has fallen behind, and its pipe is closed, so that it sees an end rather than a gap.

use std::os::fd::{AsFd, OwnedFd};

use api::shim::v1::{self as proto, response};
use executor::Descriptors;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use crate::{
    error::RequestError,
    log::Stream,
    pod::{Answer, Pod},
    task::{Phase, PhaseName},
};

/// Readers of one container at once.
const READERS: usize = 64;

/// The pipes that a container's output is copied into.
#[derive(Default)]
pub struct Attached(Vec<(Stream, OwnedFd)>);

impl Attached {
    /// Copies a stream from now on; `false`: there are too many readers.
    fn add(&mut self, stream: Stream, pipe: OwnedFd) -> Result<bool, Errno> {
        self.forget_readerless();
        if self.0.len() >= READERS {
            return Ok(false);
        }
        rustix::io::ioctl_fionbio(&pipe, true)?;
        self.0.push((stream, pipe));
        Ok(true)
    }

    /// Readers that left are noticed by what is written; a silent container would keep them.
    fn forget_readerless(&mut self) {
        const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.0.retain(|(_, pipe)| {
            let mut end = [PollFd::new(pipe, PollFlags::empty())];
            !matches!(poll(&mut end, Some(&NOW)), Ok(ready) if ready > 0)
        });
    }

    pub fn copy(&mut self, stream: Stream, data: &[u8]) {
        self.0.retain(|(own, pipe)| *own != stream || rustix::io::write(pipe, data) == Ok(data.len()));
    }

    pub fn end(&mut self, stream: Stream) {
        self.0.retain(|(own, _)| *own != stream);
    }
}

impl Pod {
    pub fn attach(
        &mut self,
        request: &proto::AttachRequest,
        mut fds: Descriptors,
    ) -> Result<Answer, RequestError> {
        let mut take = |field, index: Option<u32>| index.map(|index| fds.take(field, index)).transpose();
        let stdout = take("stdout_fd", request.stdout_fd)?;
        let stderr = take("stderr_fd", request.stderr_fd)?;
        let task = self.task_mut(&request.id)?;
        if !matches!(task.phase, Phase::Running(_)) {
            return Err(task.wrong_phase(PhaseName::Running));
        }
        let failed = || RequestError::system("attach to", request.id.as_str());
        for (stream, pipe) in [(Stream::Stdout, stdout), (Stream::Stderr, stderr)] {
            if let Some(pipe) = pipe
                && !task.output.attached.add(stream, pipe).map_err(failed())?
            {
                return Err(failed()(Errno::USERS));
            }
        }
        let input = task.terminal.as_ref().map(|terminal| terminal.as_fd());
        let input = input.or(task.stdin.as_ref().map(AsFd::as_fd)).filter(|_| request.stdin);
        let input = input.map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3)).transpose().map_err(failed())?;
        let fds: Vec<OwnedFd> = input.into_iter().collect();
        let stdin_fd = (!fds.is_empty()).then_some(0);
        Ok(Answer { result: response::Result::Attach(proto::AttachResponse { stdin_fd }), fds })
    }

    pub fn close_stdin(&mut self, request: &proto::CloseStdinRequest) -> Result<Answer, RequestError> {
        self.task_mut(&request.id)?.stdin = None;
        Ok(Answer::done())
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        fcntl_setpipe_size(&write, 4096).expect("a small pipe");
        (read, write)
    }

    #[test]
    fn who_falls_behind_sees_an_end_and_nobody_waits() {
        let mut attached = Attached::default();
        let ((slow, slow_end), (fast, fast_end)) = (pipe(), pipe());
        for end in [slow_end, fast_end] {
            assert_eq!(attached.add(Stream::Stdout, end), Ok(true));
        }
        let (mut text, mut seen) = ([0; 8192], 0);
        for _ in 0..10 {
            attached.copy(Stream::Stdout, &[b'x'; 1000]);
            attached.copy(Stream::Stderr, &[b'e'; 1000]);
            seen += rustix::io::read(&fast, &mut text).expect("read");
        }
        assert_eq!((attached.0.len(), seen), (1, 10_000));
        assert_eq!(rustix::io::read(&slow, &mut text), Ok(4000), "what fitted, then an end");
        assert_eq!(rustix::io::read(&slow, &mut text), Ok(0));
        attached.end(Stream::Stdout);
        assert_eq!(rustix::io::read(&fast, &mut text), Ok(0));
    }

    #[test]
    fn readers_that_left_are_forgotten_though_nothing_is_said() {
        let mut attached = Attached::default();
        for _ in 0..3 * READERS {
            let (read, write) = pipe();
            assert_eq!(attached.add(Stream::Stdout, write), Ok(true));
            drop(read);
        }
        assert_eq!(attached.0.len(), 1);
    }
}
