//! CRIU's image files as fields on the wire: what we do not know of a message stays as it is.
//!
//! An image is two magic numbers and then messages, each behind its length, all 4 bytes in little-endian order.

/// Field numbers and values, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message(Vec<(u32, Value)>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Number(u64),
    /// 8 or 4 bytes.
    Fixed(Vec<u8>),
    Bytes(Vec<u8>),
}

/// Two magic numbers.
const HEADER: usize = 8;

/// Lets `edit` change every message of an image; `None`: this is no image, or none needed it.
pub(super) fn edit_image(image: &[u8], mut edit: impl FnMut(&mut Message) -> bool) -> Option<Vec<u8>> {
    let (header, mut rest) = image.split_at_checked(HEADER)?;
    let (mut edited, mut changed) = (header.to_vec(), false);
    while !rest.is_empty() {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        let (bytes, behind) = behind.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        let mut message = Message::decode(bytes)?;
        let bytes = if edit(&mut message) {
            changed = true;
            message.encode()
        } else {
            bytes.to_vec()
        };
        edited.extend(u32::try_from(bytes.len()).ok()?.to_le_bytes());
        edited.extend(bytes);
        rest = behind;
    }
    changed.then_some(edited)
}

impl Message {
    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = number(&mut bytes)?;
            let mut take = |count: usize| {
                let (taken, rest) = bytes.split_at_checked(count)?;
                bytes = rest;
                Some(taken.to_vec())
            };
            let value = match key & 7 {
                0 => Value::Number(number(&mut bytes)?),
                1 => Value::Fixed(take(8)?),
                2 => {
                    let count = usize::try_from(number(&mut bytes)?).ok()?;
                    let (taken, rest) = bytes.split_at_checked(count)?;
                    bytes = rest;
                    Value::Bytes(taken.to_vec())
                }
                5 => Value::Fixed(take(4)?),
                _ => return None,
            };
            fields.push((u32::try_from(key >> 3).ok()?, value));
        }
        Some(Self(fields))
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (field, value) in &self.0 {
            let key = u64::from(*field) << 3;
            match value {
                Value::Number(n) => {
                    put(&mut bytes, key);
                    put(&mut bytes, *n);
                }
                Value::Fixed(fixed) => {
                    put(&mut bytes, key | if fixed.len() == 8 { 1 } else { 5 });
                    bytes.extend(fixed);
                }
                Value::Bytes(text) => {
                    put(&mut bytes, key | 2);
                    put(&mut bytes, text.len() as u64);
                    bytes.extend(text);
                }
            }
        }
        bytes
    }

    /// A number, 0 where it is missing.
    pub(super) fn get(&self, field: u32) -> u64 {
        let found = self.0.iter().find(|(f, _)| *f == field);
        if let Some((_, Value::Number(n))) = found { *n } else { 0 }
    }

    /// Changes a number that is there.
    pub(super) fn set(&mut self, field: u32, value: u64) {
        if let Some((_, Value::Number(n))) = self.0.iter_mut().find(|(f, _)| *f == field) {
            *n = value;
        }
    }

    /// Lets `edit` change the message in a field; whether it did.
    pub(super) fn edit(&mut self, field: u32, edit: impl FnOnce(&mut Self) -> bool) -> bool {
        let Some((_, Value::Bytes(bytes))) = self.0.iter_mut().find(|(f, _)| *f == field) else {
            return false;
        };
        let Some(mut message) = Self::decode(bytes) else { return false };
        let changed = edit(&mut message);
        if changed {
            *bytes = message.encode();
        }
        changed
    }
}

fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    bytes.push(value.to_le_bytes()[0]);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A message of numbers alone.
    pub fn of(numbers: &[(u32, u64)]) -> Message {
        Message(numbers.iter().map(|(field, n)| (*field, Value::Number(*n))).collect())
    }

    /// A message with another in a field.
    pub fn around(field: u32, inner: &Message, mut others: Message) -> Message {
        others.0.push((field, Value::Bytes(inner.encode())));
        others
    }

    /// An image of these messages.
    pub fn image(messages: &[Message]) -> Vec<u8> {
        let mut bytes = vec![7; HEADER];
        for message in messages {
            let message = message.encode();
            bytes.extend(u32::try_from(message.len()).unwrap().to_le_bytes());
            bytes.extend(message);
        }
        bytes
    }

    #[test]
    fn what_is_not_edited_stays() {
        let inner = Message(vec![(1, Value::Fixed(vec![1; 8])), (2, Value::Fixed(vec![2; 4]))]);
        let message = around(9, &inner, of(&[(1, u64::MAX), (300, 5)]));
        let bytes = image(&[message.clone(), of(&[])]);
        assert_eq!(edit_image(&bytes, |_| false), None);
        assert_eq!(edit_image(&bytes, |_| true), Some(bytes.clone()));
        let edited = edit_image(&bytes, |m| {
            m.set(300, 6);
            true
        });
        assert_eq!(edited.unwrap().len(), bytes.len());
        assert_eq!((message.get(1), message.get(2), message.get(300)), (u64::MAX, 0, 5));
    }

    #[test]
    fn garbage_is_left_alone() {
        let bytes = image(&[of(&[(1, 5)])]);
        for cut in 0..bytes.len() {
            assert!(edit_image(&bytes[..cut], |_| true).is_none(), "{cut}");
        }
        assert_eq!(edit_image(&[&bytes[..], &[9, 0, 0]].concat(), |_| true), None);
    }
}
