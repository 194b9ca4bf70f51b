//! The grammar of image names, by hand: as one regular expression it is 9 MB in a daemon that lives for months.
//!
//! ```text
//! reference  = [host[":"port]"/"] component *("/" component) [":" tag] ["@" digest]
//! component  = word *(separator word)      word = 1*(a-z 0-9)      separator = "." / "_" / "__" / 1*"-"
//! tag        = (A-Z a-z 0-9 "_") *127(A-Z a-z 0-9 "_" "." "-")
//! ```
//!
//! # References
//! OCI distribution specification, "Pulling manifests"; the reference grammar of the distribution project.

/// Longest repository, host included, in bytes.
const LONGEST_NAME: usize = 255;
const LONGEST_TAG: usize = 128;
const DEFAULT_HOST: &str = "docker.io";

/// The part of a name that breaks the grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// Neither name nor address with an optional port.
    #[error("the host must be a DNS name or address, with a port or without")]
    Host,
    /// Empty, upper case, or with a character that none may have.
    #[error("the repository must be words of a-z and 0-9, joined by /, ., _, __ or -")]
    Repository,
    /// Longer than registries take.
    #[error("host and repository have more than {LONGEST_NAME} bytes")]
    Length,
    /// Empty, too long, or with a character that none may have.
    #[error(
        "the tag must be 1 to {LONGEST_TAG} of A-Z, a-z, 0-9, _, . and -, and begin with none of the last two"
    )]
    Tag,
}

/// A name taken apart, its host and `library/` supplied.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parts<'a> {
    pub host: &'a str,
    pub repository: String,
    pub tag: Option<&'a str>,
    /// Whatever was written after the `@`.
    pub digest: Option<&'a str>,
}

/// Takes a name apart.
pub(crate) fn parse(text: &str) -> Result<Parts<'_>, GrammarError> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    // A colon before the last slash belongs to a port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    let (host, path) = split_host(name);
    if !is_host(host) {
        return Err(GrammarError::Host);
    }
    if !path.split('/').all(is_component) {
        return Err(GrammarError::Repository);
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(GrammarError::Tag);
    }
    let official = host == DEFAULT_HOST && !path.contains('/');
    let repository = if official { format!("library/{path}") } else { path.to_owned() };
    // With what was supplied: what is accepted must be a name again as it is stored.
    if host.len() + 1 + repository.len() > LONGEST_NAME {
        return Err(GrammarError::Length);
    }
    Ok(Parts { host, repository, tag, digest })
}

/// What stands before the first slash is a host if it can be nothing else.
fn split_host(name: &str) -> (&str, &str) {
    let is_host = |first: &str| {
        first == "localhost" || first.contains(['.', ':']) || first.contains(|c: char| c.is_ascii_uppercase())
    };
    match name.split_once('/') {
        Some(("index.docker.io", path)) => (DEFAULT_HOST, path),
        Some((first, path)) if is_host(first) => (first, path),
        _ => (DEFAULT_HOST, name),
    }
}

fn is_host(text: &str) -> bool {
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        let address = !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
        return address && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    };
    let is_label = |label: &str| {
        let inner = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        !label.is_empty() && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    name.split('.').all(is_label) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_component(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends_in_words = text.bytes().next().is_some_and(is_word) && text.bytes().last().is_some_and(is_word);
    let mut separators = text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let is_separator = |s: &str| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-');
    ends_in_words && separators.all(is_separator)
}

fn is_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let begins = text.bytes().next().is_some_and(is_word);
    begins && text.len() <= LONGEST_TAG && text.bytes().all(|b| is_word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_from_repositories() {
        let parts = |text| parse(text).map(|p| (p.host, p.repository, p.tag));
        let ok = |host, path: &str, tag| Ok((host, path.to_owned(), tag));
        assert_eq!(parts("a"), ok("docker.io", "library/a", None));
        assert_eq!(parts("a/b:t"), ok("docker.io", "a/b", Some("t")));
        assert_eq!(parts("a.b/c"), ok("a.b", "c", None));
        assert_eq!(parts("h:5000/c"), ok("h:5000", "c", None));
        assert_eq!(parts("[::1]:5000/c:1"), ok("[::1]:5000", "c", Some("1")));
        assert_eq!(parts("HOST/c"), ok("HOST", "c", None));
        assert_eq!(parts("docker.io/c"), ok("docker.io", "library/c", None));
        assert_eq!(parts("h:5000"), ok("docker.io", "library/h", Some("5000")));
    }

    #[test]
    fn separators_join_words() {
        for good in ["a.b", "a_b", "a__b", "a-b", "a---b", "0/1", "a.b-c/d"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["a..b", "a___b", ".a", "a-", "a._b", "-", "a//b", "/a", "a/", "a\0", "\u{e9}"] {
            assert_eq!(parse(bad), Err(GrammarError::Repository), "{bad:?}");
        }
    }

    #[test]
    fn hosts_tags_and_lengths_have_rules_too() {
        for bad in ["-h.x/a", "h.x:/a", "h.x:p/a", "[::1/a", "[]:1/a", "h..x/a"] {
            assert_eq!(parse(bad), Err(GrammarError::Host), "{bad}");
        }
        for bad in ["a:", "a:.x", "a:-x", "a:x y"] {
            assert_eq!(parse(bad), Err(GrammarError::Tag), "{bad}");
        }
        assert!(parse(&format!("a:{}", "t".repeat(128))).is_ok());
        assert_eq!(parse(&format!("a:{}", "t".repeat(129))), Err(GrammarError::Tag));
        let room = LONGEST_NAME - "docker.io/library/".len();
        assert!(parse(&"a".repeat(room)).is_ok());
        assert_eq!(parse(&"a".repeat(room + 1)), Err(GrammarError::Length));
    }
}
