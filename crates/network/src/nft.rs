//! Runs nft, which applies a whole text in one transaction or none of it.

use std::io::{self, Write};
use std::process::{Command, Stdio};

/// Why rules were not loaded.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The command could not be run.
    #[error("run nft: install nftables, or set network.masquerade to false and map no host ports")]
    Run {
        /// From the kernel.
        #[source]
        source: io::Error,
    },
    /// The rules were refused.
    #[error("nft refused table {table}: {message}")]
    Refused {
        /// Family and name.
        table: String,
        /// nft's own words.
        message: String,
    },
}

/// Loads `rules`, which are those of `table`.
pub(crate) fn load(table: &str, rules: &str) -> Result<(), NftError> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| NftError::Run { source })?;
    let written = nft.stdin.take().expect("stdin is a pipe").write_all(rules.as_bytes());
    let output = nft.wait_with_output().map_err(|source| NftError::Run { source })?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(NftError::Refused { table: table.to_owned(), message });
    }
    written.map_err(|source| NftError::Run { source })
}
