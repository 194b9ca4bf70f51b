//! The sandbox: made by the first request, and what State tells about it.

use api::shim::v1::{self as proto, response};
use executor::{ClockOffsets, Descriptors, Sandbox};
use sys::Pid;

use crate::{
    error::RequestError,
    pod::{Answer, Pod},
};

/// Version of shim.v1 that this shim speaks.
const PROTOCOL: u32 = 1;

impl Pod {
    pub fn create_sandbox(
        &mut self,
        request: proto::CreateSandboxRequest,
        mut fds: Descriptors,
    ) -> Result<Answer, RequestError> {
        if self.sandbox.is_some() {
            return Err(RequestError::SandboxExists);
        }
        let (sandbox, namespaces) = Sandbox::create(&request, &mut fds)?;
        let pod_init_pid = pid_number(sandbox.pod_init().map(|init| init.pid));
        self.sandbox = Some(sandbox);
        self.criu_command = request.criu;
        self.criu_run = request.criu_run.into();
        if let Ok(limit @ 1..) = usize::try_from(request.log_limit) {
            self.log_limit = limit;
        }
        let (kinds, fds): (Vec<_>, Vec<_>) = namespaces.into_iter().unzip();
        let namespaces = kinds
            .iter()
            .zip(0..)
            .map(|(kind, ns_fd)| proto::NamespaceFd { kind: kind.name().to_owned(), ns_fd })
            .collect();
        let made = proto::CreateSandboxResponse { namespaces, pod_init_pid };
        Ok(Answer { result: response::Result::CreateSandbox(made), fds })
    }

    /// Process 1 of the pid namespace that the containers share, if they do and it lives.
    pub fn pod_init_pid(&self) -> Option<Pid> {
        if self.pod_init_ended { None } else { Some(self.sandbox.as_ref()?.pod_init()?.pid) }
    }

    /// Gives the pod another time namespace, which every later container and exec joins.
    pub fn create_time_namespace(
        &mut self,
        request: &proto::CreateTimeNamespaceRequest,
    ) -> Result<Answer, RequestError> {
        let sandbox = self.sandbox.as_mut().ok_or(RequestError::NoSandbox)?;
        let offsets = ClockOffsets { monotonic: request.monotonic_offset, boottime: request.boottime_offset };
        let pin = sandbox.create_time_namespace(offsets)?;
        self.advance_restores();
        let made = proto::CreateTimeNamespaceResponse { ns_fd: 0 };
        Ok(Answer { result: response::Result::CreateTimeNamespace(made), fds: vec![pin] })
    }

    pub fn state(&mut self) -> Answer {
        response::Result::State(proto::StateResponse {
            protocol: PROTOCOL,
            sandbox_created: self.sandbox.is_some(),
            pod_init_pid: pid_number(self.pod_init_pid()),
            containers: self.tasks.iter().map(crate::task::Task::state).collect(),
            exec_exits: self.execs.take_unheard(),
            frozen: self.freezer.is_frozen(),
        })
        .into()
    }
}

/// As the protocol carries it; 0: none.
pub fn pid_number(pid: Option<Pid>) -> u32 {
    pid.map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs())
}
