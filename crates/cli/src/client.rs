//! The connection to the daemon.

use std::{path::Path, time::Duration};

use api::{
    cri::v1::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient},
    meridian::v1::meridian_client::MeridianClient,
};
use tonic::transport::{Channel, Endpoint};

use crate::error::Error;

/// Most that a reply may take: two outputs of ExecSync at 16 MiB each, and their wrapping.
const MESSAGE_MAX: usize = 33 << 20;

/// The three services of one daemon, over one connection.
#[derive(Debug, Clone)]
pub struct Node {
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
    pub meridian: MeridianClient<Channel>,
}

impl Node {
    pub async fn connect(socket: &Path) -> Result<Self, Error> {
        let refused = |source| Error::Connect { socket: socket.to_owned(), source };
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(refused)?;
        let channel = endpoint.connect_timeout(Duration::from_secs(5)).connect().await.map_err(refused)?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_MAX),
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_MAX),
            meridian: MeridianClient::new(channel).max_decoding_message_size(MESSAGE_MAX),
        })
    }
}
