//! `meridian.v1`: what the meridian command asks for beyond CRI. One file per RPC; here only the dispatch.

mod probe;

use std::pin::Pin;
use std::sync::Arc;

use api::meridian::v1::meridian_server;
use api::meridian::v1::{
    Feature, ImportImageRequest, ImportImageResponse, InspectCheckpointRequest, InspectCheckpointResponse,
    MigrateEvent, MigrateRequest, NamespacesRequest, NamespacesResponse, ProbeRequest, ProbeResponse,
};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

/// The service.
#[derive(Debug)]
pub struct Meridian {
    features: Arc<Vec<Feature>>,
}

impl Meridian {
    pub fn new(features: Arc<Vec<Feature>>) -> Self {
        Self { features }
    }
}

type Events = Pin<Box<dyn Stream<Item = Result<MigrateEvent, Status>> + Send>>;

#[tonic::async_trait]
impl meridian_server::Meridian for Meridian {
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(probe::probe(&self.features)))
    }

    async fn namespaces(
        &self,
        _: Request<NamespacesRequest>,
    ) -> Result<Response<NamespacesResponse>, Status> {
        Err(Status::unimplemented("Namespaces is not wired yet"))
    }

    async fn import_image(
        &self,
        _: Request<Streaming<ImportImageRequest>>,
    ) -> Result<Response<ImportImageResponse>, Status> {
        Err(Status::unimplemented("ImportImage is not wired yet"))
    }

    type MigrateStream = Events;

    async fn migrate(&self, _: Request<MigrateRequest>) -> Result<Response<Events>, Status> {
        Err(Status::unimplemented("Migrate is not wired yet"))
    }

    async fn inspect_checkpoint(
        &self,
        _: Request<InspectCheckpointRequest>,
    ) -> Result<Response<InspectCheckpointResponse>, Status> {
        Err(Status::unimplemented("InspectCheckpoint is not wired yet"))
    }
}
