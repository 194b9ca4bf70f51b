//! `runtime.v1.ImageService`: every RPC, each handed to its file.

use std::fmt;

use api::cri::v1::{image_service_server::ImageService, *};
use image::Images;
use pod::Pods;
use tonic::{Request, Response, Status, async_trait};

use crate::{
    error::Failure, image_fs_info, image_list, image_pull, image_remove, image_status, service::answer,
    stream,
};

/// The service; a handle on the node's images, and on the pods that use them.
#[derive(Clone)]
pub(crate) struct ImageStore {
    pub(crate) pods: Pods,
    pub(crate) images: Images,
}

impl fmt::Debug for ImageStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageStore").finish_non_exhaustive()
    }
}

type Reply<T> = Result<Response<T>, Status>;

#[async_trait]
impl ImageService for ImageStore {
    type StreamImagesStream = stream::Items<StreamImagesResponse>;

    async fn list_images(&self, r: Request<ListImagesRequest>) -> Reply<ListImagesResponse> {
        Ok(Response::new(image_list::list(&self.images, r.get_ref())))
    }

    async fn image_status(&self, r: Request<ImageStatusRequest>) -> Reply<ImageStatusResponse> {
        answer(async { image_status::status(&self.images, r.get_ref()) }).await
    }

    async fn pull_image(&self, r: Request<PullImageRequest>) -> Reply<PullImageResponse> {
        answer(image_pull::pull(&self.images, r.into_inner())).await
    }

    async fn remove_image(&self, r: Request<RemoveImageRequest>) -> Reply<RemoveImageResponse> {
        answer(image_remove::remove(&self.images, r.into_inner())).await
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Reply<ImageFsInfoResponse> {
        let (pods, images) = (self.pods.clone(), self.images.clone());
        let work = tokio::task::spawn_blocking(move || image_fs_info::fs_info(&pods, &images));
        Ok(Response::new(work.await.map_err(|error| Failure::of_image_store(&error))?))
    }

    async fn stream_images(&self, r: Request<StreamImagesRequest>) -> Reply<Self::StreamImagesStream> {
        let list = image_list::list(&self.images, &ListImagesRequest { filter: r.into_inner().filter });
        Ok(Response::new(stream::batches(list.images, |images| StreamImagesResponse { images })))
    }
}
