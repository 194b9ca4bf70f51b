//! A pod that leaves.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::cri::v1::NamespaceMode;
use api::id::PodId;
use api::peer::v1 as peer;
use futures_util::future::try_join_all;
use migration::clock::ClockReading;
use migration::transport::{Cut, Diff, Dumped, Failure, FailureKind, SourcePod};
use migration::tree;
use prost::Message;
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{
    HELD, MoveError, called, failure, images_dir, io_failure, make_images, remove_images, temporary,
};
use crate::check::{Obstacles, obstacles};
use crate::container::Container;
use crate::driver::Request;
use crate::pod::Pod;
use crate::pods::{Pods, ask};
use crate::publisher::Handle;
use crate::request::Activity;
use crate::sandbox::{namespaces, pid_mode, user_namespace};
use crate::shim::{CallError, Client, PendingDump};
use crate::state::ContainerState;

/// Longest wait for the differences of root filesystems.
const DIFF: Duration = Duration::from_secs(600);

/// A pod claimed for a move. Dropped without more ado, it is free again.
#[derive(Debug)]
pub struct MovingPod {
    pods: Pods,
    handle: Arc<Handle>,
    client: Client,
    containers: Vec<Leaving>,
    dumps: Mutex<Vec<(PendingDump, OwnedFd)>>,
    freezing: AtomicBool,
}

/// A container of it, and what its standard streams are.
#[derive(Debug)]
struct Leaving {
    container: Arc<Container>,
    descriptors: Vec<String>,
}

impl Pods {
    /// Claims a pod for a move to another node.
    pub async fn begin_move(&self, id: &PodId) -> Result<MovingPod, MoveError> {
        if self.node.config.criu.is_empty() {
            return Err(MoveError::NoCriu);
        }
        let handle = self.registry.pod(id)?;
        let client = handle.pod.client().cloned().ok_or_else(|| MoveError::Gone(id.clone()))?;
        let claim = |reply| Request::BeginCapture { activity: Activity::Moving, reply };
        ask(&handle, claim)
            .await
            .ok_or_else(|| MoveError::Gone(id.clone()))?
            .map_err(|source| MoveError::Refused { pod: id.clone(), source })?;
        // From here on the claim ends with this.
        let mut pod = MovingPod {
            pods: self.clone(),
            containers: Vec::new(),
            handle,
            client,
            dumps: Mutex::default(),
            freezing: AtomicBool::new(false),
        };
        let view = pod.handle.view();
        let running = view.containers.iter().filter(|c| c.state() == ContainerState::Running);
        pod.containers =
            running.map(|c| Leaving { descriptors: descriptors(c), container: Arc::clone(c) }).collect();
        pod.check()?;
        pod.check_processes().await?;
        Ok(pod)
    }
}

impl MovingPod {
    /// What cannot be captured is said before anything is frozen.
    fn check(&self) -> Result<(), MoveError> {
        let pod = self.handle.id();
        let unsupported = |reason: String| Err(MoveError::Unsupported { pod: pod.clone(), reason });
        if self.containers.is_empty() {
            return Err(MoveError::Empty(pod.clone()));
        }
        if user_namespace(&self.handle.pod.config).is_some() {
            return unsupported("it has a user namespace of its own: run it with userns_options NODE".into());
        }
        for Leaving { container, descriptors } in &self.containers {
            let linux = container.metadata.config.linux.as_ref();
            let options =
                linux.and_then(|l| l.security_context.as_ref()).and_then(|s| s.namespace_options.as_ref());
            let name = container.name().0;
            if pid_mode(&self.handle.pod.config, options) != NamespaceMode::Container {
                return unsupported(format!(
                    "container {name} has no pid namespace of its own: run it with pid mode CONTAINER"
                ));
            }
            if descriptors.iter().any(String::is_empty) {
                return unsupported(format!("the standard streams of container {name} cannot be read"));
            }
        }
        if namespaces(&self.handle.pod.config).network == NamespaceMode::Node as i32 {
            return unsupported("it is on the node's network: run it with network mode POD".into());
        }
        Ok(())
    }

