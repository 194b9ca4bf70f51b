//! The descriptors beside a request.

use std::os::fd::OwnedFd;

use crate::error::CreateError;

/// The descriptors of one frame; a plan names them by index, each once.
#[derive(Debug)]
pub struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    /// In the order in which they arrived.
    #[must_use]
    pub fn new(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into_iter().map(Some).collect())
    }

    /// The descriptor that `field` names.
    ///
    /// # Errors
    /// [`CreateError::Descriptor`] when there is none, or it was taken before.
    pub fn take(&mut self, field: &'static str, index: u32) -> Result<OwnedFd, CreateError> {
        let found = usize::try_from(index).ok().and_then(|i| self.0.get_mut(i)).and_then(Option::take);
        found.ok_or(CreateError::Descriptor { field, index })
    }
}
