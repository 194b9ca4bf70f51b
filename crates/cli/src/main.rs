//! `meridian`: the engineer's tool on the node.
//!
//! ```text
//! meridian ps|pods|run|exec|logs|stop|rm|images|pull|inspect ──CRI────────┐
//! meridian doctor|ns|image import|migrate ──meridian.v1──────────────────┴─ the daemon's socket
//! meridian exec -it|attach|port-forward ──CRI, then the URL it gives─────┘
//! meridian checkpoint|restore ──CRI (CheckpointPod, RestorePod)──────────┘
//! meridian logs ── reads the CRI log file        meridian certs init ── writes local files
//! ```
//!
//! The first line is what crictl does too, through the same calls, so that a node needs no second tool. Nothing here
//! reaches for anything but the daemon's socket, the streaming URLs it gives and local files, and nothing here decides: the daemon checks every
//! request, the command words it and prints the answer.
//!
//! Each subcommand is one file in [`commands`]: its flags and what it does. [`find`] turns what people type (an id, the
//! start of one, a name) into an object; [`output`] prints tables or, with `--output json`, the messages themselves in
//! the JSON form of protobuf, as crictl does.
//!
//! Exit codes: 0 done; 1 the daemon or the node said no; 2 wrong usage; 3 no daemon at the socket; 4 no such object.
//! `meridian exec` ends with the command's own code, or 125 where the command could not be run.

mod client;
mod commands;
mod duration;
mod error;
mod find;
mod format;
mod json;
mod output;
mod stream;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match commands::Meridian::parse().run().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("meridian: {}", error.chain());
            error.exit_code()
        }
    }
}
