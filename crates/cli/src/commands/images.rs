use api::cri::v1::{Image, ListImagesRequest};
use clap::Args;

use super::Context;
use crate::{
    error::Error,
    format, json,
    output::{self, Format, Table},
};

/// List images
#[derive(Debug, Args)]
pub struct Images {
    /// Only ids
    #[arg(long, short)]
    quiet: bool,
}

impl Images {
    pub async fn run(self, cx: &Context) -> Result<(), Error> {
        let mut node = cx.connect().await?;
        let reply = node.images.list_images(ListImagesRequest::default()).await;
        let mut images = reply.map_err(Error::refused("list images"))?.into_inner().images;
        images.sort_by(|a, b| (&a.repo_tags, &a.id).cmp(&(&b.repo_tags, &b.id)));
        if self.quiet {
            return output::print(images.iter().map(|i| format!("{}\n", i.id)).collect::<String>());
        }
        match cx.output {
            Format::Json => output::json(&json::list("images", "runtime.v1.Image", &images)),
            Format::Text => output::print(table(&images)),
        }
    }
}

/// One line for each name of an image.
fn table(images: &[Image]) -> Table {
    let mut table = Table::new(["IMAGE", "ID", "SIZE", "PINNED"]);
    for image in images {
        let nameless = ["<none>".to_owned()];
        let names = [&image.repo_tags[..], &image.repo_digests[..], &nameless[..]];
        let names = names.into_iter().find(|names| !names.is_empty()).unwrap_or_default();
        for name in names {
            let pinned = if image.pinned { "yes" } else { "" };
            let id = format::short(&image.id).to_owned();
            table.row([name.clone(), id, format::bytes(image.size), pinned.to_owned()]);
        }
    }
    table
}
