//! `meridian.v1`: what the meridian command asks for beyond CRI. One file per RPC; here only the dispatch.

mod check;
mod diagnose;
mod import_image;
mod inspect_checkpoint;
mod migrate;
mod namespaces;
mod probe;

use std::sync::Arc;

use api::meridian::v1::meridian_server;
use api::meridian::v1::{
    CheckRequest, CheckResponse, DiagnoseRequest, DiagnoseResponse, ImportImageRequest, ImportImageResponse,
    InspectCheckpointRequest, InspectCheckpointResponse, MigrateRequest, NamespacesRequest,
    NamespacesResponse, ProbeRequest, ProbeResponse,
};
use tonic::{Request, Response, Status, Streaming};

use crate::doctor::Subject;
use crate::migrate::Migrations;
use crate::node::Node;

/// The service.
#[derive(Debug)]
pub struct Meridian {
    node: Node,
    subject: Arc<Subject>,
    migrations: Option<Migrations>,
}

impl Meridian {
    /// `subject` is what `meridian doctor` looks at.
    pub fn new(node: Node, subject: Subject, migrations: Option<Migrations>) -> Self {
        Self { node, subject: Arc::new(subject), migrations }
    }
}

#[tonic::async_trait]
impl meridian_server::Meridian for Meridian {
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(probe::probe(&self.subject.features)))
    }

    async fn diagnose(&self, _: Request<DiagnoseRequest>) -> Result<Response<DiagnoseResponse>, Status> {
        Ok(Response::new(diagnose::diagnose(&self.subject).await))
    }

    async fn namespaces(
        &self,
        request: Request<NamespacesRequest>,
    ) -> Result<Response<NamespacesResponse>, Status> {
        let pods = self.node.pods.clone();
        // Reads /proc of every member.
        let read = tokio::task::spawn_blocking(move || namespaces::namespaces(&pods, request.get_ref()));
        Ok(Response::new(read.await.map_err(|panic| Status::internal(panic.to_string()))??))
    }

    async fn import_image(
        &self,
        request: Request<Streaming<ImportImageRequest>>,
    ) -> Result<Response<ImportImageResponse>, Status> {
        let imported =
            import_image::import_image(&self.node.images, &self.subject.root, request.into_inner());
        Ok(Response::new(imported.await?))
    }

    type MigrateStream = migrate::Events;

    async fn migrate(&self, request: Request<MigrateRequest>) -> Result<Response<migrate::Events>, Status> {
        let events = migrate::migrate(self.migrations.as_ref(), &self.node.pods, request.get_ref())?;
        Ok(Response::new(events))
    }

    async fn inspect_checkpoint(
        &self,
        request: Request<InspectCheckpointRequest>,
    ) -> Result<Response<InspectCheckpointResponse>, Status> {
        Ok(Response::new(inspect_checkpoint::inspect_checkpoint(request.into_inner()).await?))
    }

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        Ok(Response::new(check::check(&self.node.pods, request.get_ref()).await?))
    }
}
