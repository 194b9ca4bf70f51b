use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Meridian;
use crate::{error::Error, output};

/// Print a completion script for a shell
///
/// For bash: `source <(meridian completion bash)`.
#[derive(Debug, Args)]
pub struct Completion {
    /// The shell
    shell: Shell,
}

impl Completion {
    pub fn run(self) -> Result<(), Error> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Meridian::command(), "meridian", &mut script);
        output::bytes(&mut std::io::stdout().lock(), &script)
    }
}
