//! Ids as clients give them: full or a prefix.

use super::{Check, Field};

/// Whether the text could be (a prefix of) an id at all. A text that could, and is none, is simply not found; a path
/// or a line of text is a mistake of the caller.
pub(crate) fn lookup(field: Field<'_>, id: &str) -> Check {
    const RULE: &str = "an id or a unique prefix of one";
    if id.is_empty() {
        return Err(field.missing(RULE));
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if id.len() <= 253 && id.bytes().all(word) { Ok(()) } else { Err(field.wrong(id, RULE)) }
}
