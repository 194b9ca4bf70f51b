use api::meridian::v1::{Feature, ProbeRequest};
use clap::Args;

use super::Context;
use crate::{
    error::Error,
    json,
    output::{self, Format, Table},
};

/// Show what this node can do, and what it lacks
///
/// Every line was tried by the daemon when it started. Fails if something is missing that pods need.
#[derive(Debug, Args)]
pub struct Doctor {}

impl Doctor {
    pub async fn run(self, cx: &Context) -> Result<(), Error> {
        let mut node = cx.connect().await?;
        let reply = node.meridian.probe(ProbeRequest {}).await;
        let reply = reply.map_err(Error::refused("ask for the start-up probe"))?.into_inner();
        match cx.output {
            Format::Json => output::json(&json::message("meridian.v1.ProbeResponse", &reply))?,
            Format::Text => output::print(table(&reply.features))?,
        }
        match reply.features.iter().filter(|f| f.required && !f.available).count() {
            0 => Ok(()),
            missing => Err(Error::Node { missing }),
        }
    }
}

fn table(features: &[Feature]) -> Table {
    let mut table = Table::new(["FEATURE", "STATE", "NEEDED", "DETAIL"]);
    for f in features {
        let state = match (f.available, f.required) {
            (true, _) => "ok",
            (false, true) => "MISSING",
            (false, false) => "missing",
        };
        let needed = if f.required { "for pods" } else { "" };
        table.row([f.name.clone(), state.to_owned(), needed.to_owned(), f.detail.replace('\n', "; ")]);
    }
    table
}
