//! How a forked child of ours reports to its parent: once `Ready` with descriptors, or once `Failed` with the step,
//! the errno and the object. The child writes nowhere else and formats no message.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use sys::Errno;
use sys::seqpacket::{Frame, SeqPacket};

const READY: u8 = 0;
const FAILED: u8 = 1;
const GO: u8 = 2;

/// One end of the conversation. Both ends are close-on-exec: an execve in the child ends it.
#[derive(Debug)]
pub struct Channel(SeqPacket);

/// What a child could not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{step} {object}: {errno}")]
pub struct Failure {
    /// The step, in the executor's words: "setns time", "mount", "pivot_root".
    pub step: String,
    /// What the kernel answered.
    pub errno: Errno,
    /// Path, name or id that it was about; may be empty.
    pub object: String,
}

/// Why a conversation ended without the awaited message.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The child said what failed.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// It ended without a word.
    #[error("the child ended before it reported")]
    Closed,
    /// The socket itself failed.
    #[error("talk to the child")]
    Io(#[source] Errno),
    /// A message out of turn.
    #[error("unexpected message {0} from the child")]
    Unexpected(u8),
}

impl Failure {
    /// Of this step, about this object.
    pub fn new(step: impl Into<String>, object: impl Into<String>, errno: Errno) -> Self {
        Self { step: step.into(), errno, object: object.into() }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![FAILED];
        bytes.extend(self.errno.raw_os_error().to_le_bytes());
        bytes.extend(self.step.as_bytes());
        bytes.push(0);
        bytes.extend(self.object.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (errno, text) = bytes.split_first_chunk::<4>()?;
        let (step, object) = text.split_at(text.iter().position(|b| *b == 0)?);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let errno = Errno::from_raw_os_error(i32::from_le_bytes(*errno));
        Some(Self { step: text(step), errno, object: text(&object[1..]) })
    }
}

/// Names the step and object of a failed call, in the manner of `anyhow`'s context.
pub trait Step<T> {
    /// What was being done, and to what.
    fn step(self, step: &str, object: impl AsRef<str>) -> Result<T, Failure>;
}

impl<T> Step<T> for sys::Result<T> {
    fn step(self, step: &str, object: impl AsRef<str>) -> Result<T, Failure> {
        self.map_err(|errno| Failure::new(step, object.as_ref(), errno))
    }
}

impl<T> Step<T> for std::io::Result<T> {
    fn step(self, step: &str, object: impl AsRef<str>) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(step, object.as_ref(), sys::errno_of(&error)))
    }
}

impl Channel {
    /// Parent's and child's end.
    pub fn pair() -> sys::Result<(Self, Self)> {
        SeqPacket::pair().map(|(a, b)| (Self(a), Self(b)))
    }

    /// Child: all is done; here are the descriptors that were asked for.
    pub fn ready(&self, fds: &[BorrowedFd<'_>]) -> sys::Result<()> {
        self.0.send(&[READY], fds)
    }

    /// Child: this failed. Errors are ignored: the parent then sees the end without a word.
    pub fn failed(&self, failure: &Failure) {
        let _ = self.0.send(&failure.encode(), &[]);
    }

    /// Parent: go on.
    pub fn go(&self) -> sys::Result<()> {
        self.0.send(&[GO], &[])
    }

    /// Child: waits for [`Channel::go`]; false when the parent is gone.
    pub fn wait_go(&self) -> bool {
        matches!(self.0.recv(), Ok(Some(frame)) if frame.bytes == [GO])
    }

    /// Parent: waits for the child's word.
    pub fn wait_ready(&self) -> Result<Vec<OwnedFd>, ChannelError> {
        self.wait(READY).map(|frame| frame.fds)
    }

    fn wait(&self, wanted: u8) -> Result<Frame, ChannelError> {
        let frame = self.0.recv().map_err(ChannelError::Io)?.ok_or(ChannelError::Closed)?;
        match frame.bytes.split_first() {
            Some((kind, _)) if *kind == wanted => Ok(frame),
            Some((&FAILED, rest)) => {
                Err(Failure::decode(rest).map_or(ChannelError::Unexpected(FAILED), ChannelError::Failed))
            }
            other => Err(ChannelError::Unexpected(other.map_or(u8::MAX, |(kind, _)| *kind))),
        }
    }

    /// Parent: waits for the child's execve, which closes its end.
    pub fn wait_exec(&self) -> Result<(), ChannelError> {
        match self.wait_ready() {
            Err(ChannelError::Closed) => Ok(()),
            Ok(_) => Err(ChannelError::Unexpected(READY)),
            Err(other) => Err(other),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_arrive_whole() {
        let (parent, child) = Channel::pair().unwrap();
        let sent = Failure::new("mount", "/proc", Errno::NOTDIR);
        child.failed(&sent);
        match parent.wait_ready() {
            Err(ChannelError::Failed(got)) => assert_eq!(got, sent),
            other => panic!("{other:?}"),
        }
        drop(child);
        assert!(parent.wait_exec().is_ok());
        assert!(matches!(parent.wait_ready(), Err(ChannelError::Closed)));
    }
}
