//! Strings: names, paths, lines, arguments, labels.

use std::{collections::HashMap, net::IpAddr};

use super::{Check, Field, Invalid};

/// `PATH_MAX` of the kernel, less the terminating NUL (limits.h).
const PATH_MAX: usize = 4095;
/// `MAX_ARG_STRLEN` of the kernel, less the terminating NUL: longer strings fail execve(2) with E2BIG.
const ARG_MAX: usize = 131_071;
/// Bytes of all labels or annotations of an object; the API server stops at half of it.
const MAP_MAX: usize = 512 << 10;

/// A name that other tools put into file names and identifiers: no separator, no control character, no dots that mean
/// a directory.
pub(crate) fn name(field: Field<'_>, value: &str) -> Check {
    const RULE: &str = "1 to 253 letters, digits, '-', '_', '.' or ':', the first of them a letter or digit";
    if value.is_empty() {
        return Err(field.missing(RULE));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    let good = value.len() <= 253
        && value.starts_with(|c: char| c.is_ascii_alphanumeric())
        && value.chars().all(allowed)
        && !value.contains("..");
    if good { Ok(()) } else { Err(field.wrong(value, RULE)) }
}

/// A host name as sethostname(2) takes it and DNS allows it; empty is for the caller to judge.
pub(crate) fn hostname(field: Field<'_>, value: &str) -> Check {
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if value.is_empty() || (value.len() <= 64 && value.split('.').all(label)) {
        Ok(())
    } else {
        Err(field
            .wrong(value, "a host name of at most 64 bytes: letters, digits and '-' in parts joined by dots"))
    }
}

/// One word of a generated line: no white space, no control character.
pub(crate) fn word(field: Field<'_>, value: &str) -> Check {
    if value.is_empty() || value.len() > 255 || value.contains(|c: char| c.is_whitespace() || c.is_control())
    {
        Err(field.wrong(value, "1 to 255 characters without white space"))
    } else {
        Ok(())
    }
}

/// An IPv4 or IPv6 address, the latter with a zone if it likes.
pub(crate) fn address(field: Field<'_>, value: &str) -> Check {
    let (ip, zone) = value.split_once('%').unwrap_or((value, "-"));
    let zone_is_name = !zone.is_empty() && zone.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    match ip.parse::<IpAddr>() {
        Ok(_) if zone_is_name => Ok(()),
        _ => Err(field.wrong(value, "an IP address")),
    }
}

/// An absolute path without `..`, as the kubelet hands them out.
pub(crate) fn absolute(field: Field<'_>, path: &str) -> Check {
    const RULE: &str = "an absolute path of at most 4095 bytes, without \"..\" and control characters";
    match path {
        "" => Err(field.missing(RULE)),
        _ if path.starts_with('/') && plain(path) => Ok(()),
        _ => Err(field.wrong(path, RULE)),
    }
}

/// A path below some directory.
pub(crate) fn relative(field: Field<'_>, path: &str) -> Check {
    if !path.is_empty() && !path.starts_with('/') && plain(path) {
        Ok(())
    } else {
        Err(field.wrong(path, "a relative path of at most 4095 bytes, without \"..\" and control characters"))
    }
}

fn plain(path: &str) -> bool {
    path.len() <= PATH_MAX
        && !path.contains(|c: char| c.is_control())
        && path.split('/').all(|part| part != ".." && part.len() <= 255)
}

/// A string of an argument list (execve(2)).
pub(crate) fn argument(field: Field<'_>, value: &str) -> Check {
    if value.len() > ARG_MAX || value.contains('\0') {
        Err(field.wrong(value, "at most 131071 bytes, without NUL"))
    } else {
        Ok(())
    }
}

/// A program and its arguments.
pub(crate) fn command(field: Field<'_>, command: &[String]) -> Check {
    match command.first() {
        None => Err(field.missing("a program and its arguments")),
        Some(program) if program.is_empty() => Err(field.index(0).missing("a program")),
        Some(_) => arguments(field, command),
    }
}

/// All strings of an argument list.
pub(crate) fn arguments(field: Field<'_>, values: &[String]) -> Check {
    values.iter().enumerate().try_for_each(|(i, value)| argument(field.index(i), value))
}

/// The name of an environment variable.
pub(crate) fn variable(field: Field<'_>, key: &str) -> Check {
    if key.is_empty() || key.len() > ARG_MAX || key.contains(|c: char| c == '=' || c.is_control()) {
        Err(field.wrong(key, "a name without '=' and control characters"))
    } else {
        Ok(())
    }
}

/// The value of an environment variable: text of any number of lines, except that HOME ends up in generated files and
/// must be one line (CVE-2022-4318).
pub(crate) fn variable_value<'v>(field: Field<'_>, key: &str, value: &'v [u8]) -> Result<&'v str, Invalid> {
    let text = std::str::from_utf8(value).map_err(|_| field.wrong(value, "valid UTF-8"))?;
    argument(field, text)?;
    if key == "HOME" && text.contains(|c: char| c.is_control()) {
        return Err(field.wrong(text, "one line, because it ends up in /etc/passwd"));
    }
    Ok(text)
}

/// Labels or annotations: any values, keys of one line, half a megabyte in all.
pub(crate) fn labels(field: Field<'_>, map: &HashMap<String, String>) -> Check {
    if let Some(key) = map.keys().find(|k| k.is_empty() || k.contains(|c: char| c.is_control())) {
        return Err(field.key(key).conflict("has an empty key or one with control characters"));
    }
    let size: usize = map.iter().map(|(k, v)| k.len() + v.len()).sum();
    if size > MAP_MAX {
        return Err(field.conflict(format_args!("takes {size} bytes: it must be at most {MAP_MAX} in all")));
    }
    Ok(())
}
