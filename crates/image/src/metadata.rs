//! The catalogue on disk: `images.redb`, one row per image, layer and proof, as JSON.
//!
//! A change is one transaction, durable when it returns. The schema's version is a row of its own; a store written by
//! a newer Meridian is refused. A row that cannot be read is left alone and reported, the others are served.

use std::collections::BTreeMap;
use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::catalogue::Catalogue;

const SCHEMA: u64 = 1;
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const IMAGES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images");
const LAYERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("layers");
const PROOFS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("proofs");

/// Why the store cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// The database failed.
    #[error("the image database failed")]
    Database(#[source] Box<redb::Error>),
    /// It belongs to a newer version.
    #[error("the image database has schema {found}, this version knows {SCHEMA}: use the newer meridiand")]
    Newer {
        /// Its schema.
        found: u64,
    },
    /// A row cannot be encoded.
    #[error("cannot encode a row of the image database")]
    Encode(#[source] serde_json::Error),
}

impl<E: Into<redb::Error>> From<E> for MetadataError {
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

/// The database.
#[derive(Debug)]
pub(crate) struct Metadata {
    database: Database,
}

impl Metadata {
    pub(crate) fn open(path: &Path) -> Result<Self, MetadataError> {
        let metadata = Self { database: Database::create(path)? };
        let transaction = metadata.database.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            let found = meta.get("schema")?.map(|row| row.value());
            match found {
                Some(found) if found > SCHEMA => return Err(MetadataError::Newer { found }),
                Some(_) => {}
                None => drop(meta.insert("schema", SCHEMA)?),
            }
            for table in [IMAGES, LAYERS, PROOFS] {
                transaction.open_table(table)?;
            }
        }
        transaction.commit()?;
        Ok(metadata)
    }

    pub(crate) fn load(&self) -> Result<Catalogue, MetadataError> {
        Ok(Catalogue { images: self.rows(IMAGES)?, layers: self.rows(LAYERS)?, proofs: self.rows(PROOFS)? })
    }

    /// Stores what is different in `new`.
    pub(crate) fn save(&self, old: &Catalogue, new: &Catalogue) -> Result<(), MetadataError> {
        let transaction = self.database.begin_write()?;
        write(&transaction, IMAGES, &old.images, &new.images)?;
        write(&transaction, LAYERS, &old.layers, &new.layers)?;
        write(&transaction, PROOFS, &old.proofs, &new.proofs)?;
        Ok(transaction.commit()?)
    }

    fn rows<K: std::str::FromStr + Ord, V: DeserializeOwned>(
        &self,
        table: TableDefinition<'_, &str, &[u8]>,
    ) -> Result<BTreeMap<K, V>, MetadataError> {
        let transaction = self.database.begin_read()?;
        let mut rows = BTreeMap::new();
        for row in transaction.open_table(table)?.iter()? {
            let (key, value) = row?;
            match (key.value().parse(), serde_json::from_slice(value.value())) {
                (Ok(key), Ok(value)) => drop(rows.insert(key, value)),
                (_, Err(error)) => {
                    tracing::warn!(row = key.value(), %error, "row of the image database is skipped")
                }
                (Err(_), _) => tracing::warn!(row = key.value(), "row of the image database is skipped"),
            }
        }
        Ok(rows)
    }
}

fn write<K: ToString + Ord, V: Serialize + PartialEq>(
    transaction: &WriteTransaction,
    table: TableDefinition<'_, &str, &[u8]>,
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> Result<(), MetadataError> {
    let mut table = transaction.open_table(table)?;
    for key in old.keys().filter(|key| !new.contains_key(key)) {
        table.remove(key.to_string().as_str())?;
    }
    for (key, value) in new.iter().filter(|(key, value)| old.get(key) != Some(value)) {
        let row = serde_json::to_vec(value).map_err(MetadataError::Encode)?;
        table.insert(key.to_string().as_str(), row.as_slice())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Proof;
    use crate::digest::Digest;

    fn catalogue(names: &[&str]) -> Catalogue {
        let proof =
            |name: &str| Proof { diff_id: Digest::of(name.as_bytes()).into(), sources: [name.into()].into() };
        let proofs = names.iter().map(|name| (Digest::of(name.as_bytes()), proof(name))).collect();
        Catalogue { proofs, ..Catalogue::default() }
    }

    #[test]
    fn what_was_saved_is_loaded_by_the_next_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("images.redb");
        let (one, two) = (catalogue(&["a", "b"]), catalogue(&["b", "c"]));
        let metadata = Metadata::open(&path).unwrap();
        metadata.save(&Catalogue::default(), &one).unwrap();
        metadata.save(&one, &two).unwrap();
        drop(metadata);
        assert_eq!(Metadata::open(&path).unwrap().load().unwrap(), two);
    }

    #[test]
    fn a_bad_row_is_skipped_and_a_newer_schema_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("images.redb");
        let metadata = Metadata::open(&path).unwrap();
        metadata.save(&Catalogue::default(), &catalogue(&["a"])).unwrap();
        let transaction = metadata.database.begin_write().unwrap();
        transaction.open_table(IMAGES).unwrap().insert("sha256:x", &b"{"[..]).unwrap();
        transaction.commit().unwrap();
        assert_eq!(metadata.load().unwrap(), catalogue(&["a"]));
        let transaction = metadata.database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert("schema", SCHEMA + 1).unwrap();
        transaction.commit().unwrap();
        drop(metadata);
        assert!(matches!(Metadata::open(&path), Err(MetadataError::Newer { .. })));
    }
}
