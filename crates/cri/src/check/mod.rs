//! The rules that a request must keep before anything is done for it.
//!
//! Each function takes the place of the value in the request ([`Field`]) and the value, and returns an [`Invalid`]
//! that names the field, quotes the value (shortened) and says what would be right. Nothing here touches the node:
//! whether a path exists or a name is taken is found out by whoever uses it.

pub(crate) mod checkpoint;
pub(crate) mod container;
pub(crate) mod id;
pub(crate) mod mount;
pub(crate) mod resources;
pub(crate) mod sandbox;
pub(crate) mod security;
pub(crate) mod text;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::fmt;

/// A request that can never work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub(crate) struct Invalid {
    field: String,
    problem: String,
}

pub(crate) type Check = Result<(), Invalid>;

/// Where in a request a value stands: `config.mounts[3].host_path`.
///
/// A path of borrowed parts, so that checking a good request allocates nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field<'a> {
    parent: Option<&'a Field<'a>>,
    part: Part<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Part<'a> {
    Name(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Field<'a> {
    /// A field of the request itself.
    pub(crate) const fn of(name: &'a str) -> Self {
        Self { parent: None, part: Part::Name(name) }
    }

    /// A field of this message.
    pub(crate) const fn at(&'a self, name: &'a str) -> Self {
        Self { parent: Some(self), part: Part::Name(name) }
    }

    /// An element of this list.
    pub(crate) const fn index(&'a self, index: usize) -> Self {
        Self { parent: Some(self), part: Part::Index(index) }
    }

    /// An entry of this map.
    pub(crate) const fn key(&'a self, key: &'a str) -> Self {
        Self { parent: Some(self), part: Part::Key(key) }
    }

    /// The field is absent or empty; `rule` says what belongs there.
    pub(crate) fn missing(&self, rule: impl fmt::Display) -> Invalid {
        Invalid { field: self.to_string(), problem: format!("is missing: it must be {rule}") }
    }

    /// The field has a value that breaks the `rule`, which reads on after "must be".
    pub(crate) fn wrong(&self, value: impl fmt::Debug, rule: impl fmt::Display) -> Invalid {
        Invalid { field: self.to_string(), problem: format!("is {}: it must be {rule}", short(&value)) }
    }

    /// The field contradicts another; `why` is a clause about it.
    pub(crate) fn conflict(&self, why: impl fmt::Display) -> Invalid {
        Invalid { field: self.to_string(), problem: why.to_string() }
    }
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.part {
            Part::Name(name) if self.parent.is_some() => write!(f, ".{name}"),
            Part::Name(name) => f.write_str(name),
            Part::Index(index) => write!(f, "[{index}]"),
            Part::Key(key) => write!(f, "[{}]", short(&key)),
        }
    }
}

/// The value as source code would quote it, with control characters escaped, at most 80 characters of it.
fn short(value: &dyn fmt::Debug) -> String {
    let text = format!("{value:?}");
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text,
    }
}

/// The message that must be there.
pub(crate) fn required<'m, T>(field: Field<'_>, message: Option<&'m T>) -> Result<&'m T, Invalid> {
    message.ok_or_else(|| field.missing("set"))
}

/// An enum's value as the proto names it.
pub(crate) fn one_of<E>(field: Field<'_>, value: i32, rule: &str) -> Result<E, Invalid>
where
    E: TryFrom<i32>,
{
    E::try_from(value).map_err(|_| field.wrong(value, rule))
}

/// A number from `low` to `high`.
pub(crate) fn range(field: Field<'_>, value: i64, low: i64, high: i64) -> Check {
    if (low..=high).contains(&value) {
        Ok(())
    } else {
        Err(field.wrong(value, format_args!("from {low} to {high}")))
    }
}

/// No two equal values; the later of two is at fault.
pub(crate) fn distinct<'v, T>(field: Field<'_>, values: impl IntoIterator<Item = T>, rule: &str) -> Check
where
    T: std::hash::Hash + Eq + fmt::Debug + Copy + 'v,
{
    let mut seen = std::collections::HashSet::new();
    for (i, value) in values.into_iter().enumerate() {
        if !seen.insert(value) {
            return Err(field.index(i).wrong(value, rule));
        }
    }
    Ok(())
}
