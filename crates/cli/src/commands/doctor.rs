use std::fmt::Write;

use api::meridian::v1::{Check, DiagnoseRequest, DiagnoseResponse, Verdict};
use clap::Args;

use super::Context;
use crate::{
    error::Error,
    json,
    output::{self, Format, Table},
};

/// Look at everything on this node that pods depend on
///
/// One line per check, the worst first, each with what to do about it. Fails if a check does, also when no daemon
/// answers.
#[derive(Debug, Args)]
pub struct Doctor {}

impl Doctor {
    pub async fn run(self, cx: &Context) -> Result<(), Error> {
        let mut checks = examine(cx).await?;
        checks.sort_by_key(|check| std::cmp::Reverse(check.verdict));
        let failed = count(&checks, Verdict::Fail);
        match cx.output {
            Format::Text => output::print(report(&checks))?,
            Format::Json => {
                let reply = DiagnoseResponse { checks };
                output::json(&json::message("meridian.v1.DiagnoseResponse", &reply))?;
            }
        }
        if failed == 0 { Ok(()) } else { Err(Error::Node { failed }) }
    }
}

/// The daemon's checks and, first of all, whether it answers.
async fn examine(cx: &Context) -> Result<Vec<Check>, Error> {
    let object = cx.socket.display().to_string();
    let daemon = |verdict: Verdict, found: String, cure: &str| Check {
        name: "daemon".to_owned(),
        verdict: verdict.into(),
        object: object.clone(),
        found,
        cure: cure.to_owned(),
    };
    let mut node = match cx.connect().await {
        Ok(node) => node,
        Err(error) => {
            let cure =
                "start it and read its log: systemctl start meridiand; journalctl -eu meridiand; pods run on";
            return Ok(vec![daemon(Verdict::Fail, error.chain(), cure)]);
        }
    };
    let reply = node.meridian.diagnose(DiagnoseRequest {}).await;
    let reply = reply.map_err(Error::refused("examine the node"))?.into_inner();
    let mut checks = vec![daemon(Verdict::Ok, "answers".to_owned(), "")];
    checks.extend(reply.checks);
    Ok(checks)
}

fn count(checks: &[Check], verdict: Verdict) -> usize {
    checks.iter().filter(|check| check.verdict() == verdict).count()
}

fn report(checks: &[Check]) -> String {
    let mut table = Table::new(["", "CHECK", "OBJECT", "FOUND"]);
    for check in checks {
        let word = match check.verdict() {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        let cure = if check.cure.is_empty() { String::new() } else { format!(" -> {}", check.cure) };
        let found = format!("{}{cure}", check.found).replace('\n', "; ");
        table.row([word.to_owned(), check.name.clone(), check.object.clone(), found]);
    }
    let mut text = table.to_string();
    let [failed, warned, good] =
        [Verdict::Fail, Verdict::Warn, Verdict::Ok].map(|verdict| count(checks, verdict));
    let _never_fails = writeln!(text, "{failed} failed, {warned} to be looked at, {good} ok");
    text
}
