//! CRIU's log: where a failure is explained.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags, openat};

/// Most bytes of a log that are looked at.
const TAIL: i64 = 64 << 10;
/// Most error lines that are quoted.
const QUOTED: usize = 3;

/// The last errors of log `name` in `dir`, joined to one line; a plain sentence when there is none.
pub(super) fn last_errors(dir: impl AsFd, name: &str) -> String {
    let text = tail(dir, name).unwrap_or_default();
    let errors: Vec<&str> = text.lines().filter_map(error).collect();
    match errors.len().saturating_sub(QUOTED) {
        _ if errors.is_empty() => format!("failed without a word in {name}"),
        skipped => errors[skipped..].join("; "),
    }
}

fn tail(dir: impl AsFd, name: &str) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(dir, name, flags, Mode::empty()).ok()?);
    let size = i64::try_from(file.metadata().ok()?.len()).ok()?;
    file.seek(SeekFrom::End(-size.min(TAIL))).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The text of an error line, without time and process. That CRIU may not raise its own file limit (it lacks
/// CAP_SYS_RESOURCE) is said each time and explains nothing.
fn error(line: &str) -> Option<&str> {
    let start = line.find("Error (")?;
    let text = line[start..].trim_end();
    (!text.contains("RLIMIT_NOFILE")).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_errors_are_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let log = "(00.1) fine\n(00.2) Error (criu/util.c:1): rlimit: Can't setup RLIMIT_NOFILE for self\n\
                   (00.3)  1: Error (criu/a.c:1): one\n(00.4) Error (criu/b.c:2): two\n";
        std::fs::write(dir.path().join("dump.log"), log).unwrap();
        let at = File::open(dir.path()).unwrap();
        assert_eq!(last_errors(&at, "dump.log"), "Error (criu/a.c:1): one; Error (criu/b.c:2): two");
        assert_eq!(last_errors(&at, "none"), "failed without a word in none");
    }
}
