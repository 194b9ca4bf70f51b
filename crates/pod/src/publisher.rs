//! What readers see of a pod: one immutable value, replaced as a whole by the pod's driver.

use std::sync::Arc;

use api::id::{ContainerId, PodId};
use tokio::sync::{mpsc, watch};
use tracing::Span;

use crate::container::Container;
use crate::driver::Request;
use crate::pod::Pod;
use crate::sandbox::Sandbox;

/// A pod at one instant.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub sandbox: Arc<Sandbox>,
    /// In the order they were created.
    pub containers: Vec<Arc<Container>>,
}

impl View {
    pub(crate) fn container(&self, id: &ContainerId) -> Option<&Arc<Container>> {
        self.containers.iter().find(|c| c.id() == id)
    }
}

/// A request, and the span of the RPC it comes from, which what it leads to belongs to.
#[derive(Debug)]
pub(crate) struct Asked {
    pub request: Request,
    pub span: Span,
}

/// The way to a pod for everybody but its driver: requests in, views out.
#[derive(Debug)]
pub(crate) struct Handle {
    pub pod: Arc<Pod>,
    pub requests: mpsc::UnboundedSender<Asked>,
    pub views: watch::Receiver<Arc<View>>,
}

impl Handle {
    pub(crate) fn id(&self) -> &PodId {
        &self.pod.id
    }

    /// Sends a request to the driver; false when the pod is gone.
    pub(crate) fn ask(&self, request: Request) -> bool {
        self.requests.send(Asked { request, span: Span::current() }).is_ok()
    }

    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.views.borrow())
    }
}
