use std::{env, fs, path::PathBuf};

use api::cri::v1::{AuthConfig, ImageSpec, PullImageRequest};
use clap::Args;

use super::Context;
use crate::{
    client::Node,
    error::Error,
    output::{self, Format},
};

/// Fetch images from their registries
#[derive(Debug, Args)]
pub struct Pull {
    /// User at the registry; the password is read from --password-file or MERIDIAN_PASSWORD
    #[arg(long)]
    user: Option<String>,
    /// File that holds the password
    #[arg(long, requires = "user", value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Names, such as docker.io/library/busybox:1.36 or NAME@sha256:...
    #[arg(required = true)]
    images: Vec<String>,
}

impl Pull {
    pub async fn run(self, cx: &Context) -> Result<(), Error> {
        let auth = self.auth()?;
        let node = cx.connect().await?;
        for name in &self.images {
            let id = pull(&node, name, auth.clone()).await?;
            match cx.output {
                Format::Text => output::print(format_args!("{id}\n"))?,
                Format::Json => output::json(&serde_json::json!({ "image": name, "imageRef": id }))?,
            }
        }
        Ok(())
    }

    fn auth(&self) -> Result<Option<AuthConfig>, Error> {
        let Some(username) = self.user.clone() else { return Ok(None) };
        let password = match &self.password_file {
            Some(path) => fs::read_to_string(path)
                .map_err(|source| Error::File { what: "read", path: path.clone(), source })?
                .trim_end_matches('\n')
                .to_owned(),
            None => env::var("MERIDIAN_PASSWORD").map_err(|_| {
                Error::Usage(
                    "--user needs a password: give --password-file or set MERIDIAN_PASSWORD".to_owned(),
                )
            })?,
        };
        Ok(Some(AuthConfig { username, password, ..Default::default() }))
    }
}

/// Fetches one image and returns its id.
pub async fn pull(node: &Node, name: &str, auth: Option<AuthConfig>) -> Result<String, Error> {
    let image = Some(ImageSpec { image: name.to_owned(), ..Default::default() });
    let request = PullImageRequest { image, auth, sandbox_config: None };
    let reply = node.images.clone().pull_image(request).await;
    Ok(reply.map_err(Error::refused(format!("pull {name}")))?.into_inner().image_ref)
}
