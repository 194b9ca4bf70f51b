//! `runtime.v1.RuntimeService`: every RPC, each handed to its file.

use std::{fmt, sync::Arc};

use api::cri::v1::{runtime_service_server::RuntimeService, *};
use image::Images;
use pod::Pods;
use streaming::Streaming;
use tonic::{Request, Response, Status, async_trait};

use crate::{
    attach, container_checkpoint, container_create, container_events, container_exec, container_list,
    container_remove, container_reopen_log, container_start, container_stats, container_status,
    container_stop, container_update, deadline,
    error::Failure,
    exec, metrics, port_forward, runtime_config, runtime_config_update, sandbox_checkpoint, sandbox_list,
    sandbox_remove, sandbox_restore, sandbox_run, sandbox_stats, sandbox_status, sandbox_stop,
    sandbox_update,
    status::{self, Abilities},
    stream::{self, Items},
    version,
};

/// The service; a handle on the node's pods and images.
#[derive(Clone)]
pub(crate) struct Runtime {
    pub(crate) pods: Pods,
    pub(crate) images: Images,
    pub(crate) streaming: Streaming,
    pub(crate) abilities: Arc<Abilities>,
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").finish_non_exhaustive()
    }
}

type Reply<T> = Result<Response<T>, Status>;

/// Answers an RPC. The daemon's layer around all services has the span and tells the log what the caller is told.
pub(crate) async fn answer<T>(work: impl Future<Output = Result<T, Failure>>) -> Reply<T> {
    Ok(Response::new(work.await?))
}

#[async_trait]
impl RuntimeService for Runtime {
    type StreamPodSandboxesStream = Items<StreamPodSandboxesResponse>;
    type StreamContainersStream = Items<StreamContainersResponse>;
    type StreamContainerStatsStream = Items<StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Items<StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = Items<StreamPodSandboxMetricsResponse>;
    type GetContainerEventsStream = Items<ContainerEventResponse>;

    async fn version(&self, _: Request<VersionRequest>) -> Reply<VersionResponse> {
        Ok(Response::new(version::version()))
    }

