use std::path::{Path, PathBuf};

use api::{
    cri::v1::{ImageSpec, RemoveImageRequest},
    meridian::v1::ImportImageRequest,
};
use clap::{Args, Subcommand};
use tokio::{fs::File, io::AsyncReadExt, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::Context;
use crate::{
    error::Error,
    output::{self, Format},
};

/// Bytes of an archive that travel in one message.
const PIECE: usize = 1 << 20;

/// Import and remove images
#[derive(Debug, Args)]
pub struct Image {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Import an OCI archive or a docker-save tar
    Import {
        /// Name for an archive that holds none
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// The archive
        file: PathBuf,
    },
    /// Remove images, under all their names
    Rm {
        /// Names or ids
        #[arg(required = true)]
        images: Vec<String>,
    },
}

impl Image {
    pub async fn run(self, cx: &Context) -> Result<(), Error> {
        match self.command {
            Command::Import { name, file } => import(cx, name, &file).await,
            Command::Rm { images } => remove(cx, images).await,
        }
    }
}

async fn import(cx: &Context, name: Option<String>, path: &Path) -> Result<(), Error> {
    let cannot_read = |source| Error::File { what: "read", path: path.to_owned(), source };
    let mut file = File::open(path).await.map_err(cannot_read)?;
    let mut node = cx.connect().await?;
    let (pieces, stream) = mpsc::channel(4);
    let reading = async move {
        let mut reference = name.unwrap_or_default();
        loop {
            let mut data = Vec::with_capacity(PIECE);
            (&mut file).take(PIECE as u64).read_to_end(&mut data).await?;
            let last = data.is_empty();
            let piece = ImportImageRequest { data, reference: std::mem::take(&mut reference) };
            // A closed channel means that the daemon gave its answer already.
            if last || pieces.send(piece).await.is_err() {
                return Ok(());
            }
        }
    };
    let (read, reply) = tokio::join!(reading, node.meridian.import_image(ReceiverStream::new(stream)));
    read.map_err(cannot_read)?;
    let what = format!("import {}", path.display());
    let references = reply.map_err(Error::refused(what))?.into_inner().references;
    match cx.output {
        Format::Text => output::print(references.iter().map(|r| format!("{r}\n")).collect::<String>()),
        Format::Json => output::json(&serde_json::json!({ "references": references })),
    }
}

async fn remove(cx: &Context, images: Vec<String>) -> Result<(), Error> {
    let mut node = cx.connect().await?;
    for name in images {
        let image = Some(ImageSpec { image: name.clone(), ..Default::default() });
        let reply = node.images.remove_image(RemoveImageRequest { image }).await;
        reply.map_err(Error::refused(format!("remove image {name}")))?;
        output::print(format_args!("{name}\n"))?;
    }
    Ok(())
}
