//! Limits of a cgroup.

use std::collections::HashMap;

use api::cri::v1::{HugepageLimit, LinuxContainerResources};

use super::{Check, Field, distinct, range};

/// Ranges of cgroups(7), cpuset(7) and proc(5); zero means unset everywhere.
pub(crate) fn linux(field: Field<'_>, r: &LinuxContainerResources) -> Check {
    if r.cpu_period != 0 {
        range(field.at("cpu_period"), r.cpu_period, 1_000, 1_000_000)?;
    }
    if !matches!(r.cpu_quota, -1 | 0) {
        range(field.at("cpu_quota"), r.cpu_quota, 1_000, i64::MAX)?;
    }
    if r.cpu_shares != 0 {
        range(field.at("cpu_shares"), r.cpu_shares, 2, 262_144)?;
    }
    range(field.at("memory_limit_in_bytes"), r.memory_limit_in_bytes, -1, i64::MAX)?;
    swap(field.at("memory_swap_limit_in_bytes"), r)?;
    range(field.at("oom_score_adj"), r.oom_score_adj, -1000, 1000)?;
    list(field.at("cpuset_cpus"), &r.cpuset_cpus)?;
    list(field.at("cpuset_mems"), &r.cpuset_mems)?;
    hugepages(field.at("hugepage_limits"), &r.hugepage_limits)?;
    unified(field.at("unified"), &r.unified)
}

fn swap(field: Field<'_>, r: &LinuxContainerResources) -> Check {
    let (swap, memory) = (r.memory_swap_limit_in_bytes, r.memory_limit_in_bytes);
    range(field, swap, -1, i64::MAX)?;
    if swap > 0 && memory > swap {
        return Err(field
            .wrong(swap, format_args!("at least memory_limit_in_bytes, {memory}: it is memory plus swap")));
    }
    Ok(())
}

/// `0-3,7`, ascending within a range; the kernel has the last word on what exists.
fn list(field: Field<'_>, value: &str) -> Check {
    let number = |text: &str| text.parse::<u16>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    let part = |part: &str| match part.split_once('-') {
        Some((low, high)) => matches!((number(low), number(high)), (Some(l), Some(h)) if l <= h),
        None => number(part).is_some(),
    };
    if value.is_empty() || value.split(',').all(part) {
        Ok(())
    } else {
        Err(field.wrong(value, "a list of numbers and ranges such as \"0-3,7\""))
    }
}

fn hugepages(field: Field<'_>, limits: &[HugepageLimit]) -> Check {
    for (i, limit) in limits.iter().enumerate() {
        let size = &limit.page_size;
        let digits = size.trim_end_matches(['K', 'M', 'G', 'B']);
        let unit = &size[digits.len()..];
        let good =
            digits.parse::<u32>().is_ok_and(u32::is_power_of_two) && matches!(unit, "KB" | "MB" | "GB");
        if !good {
            return Err(field.index(i).at("page_size").wrong(size, "a page size such as \"2MB\" or \"1GB\""));
        }
    }
    distinct(field, limits.iter().map(|l| l.page_size.as_str()), "limited once")
}

/// Control files of cgroup v2: `memory.high`, never a path, and never one that moves processes or freezes them.
fn unified(field: Field<'_>, files: &HashMap<String, String>) -> Check {
    for (file, content) in files {
        let (controller, knob) = file.split_once('.').unwrap_or((file, ""));
        let letters = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        let good = letters(controller)
            && knob.split('.').all(|part| {
                letters(part) || part.ends_with("MB") || part.ends_with("GB") || part.ends_with("KB")
            });
        if !good || controller == "cgroup" || file.contains('/') {
            return Err(field.key(file).conflict("is no control file of cgroup v2 such as \"memory.high\""));
        }
        if content.len() > 4096 || content.contains('\0') {
            return Err(field.key(file).wrong(content, "at most 4096 bytes, without NUL"));
        }
    }
    Ok(())
}
