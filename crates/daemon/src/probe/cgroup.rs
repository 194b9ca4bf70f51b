//! Control groups: the layout, and what a cgroup of the unified hierarchy can do.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::PathBuf;

use sys::bpf::{Instruction, attach_device_filter, load_device_filter};
use sys::cgroup::Layout;
use sys::clone::{Options, fork};

use super::Missing;
use super::failed;

/// A cgroup of the unified hierarchy for the time of the probe.
pub struct Bench {
    path: PathBuf,
}

impl Bench {
    pub fn make() -> Result<Self, Missing> {
        let layout = Layout::detect().map_err(failed("read mountinfo"))?;
        let unified =
            layout.unified.ok_or_else(|| Missing::Unfit { found: "no cgroup2 mount".to_owned() })?;
        let path = unified.join(format!("meridian-probe-{}", std::process::id()));
        let made = fs::create_dir(&path);
        let bench = Self { path };
        made.map_err(|source| bench.file("", source)).map(|()| bench)
    }

    fn file(&self, name: &str, source: std::io::Error) -> Missing {
        Missing::File { path: self.path.join(name).display().to_string(), source }
    }

    fn write(&self, name: &str, value: &str) -> Result<(), Missing> {
        fs::write(self.path.join(name), value).map_err(|source| self.file(name, source))
    }

    fn open(&self) -> Result<File, Missing> {
        File::open(&self.path).map_err(|source| self.file("", source))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

/// The probe's cgroup, if it could be made.
fn made<'a>(bench: &'a super::Bench<'_>) -> Result<&'a Bench, Missing> {
    bench.cgroup.as_ref().map_err(|missing| Missing::Unfit { found: missing.to_string() })
}

pub fn layout(_: &super::Bench<'_>) -> Result<String, Missing> {
    let layout = Layout::detect().map_err(failed("read mountinfo"))?;
    let kind = match (&layout.unified, layout.v1.is_empty()) {
        (Some(unified), true) => format!("unified at {}", unified.display()),
        (Some(unified), false) => {
            format!("hybrid: cgroup2 at {}, {} v1 hierarchies", unified.display(), layout.v1.len())
        }
        (None, _) => return Err(Missing::Unfit { found: "no cgroup2 mount".to_owned() }),
    };
    Ok(kind)
}

/// Where each controller that pods' limits use is governed.
pub fn controllers(_: &super::Bench<'_>) -> Result<String, Missing> {
    let layout = Layout::detect().map_err(failed("read mountinfo"))?;
    let (mut found, mut absent) = (Vec::new(), Vec::new());
    for (v2, v1, needed) in [
        ("cpu", "cpu", true),
        ("memory", "memory", true),
        ("pids", "pids", true),
        ("cpuset", "cpuset", false),
        ("io", "blkio", false),
        ("hugetlb", "hugetlb", false),
    ] {
        if layout.on_unified(v2) {
            found.push(format!("{v2} (v2)"));
        } else if layout.v1_of(v1).is_some() {
            found.push(format!("{v1} (v1)"));
        } else if needed {
            absent.push(v2);
        }
    }
    if absent.is_empty() {
        Ok(found.join(", "))
    } else {
        Err(Missing::Unfit { found: format!("no hierarchy has {}", absent.join(", ")) })
    }
}

pub fn freeze(bench: &super::Bench<'_>) -> Result<String, Missing> {
    let cgroup = made(bench)?;
    cgroup.write("cgroup.freeze", "1")?;
    let name = "cgroup.events";
    let events = fs::read_to_string(cgroup.path.join(name)).map_err(|source| cgroup.file(name, source))?;
    cgroup.write("cgroup.freeze", "0")?;
    if !events.lines().any(|line| line == "frozen 1") {
        return Err(Missing::Unfit { found: "an empty cgroup did not become frozen".to_owned() });
    }
    Ok("froze and thawed a cgroup".to_owned())
}

pub fn kill(bench: &super::Bench<'_>) -> Result<String, Missing> {
    made(bench)?.write("cgroup.kill", "1")?;
    Ok("killed an empty cgroup".to_owned())
}

pub fn clone_into(bench: &super::Bench<'_>) -> Result<String, Missing> {
    let directory = made(bench)?.open()?;
    let options = Options { cgroup: Some(directory.as_fd()), ..Options::default() };
    let child = fork(&options, || 0).map_err(failed("clone3 with CLONE_INTO_CGROUP"))?;
    sys::pidfd::wait(&child.pidfd).map_err(failed("waitid"))?;
    Ok("started a process in a cgroup".to_owned())
}

pub fn device_filter(bench: &super::Bench<'_>) -> Result<String, Missing> {
    let directory = made(bench)?.open()?;
    // r0 = 1; exit: every device allowed.
    let allow = Instruction { code: 0xb7, registers: 0, offset: 0, immediate: 1 };
    let exit = Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 };
    let filter = load_device_filter(&[allow, exit]).map_err(failed("load a device filter"))?;
    attach_device_filter(&directory, &filter, None).map_err(failed("attach a device filter"))?;
    Ok("attached one to a cgroup".to_owned())
}