    /// The same of what its processes have.
    async fn check_processes(&self) -> Result<(), MoveError> {
        let pod = self.handle.id();
        let containers: Vec<_> =
            self.containers.iter().map(|leaving| Arc::clone(&leaving.container)).collect();
        let found = obstacles(&self.client, &containers).await;
        let found = found.map_err(|source| MoveError::Shim { pod: pod.clone(), source })?;
        if found.is_empty() {
            return Ok(());
        }
        Err(MoveError::Obstacles { pod: pod.clone(), obstacles: Obstacles(found) })
    }

    fn pod(&self) -> &Pod {
        &self.handle.pod
    }

    fn ids(&self) -> Vec<String> {
        self.containers.iter().map(|leaving| leaving.container.id().to_string()).collect()
    }

    /// What the other node can pull a container's image by: best a digest, which cannot mean another one there.
    fn reference(&self, container: &Container) -> String {
        let image = self.pods.node.images.get(&container.metadata.image_id);
        let known = image.and_then(|image| image.repo_digests.first().or(image.repo_tags.first()).cloned());
        known.unwrap_or_else(|| container.metadata.image_name.clone())
    }

    fn pending(&self) -> Vec<(PendingDump, OwnedFd)> {
        std::mem::take(&mut *self.dumps.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn diff(&self, container: &Container) -> Result<Diff, Failure> {
        let dir = self.pod().node.container_dir(container.id());
        let (mut archive, mut deleted) = (temporary(&dir)?, temporary(&dir)?);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = dir.join("upper");
        let upper =
            openat(CWD, &path, flags, Mode::empty()).map_err(|e| io_failure("open", &path, &e.into()))?;
        let id = container.id().as_str();
        let written = self.client.diff(id, upper.as_fd(), archive.as_fd(), deleted.as_fd(), DIFF).await;
        written.map_err(called)?;
        let mut list = Vec::new();
        let read =
            archive.rewind().and_then(|()| deleted.rewind()).and_then(|()| deleted.read_to_end(&mut list));
        read.map_err(|error| io_failure("read changes in", &dir, &error))?;
        let deleted = serde_json::from_slice(&list).map_err(|e| Failure::new(FailureKind::Internal, e))?;
        Ok(Diff { archive, deleted })
    }
}

impl Drop for MovingPod {
    fn drop(&mut self) {
        let _ended_with_its_pod = self.handle.ask(Request::EndCapture);
    }
}

impl SourcePod for MovingPod {
    fn offer(&self) -> peer::Offer {
        let pod = self.pod();
        let container = |Leaving { container, descriptors }: &Leaving| peer::Container {
            id: container.id().to_string(),
            name: container.name().0.to_owned(),
            config: container.current_config().encode_to_vec().into(),
            image: self.reference(container),
            image_id: container.metadata.image_id.clone(),
            attempt: container.name().1,
            descriptors: descriptors.clone(),
        };
        peer::Offer {
            pod_id: pod.id.to_string(),
            sandbox_config: self.handle.view().sandbox.current_config().encode_to_vec().into(),
            handler: pod.handler.clone(),
            containers: self.containers.iter().map(container).collect(),
            memory: self.containers.iter().map(|leaving| resident(leaving.container.status.pid)).sum(),
        }
    }

    async fn start_dumps(&self, pages: Vec<OwnedFd>, deadline: Duration) -> Result<(), Failure> {
        let dir = images_dir(self.pod());
        for (index, (leaving, pages)) in self.containers.iter().zip(pages).enumerate() {
            let images = make_images(&dir, index)?;
            let id = leaving.container.id().as_str();
            let dump = self.client.begin_dump(id, images.as_fd(), Some(pages.as_fd()), deadline).await;
            let dump = dump.map_err(called)?;
            self.dumps.lock().unwrap_or_else(PoisonError::into_inner).push((dump, images));
        }
        Ok(())
    }

    async fn freeze(&self, watchdog: Duration) -> Result<Cut, Failure> {
        self.freezing.store(true, Ordering::Relaxed);
        let frozen = self.client.freeze(self.ids(), watchdog, watchdog).await.map_err(called)?;
        let clocks = frozen.clocks.unwrap_or_default();
        Ok(Cut {
            clocks: ClockReading {
                monotonic: clocks.monotonic,
                boottime: clocks.boottime,
                realtime: clocks.realtime,
            },
            freezing: Duration::from_nanos(frozen.frozen_at.saturating_sub(frozen.froze_at)),
        })
    }

    async fn dumps(&self) -> Result<Vec<Dumped>, Failure> {
        let each = self.pending().into_iter().map(|(dump, images)| async move {
            let dumped = dump.wait().await.map_err(called)?;
            let descriptors = serde_json::from_str(&dumped.descriptors);
            let descriptors = descriptors.map_err(|error| Failure::new(FailureKind::Internal, error))?;
            Ok(Dumped { images, descriptors })
        });
        try_join_all(each).await
    }

    async fn diffs(&self) -> Result<Vec<Diff>, Failure> {
        try_join_all(self.containers.iter().map(|leaving| self.diff(&leaving.container))).await
    }

    async fn shm(&self) -> Result<Option<File>, Failure> {
        if self.pod().node_ipc() {
            return Ok(None);
        }
        let dir = self.pod().node.pod_dir(&self.pod().id);
        let work = move || {
            let shm = dir.join("shm");
            let opened = File::open(&shm).map_err(|error| io_failure("open", &shm, &error))?;
            let mut archive = temporary(&dir)?;
            tree::pack(&opened, &mut archive, tree::Source::Plain)
                .map_err(|error| Failure::new(FailureKind::Internal, error))?;
            archive.rewind().map_err(|error| io_failure("rewind the archive of", &shm, &error))?;
            Ok(Some(archive))
        };
        let packed = tokio::task::spawn_blocking(work).await;
        packed.unwrap_or_else(|error| Err(Failure::new(FailureKind::Internal, error)))
    }

    async fn hold(&self) -> Result<(), Failure> {
        let marker = self.pod().node.pod_dir(&self.pod().id).join(HELD);
        fs::write(&marker, "").map_err(|error| io_failure("write", &marker, &error))?;
        self.client.hold().await.map_err(called)
    }

    async fn thaw(&self) {
        if self.freezing.swap(false, Ordering::Relaxed) {
            thaw(self.pod()).await;
        }
        drop(self.pending());
        remove_images(images_dir(self.pod())).await;
    }

    async fn retire(&self) -> Result<(), Failure> {
        self.pods.remove_sandbox(self.handle.id()).await.map_err(failure)
    }
}

/// Lets a pod run again that is frozen, or may be about to be because nobody waited for the freeze's answer.
pub(super) async fn thaw(pod: &Pod) {
    const TRIES: u32 = 20;
    let Some(client) = pod.client() else { return };
    for _ in 0..TRIES {
        match client.resume(false).await {
            Ok(()) => break,
            // Not frozen, or not yet.
            Err(CallError::Refused(_)) => match client.state(Duration::from_secs(5)).await {
                Ok(state) if state.frozen => {}
                _ => break,
            },
            Err(error) => {
                tracing::error!(pod = %pod.id, %error, "letting a pod run again");
                break;
            }
        }
    }
    let marker = pod.node.pod_dir(&pod.id).join(HELD);
    match fs::remove_file(&marker) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::error!(pod = %pod.id, %error, "the mark of a held pod stays");
        }
        _ => {}
    }
}

/// What 0, 1 and 2 of a container's process 1 are; an empty one if it cannot be told.
fn descriptors(container: &Container) -> Vec<String> {
    let link = |number: u32| {
        let path = format!("/proc/{}/fd/{number}", container.status.pid);
        fs::read_link(path).map(|target| target.to_string_lossy().into_owned()).unwrap_or_default()
    };
    [0, 1, 2].map(link).into()
}

/// Resident bytes of a process: about what will be sent.
fn resident(pid: u32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}
