//! Container plans as the daemon would make them, cut down to what the tests need.

use std::{
    fs::{self, File},
    os::fd::{AsFd, OwnedFd},
};

use api::shim::v1::{self as proto, request::Call, response};

use super::Bed;

/// What differs from test to test.
pub struct Wanted<'a> {
    pub id: &'a str,
    pub args: &'a [&'a str],
    pub tty: bool,
    pub stdin: bool,
    pub uid: u32,
    pub memory_limit: i64,
    pub pid_mode: proto::container_plan::PidMode,
    /// CRI log; none: `Bed::log_path(id)`.
    pub log: Option<File>,
    /// Directory of CRIU's images and descriptors.json, for a container that is to be restored.
    pub restore: Option<(OwnedFd, String)>,
}

impl<'a> Wanted<'a> {
    pub fn new(id: &'a str, args: &'a [&'a str]) -> Self {
        let pid_mode = proto::container_plan::PidMode::Container;
        Self {
            id,
            args,
            tty: false,
            stdin: false,
            uid: 0,
            memory_limit: 0,
            pid_mode,
            log: None,
            restore: None,
        }
    }
}

/// The set that container engines give by default.
const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

fn process(args: &[&str], tty: bool, uid: u32) -> proto::Process {
    let root = if uid == 0 { DEFAULT_CAPABILITIES } else { 0 };
    proto::Process {
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        env: vec!["PATH=/bin".into(), "HOME=/".into()],
        cwd: "/".into(),
        uid,
        gid: uid,
        capabilities: Some(proto::Capabilities {
            bounding: DEFAULT_CAPABILITIES,
            effective: root,
            permitted: root,
            inheritable: 0,
            ambient: 0,
        }),
        no_new_privileges: true,
        tty,
        ..Default::default()
    }
}

fn filesystem(destination: &str, kind: &str, options: &[&str]) -> proto::Mount {
    let filesystem = proto::Filesystem {
        r#type: kind.into(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
        attributes: 2, // MOUNT_ATTR_NOSUID
    };
    proto::Mount {
        destination: destination.into(),
        source: Some(proto::mount::Source::Filesystem(filesystem)),
        ..Default::default()
    }
}

impl Bed {
    pub fn open_log(&self, name: &str) -> File {
        File::options().append(true).create(true).open(self.log_path(name)).unwrap()
    }

    /// The log of a container without the timestamps.
    pub fn log(&self, name: &str) -> String {
        let text = fs::read_to_string(self.log_path(name)).unwrap();
        text.lines().map(|line| line.split_once(' ').expect("a timestamp").1.to_owned() + "\n").collect()
    }

    pub fn create(&mut self, wanted: Wanted<'_>) -> Result<u32, proto::Error> {
        let log = wanted.log.unwrap_or_else(|| self.open_log(wanted.id));
        let rootfs = self.rootfs();
        let mut plan = proto::ContainerPlan {
            id: wanted.id.into(),
            process: Some(process(wanted.args, wanted.tty, wanted.uid)),
            pid_mode: wanted.pid_mode.into(),
            rootfs_fd: 0,
            mounts: vec![
                filesystem("/proc", "proc", &[]),
                filesystem("/dev", "tmpfs", &["mode=755", "size=65536k"]),
                filesystem("/dev/pts", "devpts", &["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            ],
            cgroup: wanted.id.into(),
            resources: Some(proto::Resources { memory_limit: wanted.memory_limit, ..Default::default() }),
            stdio: Some(proto::Stdio { stdin: wanted.stdin, stdin_once: false, log_fd: Some(1) }),
            ..Default::default()
        };
        let mut fds = vec![rootfs.as_fd(), log.as_fd()];
        if let Some((images, descriptors)) = &wanted.restore {
            let descriptors = descriptors.clone();
            plan.restore = Some(proto::RestorePlan { images_fd: 2, descriptors, tcp_established: false });
            fds.push(images.as_fd());
        }
        let call = Call::CreateContainer(proto::CreateContainerRequest { plan: Some(plan) });
        match self.client.call(call, &fds)? {
            (response::Result::CreateContainer(created), _) => Ok(created.pid),
            other => panic!("{other:?}"),
        }
    }

    pub fn start(&mut self, id: &str) -> Result<i64, proto::Error> {
        match self.client.call(Call::StartContainer(proto::StartContainerRequest { id: id.into() }), &[])? {
            (response::Result::StartContainer(started), _) => Ok(started.started_at),
            other => panic!("{other:?}"),
        }
    }

    /// Create and start.
    pub fn run(&mut self, wanted: Wanted<'_>) -> u32 {
        let id = wanted.id.to_owned();
        let pid = self.create(wanted).unwrap();
        self.start(&id).unwrap();
        pid
    }

    /// Create, start, and wait for the end.
    pub fn finish(&mut self, wanted: Wanted<'_>) -> proto::Exit {
        let id = wanted.id.to_owned();
        self.run(wanted);
        self.client.exit(&id)
    }

    pub fn kill(&mut self, id: &str, signal: u32, all: bool) {
        self.client.done(Call::Kill(proto::KillRequest { id: id.into(), signal, all }));
    }

    pub fn delete(&mut self, id: &str) {
        self.client.done(Call::DeleteContainer(proto::DeleteContainerRequest { id: id.into() }));
    }

    /// Runs an exec with its output in pipes; gives the read ends.
    pub fn exec(&mut self, exec_id: &str, id: &str, args: &[&str]) -> Result<[OwnedFd; 2], proto::Error> {
        let (out, out_there) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (err, err_there) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let request = proto::ExecRequest {
            exec_id: exec_id.into(),
            id: id.into(),
            process: Some(process(args, false, 0)),
            stdin_fd: None,
            stdout_fd: Some(0),
            stderr_fd: Some(1),
        };
        self.client.call(Call::Exec(request), &[out_there.as_fd(), err_there.as_fd()])?;
        Ok([out, err])
    }
}
