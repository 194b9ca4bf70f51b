//! Where containers are tested: a root filesystem of busybox on an overlay, a pod cgroup, and a sandbox.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use api::shim::v1::mount::Source;
use api::shim::v1::{
    Capabilities, CgroupFd, ContainerPlan, CreateSandboxRequest, Filesystem as PlanFilesystem, Mount,
    Process, Resources,
};
use executor::{Created, Descriptors, Sandbox, Stdio, create};
use sys::cgroup::Layout;
use sys::mount::{Filesystem, Flags};
use sys::pidfd;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The capabilities that containerd and CRI-O give by default, both of them.
pub const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;
const NOSUID: u64 = 2;
const NODEV: u64 = 4;
const NOEXEC: u64 = 8;
pub const READ_ONLY: u64 = 1;

pub fn busybox() -> Option<PathBuf> {
    let home = std::env::var("HOME").unwrap_or_default();
    let cache = std::env::var("MERIDIAN_CACHE").unwrap_or(format!("{home}/.cache/meridian"));
    ["/bin/busybox".to_owned(), "/usr/bin/busybox".to_owned(), format!("{cache}/tools/usr/bin/busybox")]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists())
}

pub fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("containers need root");
    }
    if Layout::detect().unwrap().unified.is_none() {
        return Some("no cgroup2 is mounted");
    }
    busybox().is_none().then_some("no busybox-static: run hack/install")
}

/// A mount namespace of our own: other tests on the machine do not change what we see.
pub fn isolate() {
    sys::namespace::unshare(sys::namespace::Kind::Mount).unwrap();
    let private =
        sys::mount::Attributes { propagation: Some(sys::mount::Propagation::Private), ..Default::default() };
    sys::mount::set_attributes(fs::File::open("/").unwrap(), true, &private).unwrap();
}

/// What a test must not leave behind.
#[derive(Debug, PartialEq, Eq)]
pub struct Census {
    descriptors: usize,
    mounts: usize,
    children: String,
}

impl Census {
    pub fn take() -> Self {
        Self {
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
            mounts: own_mounts(),
            children: fs::read_to_string("/proc/thread-self/children").unwrap(),
        }
    }

    pub fn compare(&self) {
        assert_eq!(self, &Self::take(), "left behind (before, after)");
    }
}

/// Mounts at or of something of ours. Others may go at any time: the kernel detaches a mount everywhere when somebody
/// removes its mount point.
fn own_mounts() -> usize {
    let name = format!("meridian-test-{}-", std::process::id());
    fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter(|line| line.contains(&name)).count()
}

/// A pod to put containers in.
pub struct Bed {
    pub dir: PathBuf,
    pod: String,
    cgroups: Vec<PathBuf>,
    sandbox: Option<Sandbox>,
    next: u32,
}

/// What a container did.
#[derive(Debug)]
pub struct Outcome {
    pub code: u32,
    pub text: String,
}

impl Bed {
    pub fn new() -> Self {
        Self::with(CreateSandboxRequest {
            net: true,
            ipc: true,
            uts: true,
            time: true,
            ..CreateSandboxRequest::default()
        })
    }