    async fn status(&self, r: Request<StatusRequest>) -> Reply<StatusResponse> {
        let network = self.pods.cni_status().await;
        Ok(Response::new(status::status(&self.abilities.with_network(network), r.get_ref())))
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Reply<RuntimeConfigResponse> {
        Ok(Response::new(runtime_config::runtime_config()))
    }

    async fn run_pod_sandbox(&self, r: Request<RunPodSandboxRequest>) -> Reply<RunPodSandboxResponse> {
        answer(sandbox_run::run(&self.pods, r.into_inner())).await
    }

    async fn stop_pod_sandbox(&self, r: Request<StopPodSandboxRequest>) -> Reply<StopPodSandboxResponse> {
        answer(sandbox_stop::stop(&self.pods, r.into_inner())).await
    }

    async fn remove_pod_sandbox(
        &self,
        r: Request<RemovePodSandboxRequest>,
    ) -> Reply<RemovePodSandboxResponse> {
        answer(sandbox_remove::remove(&self.pods, r.into_inner())).await
    }

    async fn pod_sandbox_status(
        &self,
        r: Request<PodSandboxStatusRequest>,
    ) -> Reply<PodSandboxStatusResponse> {
        answer(sandbox_status::status(&self.pods, &self.images, r.get_ref())).await
    }

    async fn list_pod_sandbox(&self, r: Request<ListPodSandboxRequest>) -> Reply<ListPodSandboxResponse> {
        answer(async { sandbox_list::list(&self.pods, r.into_inner()) }).await
    }

    async fn create_container(&self, r: Request<CreateContainerRequest>) -> Reply<CreateContainerResponse> {
        answer(container_create::create(&self.pods, r.into_inner())).await
    }

    async fn start_container(&self, r: Request<StartContainerRequest>) -> Reply<StartContainerResponse> {
        answer(container_start::start(&self.pods, r.into_inner())).await
    }

    async fn stop_container(&self, r: Request<StopContainerRequest>) -> Reply<StopContainerResponse> {
        answer(container_stop::stop(&self.pods, r.into_inner())).await
    }

    async fn remove_container(&self, r: Request<RemoveContainerRequest>) -> Reply<RemoveContainerResponse> {
        answer(container_remove::remove(&self.pods, r.into_inner())).await
    }

    async fn list_containers(&self, r: Request<ListContainersRequest>) -> Reply<ListContainersResponse> {
        answer(async { container_list::list(&self.pods, &self.images, r.into_inner()) }).await
    }

    async fn container_status(&self, r: Request<ContainerStatusRequest>) -> Reply<ContainerStatusResponse> {
        answer(container_status::status(&self.pods, &self.images, r.get_ref())).await
    }

    async fn exec_sync(&self, r: Request<ExecSyncRequest>) -> Reply<ExecSyncResponse> {
        answer(container_exec::exec_sync(&self.pods, r.into_inner())).await
    }

    async fn reopen_container_log(
        &self,
        r: Request<ReopenContainerLogRequest>,
    ) -> Reply<ReopenContainerLogResponse> {
        answer(container_reopen_log::reopen_log(&self.pods, r.into_inner())).await
    }

    async fn container_stats(&self, r: Request<ContainerStatsRequest>) -> Reply<ContainerStatsResponse> {
        answer(container_stats::stats(&self.pods, r.get_ref())).await
    }

    async fn list_container_stats(
        &self,
        r: Request<ListContainerStatsRequest>,
    ) -> Reply<ListContainerStatsResponse> {
        answer(container_stats::list(&self.pods, r.into_inner())).await
    }

    async fn checkpoint_container(
        &self,
        r: Request<CheckpointContainerRequest>,
    ) -> Reply<CheckpointContainerResponse> {
        let limit = deadline::of(r.metadata());
        answer(container_checkpoint::checkpoint(&self.pods, r.into_inner(), limit)).await
    }

    async fn checkpoint_pod(&self, r: Request<CheckpointPodRequest>) -> Reply<CheckpointPodResponse> {
        let limit = deadline::of(r.metadata());
        answer(sandbox_checkpoint::checkpoint(&self.pods, r.into_inner(), limit)).await
    }

    async fn restore_pod(&self, r: Request<RestorePodRequest>) -> Reply<RestorePodResponse> {
        let limit = deadline::of(r.metadata());
        answer(sandbox_restore::restore(&self.pods, r.into_inner(), limit)).await
    }

    async fn update_container_resources(
        &self,
        r: Request<UpdateContainerResourcesRequest>,
    ) -> Reply<UpdateContainerResourcesResponse> {
        answer(container_update::update(&self.pods, r.into_inner())).await
    }

    async fn update_pod_sandbox_resources(
        &self,
        r: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Reply<UpdatePodSandboxResourcesResponse> {
        answer(sandbox_update::update(&self.pods, r.into_inner())).await
    }

    async fn update_runtime_config(
        &self,
        r: Request<UpdateRuntimeConfigRequest>,
    ) -> Reply<UpdateRuntimeConfigResponse> {
        answer(runtime_config_update::update(&self.pods, r.into_inner())).await
    }

    async fn exec(&self, r: Request<ExecRequest>) -> Reply<ExecResponse> {
        answer(async { exec::exec(&self.pods, &self.streaming, r.into_inner()) }).await
    }

    async fn attach(&self, r: Request<AttachRequest>) -> Reply<AttachResponse> {
        answer(async { attach::attach(&self.pods, &self.streaming, r.get_ref()) }).await
    }

    async fn port_forward(&self, r: Request<PortForwardRequest>) -> Reply<PortForwardResponse> {
        answer(async { port_forward::port_forward(&self.pods, &self.streaming, r.get_ref()) }).await
    }

    async fn pod_sandbox_stats(&self, r: Request<PodSandboxStatsRequest>) -> Reply<PodSandboxStatsResponse> {
        answer(sandbox_stats::stats(&self.pods, r.into_inner())).await
    }

    async fn list_pod_sandbox_stats(
        &self,
        r: Request<ListPodSandboxStatsRequest>,
    ) -> Reply<ListPodSandboxStatsResponse> {
        answer(sandbox_stats::list(&self.pods, r.into_inner())).await
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Reply<ListMetricDescriptorsResponse> {
        Ok(Response::new(metrics::descriptors()))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Reply<ListPodSandboxMetricsResponse> {
        answer(async { Ok(metrics::list(&self.pods).await) }).await
    }

    async fn stream_pod_sandboxes(
        &self,
        r: Request<StreamPodSandboxesRequest>,
    ) -> Reply<Self::StreamPodSandboxesStream> {
        let request = ListPodSandboxRequest { filter: r.into_inner().filter };
        let list = async { sandbox_list::list(&self.pods, request) };
        let wrap = |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes };
        answer(async { Ok(stream::batches(list.await?.items, wrap)) }).await
    }

    async fn stream_containers(
        &self,
        r: Request<StreamContainersRequest>,
    ) -> Reply<Self::StreamContainersStream> {
        let request = ListContainersRequest { filter: r.into_inner().filter };
        let list = async { container_list::list(&self.pods, &self.images, request) };
        let wrap = |containers| StreamContainersResponse { containers };
        answer(async { Ok(stream::batches(list.await?.containers, wrap)) }).await
    }

    async fn stream_container_stats(
        &self,
        r: Request<StreamContainerStatsRequest>,
    ) -> Reply<Self::StreamContainerStatsStream> {
        let list =
            container_stats::list(&self.pods, ListContainerStatsRequest { filter: r.into_inner().filter });
        let wrap = |container_stats| StreamContainerStatsResponse { container_stats };
        answer(async { Ok(stream::batches(list.await?.stats, wrap)) }).await
    }

    async fn stream_pod_sandbox_stats(
        &self,
        r: Request<StreamPodSandboxStatsRequest>,
    ) -> Reply<Self::StreamPodSandboxStatsStream> {
        let list =
            sandbox_stats::list(&self.pods, ListPodSandboxStatsRequest { filter: r.into_inner().filter });
        let wrap = |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats };
        answer(async { Ok(stream::batches(list.await?.stats, wrap)) }).await
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Reply<Self::StreamPodSandboxMetricsStream> {
        let list = metrics::list(&self.pods);
        let wrap = |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics };
        answer(async { Ok(stream::batches(list.await.pod_metrics, wrap)) }).await
    }

    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Reply<Self::GetContainerEventsStream> {
        let events = container_events::events(&self.pods, &self.images);
        answer(async { Ok(events) }).await
    }
}
