//! Programs that the daemon runs.

use std::process::{Command, Stdio};

use super::{Bench, Missing};

/// The first CRIU that restores into a time namespace given to it.
const CRIU: [u32; 3] = [4, 1, 1];

pub fn nftables(bench: &Bench<'_>) -> Result<String, Missing> {
    if !bench.masquerade {
        return Ok("not used: network.masquerade is false".to_owned());
    }
    output(&["nft".to_owned(), "list".to_owned(), "tables".to_owned()])?;
    Ok("listed tables".to_owned())
}

pub fn criu(bench: &Bench<'_>) -> Result<String, Missing> {
    let mut command = bench.criu.to_vec();
    command.push("--version".to_owned());
    let text = output(&command)?;
    let found = version(&text).ok_or_else(|| Missing::Unfit { found: format!("no version in {text:?}") })?;
    let [major, minor, patch] = found;
    let found = format!("version {major}.{minor}.{patch}");
    if [major, minor, patch] < CRIU { Err(Missing::Unfit { found }) } else { Ok(found) }
}

fn output(command: &[String]) -> Result<String, Missing> {
    let name = || command.first().cloned().unwrap_or_default();
    let output = Command::new(name())
        .args(command.iter().skip(1))
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Missing::Run { command: name(), source })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Missing::Unfit { found: format!("{}: {}: {said}", name(), output.status) });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// From "Version: 4.1.1"; a missing third number is 0.
fn version(text: &str) -> Option<[u32; 3]> {
    let line = text.lines().find_map(|line| line.strip_prefix("Version:"))?;
    let mut numbers = line.trim().split('.').map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse().ok()
    });
    Some([numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_criu() {
        assert_eq!(version("Version: 4.1.1\nGitID: v4.1.1\n"), Some([4, 1, 1]));
        assert_eq!(version("Version: 4.2\n"), Some([4, 2, 0]));
        assert_eq!(version("Version: 3.17.1-2\n"), Some([3, 17, 1]));
        assert_eq!(version("criu: not found"), None);
        assert!([4, 1, 0] < CRIU && [4, 2, 0] > CRIU);
    }
}