    pub fn with(mut request: CreateSandboxRequest) -> Self {
        let pod = format!("meridian-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(&pod);
        build_image(&dir.join("image"));
        fs::create_dir(dir.join("containers")).unwrap();
        let mut cgroups = Vec::new();
        let mut fds = Vec::new();
        for (controller, mount) in hierarchies() {
            let path = mount.join(&pod);
            fs::create_dir(&path).unwrap();
            request.cgroups.push(CgroupFd { controller, dir_fd: u32::try_from(fds.len()).unwrap() });
            fds.push(fs::File::open(&path).unwrap().into());
            cgroups.push(path);
        }
        let (sandbox, pins) = Sandbox::create(&request, &mut Descriptors::new(fds)).unwrap();
        drop(pins);
        Self { dir, pod, cgroups, sandbox: Some(sandbox), next: 0 }
    }

    fn clean(&self) {
        for path in &self.cgroups {
            fs::remove_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
        fs::remove_dir_all(&self.dir).unwrap();
    }

    pub fn sandbox(&self) -> &Sandbox {
        self.sandbox.as_ref().unwrap()
    }

    pub fn sandbox_mut(&mut self) -> &mut Sandbox {
        self.sandbox.as_mut().unwrap()
    }

    pub fn image(&self) -> PathBuf {
        self.dir.join("image")
    }

    /// The pod's cgroup directory in the unified hierarchy.
    pub fn cgroup(&self) -> PathBuf {
        Layout::detect().unwrap().unified.unwrap().join(&self.pod)
    }

    /// A plan as CRI gives one by default, that runs `script` in a shell.
    pub fn plan(&mut self, script: &str) -> Plan {
        self.next += 1;
        let name = format!("c{}", self.next);
        let mut plan = Plan { plan: default_plan(script), fds: Vec::new(), upper: PathBuf::new() };
        let (root, upper) = self.overlay(&name);
        plan.upper = upper;
        plan.plan.rootfs_fd = plan.add(root);
        plan.plan.cgroup = name.clone();
        plan.plan.id = name;
        plan
    }

    fn overlay(&self, name: &str) -> (OwnedFd, PathBuf) {
        let base = self.dir.join("containers").join(name);
        let (upper, work) = (base.join("upper"), base.join("work"));
        fs::create_dir_all(&upper).unwrap();
        fs::create_dir_all(&work).unwrap();
        rustix::fs::chown(&upper, Some(uid(self.sandbox().host_uid(0))), None).unwrap();
        let overlay = Filesystem::open("overlay").unwrap();
        overlay.set("lowerdir", self.image().as_path()).unwrap();
        overlay.set("upperdir", upper.as_path()).unwrap().set("workdir", work.as_path()).unwrap();
        overlay.set_flag("volatile").unwrap();
        (overlay.mount(Flags::empty()).unwrap(), upper)
    }

    /// Creates with the output into a pipe.
    pub fn create(&self, plan: Plan) -> Result<(Created, OwnedFd), executor::CreateError> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let both = rustix::io::fcntl_dupfd_cloexec(&write, 3).unwrap();
        let stdio = Stdio { stdin: None, stdout: Some(write), stderr: Some(both) };
        let created = create(self.sandbox(), &plan.plan, &mut Descriptors::new(plan.fds), &stdio, None)?;
        Ok((created, read))
    }

    /// Creates and starts.
    pub fn start(&self, plan: Plan) -> (Created, OwnedFd) {
        let (mut created, output) = self.create(plan).unwrap();
        created.start().unwrap();
        (created, output)
    }

    /// Waits for the end of a container and removes its cgroup.
    pub fn finish(&self, created: Created, output: OwnedFd) -> Outcome {
        let text = read_all(output);
        let code = pidfd::wait(&created.pidfd).unwrap().code();
        let name = cgroup_name(&created);
        let left = created.cgroup.remove(self.sandbox(), &name);
        assert!(left.is_empty(), "{left:?}");
        Outcome { code, text }
    }

    pub fn run(&self, plan: Plan) -> Outcome {
        let (created, output) = self.start(plan);
        self.finish(created, output)
    }

    /// Runs `script` in a container like the default one.
    pub fn sh(&mut self, script: &str) -> Outcome {
        let plan = self.plan(script);
        self.run(plan)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let Some(sandbox) = self.sandbox.take() else { return };
        let left = sandbox.end();
        if std::thread::panicking() {
            return;
        }
        assert!(left.is_empty(), "{left:?}");
        self.clean();
    }
}

/// A plan under construction with its descriptors.
pub struct Plan {
    pub plan: ContainerPlan,
    pub fds: Vec<OwnedFd>,
    /// Where the overlay writes.
    pub upper: PathBuf,
}

impl Plan {
    pub fn add(&mut self, fd: impl Into<OwnedFd>) -> u32 {
        self.fds.push(fd.into());
        u32::try_from(self.fds.len() - 1).unwrap()
    }

    pub fn process(&mut self) -> &mut Process {
        self.plan.process.as_mut().unwrap()
    }

    pub fn resources(&mut self) -> &mut Resources {
        self.plan.resources.get_or_insert_default()
    }

    /// A bind of a host path.
    pub fn volume(&mut self, source: &Path, destination: &str, file: bool) {
        let clone = sys::mount::clone_tree(rustix::fs::CWD, source, true).unwrap();
        self.tree(clone, destination, file);
    }

