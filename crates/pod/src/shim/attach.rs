//! Calls about a container's streams.

use std::os::fd::{BorrowedFd, OwnedFd};

use api::shim::v1::{self as shim, request::Call, response};

use super::client::{CallError, Client, PROMPT};

impl Client {
    /// Copies a container's output into the pipes; gives the write end of its input if that is asked for and there.
    pub(crate) async fn attach(
        &self,
        request: shim::AttachRequest,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Option<OwnedFd>, CallError> {
        match self.call(Call::Attach(request), fds, PROMPT).await? {
            (response::Result::Attach(_), fds) => Ok(fds.into_iter().next()),
            _ => Err(CallError::Protocol("attach")),
        }
    }

    pub(crate) async fn close_stdin(&self, id: &str) -> Result<(), CallError> {
        let call = Call::CloseStdin(shim::CloseStdinRequest { id: id.to_owned() });
        self.order("close stdin", call, &[], PROMPT).await
    }

    pub(crate) async fn resize(&self, id: &str, width: u16, height: u16) -> Result<(), CallError> {
        let (width, height) = (width.into(), height.into());
        let call = Call::ResizeTty(shim::ResizeTtyRequest { id: id.to_owned(), width, height });
        self.order("resize", call, &[], PROMPT).await
    }
}
