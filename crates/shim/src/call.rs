//! Which request is whose. An answer that takes time comes later: then there is none yet.

use api::shim::v1::request::Call;
use executor::Descriptors;

use crate::{
    error::RequestError,
    pod::{Answer, Asker, Pod},
};

impl Pod {
    pub fn call(
        &mut self,
        asker: Asker,
        call: Call,
        fds: Descriptors,
    ) -> Result<Option<Answer>, RequestError> {
        match call {
            Call::State(_) => Ok(Some(self.state())),
            Call::CreateSandbox(request) => self.create_sandbox(request, fds).map(Some),
            Call::CreateContainer(request) => self.create_container(request, fds).map(Some),
            Call::StartContainer(request) => self.start_container(&request).map(Some),
            Call::Kill(request) => self.kill(&request).map(Some),
            Call::DeleteContainer(request) => self.delete_container(&request).map(Some),
            Call::Exec(request) => self.exec(asker, request, fds).map(Some),
            Call::ResizeTty(request) => self.resize_tty(&request).map(Some),
            Call::Attach(request) => self.attach(&request, fds).map(Some),
            Call::CloseStdin(request) => self.close_stdin(&request).map(Some),
            Call::ReopenLog(request) => self.reopen_log(&request, fds).map(Some),
            Call::UpdateResources(request) => self.update_resources(&request).map(Some),
            Call::Freeze(request) => self.freeze(asker, request),
            Call::Hold(_) => self.hold().map(Some),
            Call::Check(request) => self.check(&request).map(Some),
            Call::Dump(request) => self.dump(asker, &request, fds),
            Call::Diff(request) => self.diff(asker, &request, fds),
            Call::Resume(request) => self.resume(&request).map(Some),
            Call::CreateTimeNamespace(request) => self.create_time_namespace(&request).map(Some),
            Call::Restore(request) => self.restore(asker, &request),
            Call::AwaitRestores(_) => Ok(self.await_restores(asker)),
            Call::Release(request) => self.release(asker, request),
            Call::Shutdown(_) => self.begin_shutdown(asker),
        }
    }
}