    pub fn tree(&mut self, tree: OwnedFd, destination: &str, file: bool) {
        let source = Some(Source::TreeFd(self.add(tree)));
        self.plan.mounts.push(Mount { destination: destination.into(), source, file, ..Mount::default() });
    }
}

fn default_plan(script: &str) -> ContainerPlan {
    let caps = DEFAULT_CAPABILITIES;
    ContainerPlan {
        process: Some(Process {
            args: ["/bin/sh", "-c", script].map(String::from).to_vec(),
            env: vec!["PATH=/bin".into(), "HOME=/".into()],
            cwd: "/".into(),
            capabilities: Some(Capabilities {
                bounding: caps,
                effective: caps,
                permitted: caps,
                ..Capabilities::default()
            }),
            no_new_privileges: true,
            ..Process::default()
        }),
        mounts: default_mounts(),
        masked_paths: [
            "/proc/kcore",
            "/proc/keys",
            "/proc/timer_list",
            "/proc/acpi",
            "/proc/scsi",
            "/sys/firmware",
            "/proc/nothing",
        ]
        .map(String::from)
        .to_vec(),
        readonly_paths: ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
            .map(String::from)
            .to_vec(),
        ..ContainerPlan::default()
    }
}

pub fn default_mounts() -> Vec<Mount> {
    let quiet = NOSUID | NODEV | NOEXEC;
    [
        ("/proc", "proc", quiet, ""),
        ("/dev", "tmpfs", NOSUID, "mode=755,size=64k"),
        ("/dev/pts", "devpts", NOSUID | NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ("/dev/shm", "tmpfs", quiet, "mode=1777,size=1m"),
        ("/dev/mqueue", "mqueue", quiet, ""),
        ("/sys", "sysfs", quiet | READ_ONLY, ""),
        ("/sys/fs/cgroup", "cgroup2", quiet | READ_ONLY, ""),
    ]
    .map(|(destination, kind, attributes, options)| Mount {
        destination: destination.into(),
        source: Some(Source::Filesystem(PlanFilesystem {
            r#type: kind.into(),
            options: options.split(',').filter(|o| !o.is_empty()).map(String::from).collect(),
            attributes,
        })),
        ..Mount::default()
    })
    .to_vec()
}

fn build_image(image: &Path) {
    for dir in ["bin", "dev", "etc", "proc", "sys", "tmp", "usr/bin"] {
        fs::create_dir_all(image.join(dir)).unwrap();
    }
    fs::copy(busybox().unwrap(), image.join("bin/busybox")).unwrap();
    for name in [
        "sh", "cat", "id", "ls", "mount", "stat", "sleep", "hostname", "readlink", "tty", "pwd", "touch",
        "mknod", "env", "echo", "kill", "grep", "ps", "dd", "true", "false", "mkdir", "umount", "tr", "head",
        "wc", "ln", "mv", "test",
    ] {
        std::os::unix::fs::symlink("busybox", image.join("bin").join(name)).unwrap();
    }
}

/// The hierarchies that the daemon gives the sandbox: unified first, then what is accounted in v1.
fn hierarchies() -> Vec<(String, PathBuf)> {
    let layout = Layout::detect().unwrap();
    let mut found = vec![(String::new(), layout.unified.clone().unwrap())];
    for controller in ["memory", "cpu", "cpuacct", "pids"] {
        if let Some(path) = layout.v1_of(controller) {
            found.push((controller.to_owned(), path.to_owned()));
        }
    }
    found
}

pub fn read_all(fd: OwnedFd) -> String {
    let mut bytes = Vec::new();
    fs::File::from(fd).read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

/// Waits until `ready`, at most ten seconds.
pub fn eventually(what: &str, mut ready: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if ready() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("never happened: {what}");
}

/// A line of `/proc/PID/status`.
pub fn status(pid: sys::Pid, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

/// `/proc/PID/ns/KIND`.
pub fn namespace(pid: sys::Pid, kind: &str) -> String {
    let path = format!("/proc/{}/ns/{kind}", pid.as_raw_nonzero());
    fs::read_link(path).unwrap().to_string_lossy().into_owned()
}

fn cgroup_name(created: &Created) -> String {
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&created.cgroup.as_fd()));
    fs::read_link(link).unwrap().file_name().unwrap().to_string_lossy().into_owned()
}

fn uid(id: u32) -> rustix::fs::Uid {
    rustix::fs::Uid::from_raw(id)
}
