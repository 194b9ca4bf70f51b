//! Ids of pods, containers and migrations: 64 lower-case hexadecimal digits, 256 random bits.

use std::fmt;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an id: an id is 64 lower-case hexadecimal digits")]
pub struct InvalidId {
    text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// A new id from the kernel's random generator.
            #[must_use]
            pub fn random() -> Self {
                Self(random_hex())
            }

            /// The 64 digits.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first 13 digits, as the field's tools print them.
            #[must_use]
            pub fn short(&self) -> &str {
                &self.0[..13]
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                if is_id(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidId { text: text.chars().take(80).collect() })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.short())
            }
        }
    };
}

id!(
    /// A pod sandbox.
    PodId
);
id!(
    /// A container.
    ContainerId
);
id!(
    /// One run of an exec inside a container.
    ExecId
);
id!(
    /// One move of a pod between two nodes.
    MigrationId
);

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn random_hex() -> String {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).expect("getrandom(2) does not fail once the system has booted");
    let mut text = String::with_capacity(64);
    for byte in bytes {
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_are_ids_and_differ() {
        let (a, b) = (PodId::random(), PodId::random());
        assert_ne!(a, b);
        assert_eq!(a.as_str().parse::<PodId>(), Ok(a.clone()));
        assert!(a.as_str().starts_with(a.short()));
    }

    #[test]
    fn paths_prefixes_and_upper_case_are_no_ids() {
        for text in ["", "..", "../x", &"a".repeat(63), &"A".repeat(64), &"g".repeat(64), &"a".repeat(65)] {
            assert!(text.parse::<ContainerId>().is_err(), "{text}");
        }
    }
}
