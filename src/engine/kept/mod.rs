//! What a checkpoint keeps: named parts, each a list of blobs, of which a snapshot writes only what has changed.
//!
//! Blobs describe themselves: fields and variants are kept by name (each name once), so that a program reads what another version wrote.
//! A field that the blob lacks takes its default (`#[serde(default)]`); one that the program does not know is skipped.

mod read;
mod write;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// First byte of every blob: how the rest is written. Not to be changed for a new field.
const FORMAT: u8 = 11;
/// Values inside values, at most.
const DEPTH: u32 = 64;

/// What a snapshot says of one part.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// These blobs take the place of all earlier ones. None: the part is gone.
    Set(Vec<Vec<u8>>),
    /// These come after the earlier ones.
    Append(Vec<Vec<u8>>),
}

/// By name of the part; parts that are not named stay as they are.
pub type Changes = Vec<(String, Change)>;

/// The parts of one checkpoint, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kept(BTreeMap<String, Vec<Vec<u8>>>);

impl Kept {
    /// What the first snapshot of something leaves.
    pub fn of(changes: Changes) -> Kept {
        let mut kept = Kept::default();
        kept.apply(changes);
        kept
    }

    /// Takes in a further snapshot.
    pub fn apply(&mut self, changes: Changes) {
        for (name, change) in changes {
            match change {
                Change::Set(blobs) if blobs.is_empty() => drop(self.0.remove(&name)),
                Change::Set(blobs) => drop(self.0.insert(name, blobs)),
                Change::Append(blobs) => self.0.entry(name).or_default().extend(blobs),
            }
        }
    }

    /// Adds a blob behind those of a part.
    pub fn push(&mut self, name: String, blob: Vec<u8>) {
        self.0.entry(name).or_default().push(blob);
    }

    /// The blobs of a part, oldest first.
    pub fn blobs(&self, name: &str) -> &[Vec<u8>] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// A part that is one value; `None` where there is no such part.
    ///
    /// # Errors
    /// It is there, and cannot be read.
    pub fn read<'k, T: Deserialize<'k>>(&'k self, name: &str) -> Result<Option<T>, String> {
        self.blobs(name).last().map(|blob| decode(blob)).transpose().map_err(|e| format!("`{name}` {e}"))
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Takes out the parts whose names begin with `prefix`, without it.
    pub fn split_off(&mut self, prefix: &str) -> Kept {
        let inside: Vec<String> = self.names().filter(|name| name.starts_with(prefix)).map(str::to_owned).collect();
        Kept(
            inside
                .into_iter()
                .filter_map(|name| self.0.remove_entry(&name))
                .map(|(name, blobs)| (name[prefix.len()..].to_owned(), blobs))
                .collect(),
        )
    }

    /// Bytes of all blobs.
    pub fn size(&self) -> usize {
        self.0.values().flatten().map(Vec::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Puts `prefix` before every name.
pub fn prefixed(prefix: &str, changes: Changes) -> Changes {
    changes.into_iter().map(|(name, change)| (format!("{prefix}{name}"), change)).collect()
}

/// A value as a blob.
///
/// # Errors
/// The value is of a kind that blobs do not hold: a fault of the program, after which nothing should be committed.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, String> {
    let mut writer = write::Writer::new(FORMAT);
    value.serialize(&mut writer).map_err(|e| format!("cannot be written down: {e}"))?;
    Ok(writer.finish())
}

/// Reads a blob.
///
/// # Errors
/// It is of a newer format, damaged, or says something else than `T`.
pub fn decode<'de, T: Deserialize<'de>>(blob: &'de [u8]) -> Result<T, String> {
    match blob.split_first() {
        Some((&FORMAT, rest)) => read::Reader::new(rest).whole().map_err(|e| format!("cannot be read: {e}")),
        Some((&newer, _)) if newer > FORMAT => {
            Err(format!("is of format {newer}, and this program reads up to format {FORMAT}: run the version that wrote it"))
        }
        _ => Err("is not the blob of a checkpoint".to_owned()),
    }
}

/// Bytes that are to be written as such, not as a list of numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Bytes;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

/// A failure of reading or writing, as serde reports it.
#[derive(Debug)]
pub struct Fault(String);

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

impl serde::ser::Error for Fault {
    fn custom<T: std::fmt::Display>(text: T) -> Fault {
        Fault(text.to_string())
    }
}

impl serde::de::Error for Fault {
    fn custom<T: std::fmt::Display>(text: T) -> Fault {
        Fault(text.to_string())
    }
}

/// First byte of a value. From [`tag::SMALL`] on it is the value itself: 0 to 191.
mod tag {
    pub const NONE: u8 = 0;
    pub const SOME: u8 = 1;
    pub const FALSE: u8 = 2;
    pub const TRUE: u8 = 3;
    pub const UNSIGNED: u8 = 4;
    /// -1 - n.
    pub const NEGATIVE: u8 = 5;
    pub const F64: u8 = 6;
    pub const F32: u8 = 7;
    /// An f64 that is a whole number.
    pub const WHOLE: u8 = 8;
    pub const TEXT: u8 = 9;
    pub const BYTES: u8 = 10;
    pub const LIST: u8 = 11;
    pub const MAP: u8 = 12;
    /// Names and values.
    pub const FIELDS: u8 = 13;
    /// A name and a value.
    pub const VARIANT: u8 = 14;
    pub const SMALL: u8 = 64;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    struct Old {
        gone: Vec<(u8, String)>,
        n: i64,
        inner: Option<Box<Old>>,
        by: BTreeMap<u32, f64>,
        what: What,
    }

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    enum What {
        #[default]
        Nothing,
        One(u64),
        Two(f32, bool),
        Named {
            a: char,
            b: Bytes,
        },
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct New {
        #[serde(default)]
        added: u32,
        n: i64,
        what: What,
        inner: Option<Box<New>>,
    }

    fn old() -> impl Strategy<Value = Old> {
        let what = prop_oneof![
            Just(What::Nothing),
            any::<u64>().prop_map(What::One),
            (any::<f32>().prop_filter("equal to itself", |x| !x.is_nan()), any::<bool>()).prop_map(|(x, y)| What::Two(x, y)),
            (any::<char>(), any::<Vec<u8>>()).prop_map(|(a, b)| What::Named { a, b: Bytes(b) }),
        ];
        let number = prop_oneof![any::<f64>().prop_filter("equal to itself", |x| !x.is_nan()), (-9i32..9).prop_map(f64::from)];
        let by = prop::collection::btree_map(any::<u32>(), number, 0..5);
        let leaf =
            (any::<Vec<(u8, String)>>(), any::<i64>(), by, what).prop_map(|(gone, n, by, what)| Old { gone, n, inner: None, by, what });
        leaf.prop_recursive(4, 8, 1, |inner| inner.prop_map(|inner| Old { n: 7, inner: Some(Box::new(inner)), ..Old::default() }))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_read_again(value in old()) {
            prop_assert_eq!(decode::<Old>(&encode(&value).unwrap()).unwrap(), value);
        }

        #[test]
        fn fields_may_come_and_go(value in old()) {
            let new: New = decode(&encode(&value).unwrap()).unwrap();
            prop_assert_eq!((new.added, new.n, &new.what, new.inner.is_some()), (0, value.n, &value.what, value.inner.is_some()));
        }

        #[test]
        fn bytes_that_are_no_blob_are_an_error(mut blob in prop::collection::vec(any::<u8>(), 0..200), value in old(), at in any::<prop::sample::Index>(), bit in 0..8) {
            blob.insert(0, FORMAT);
            let _ = decode::<Old>(&blob);
            let mut damaged = encode(&value).unwrap();
            let at = at.index(damaged.len());
            damaged[at] ^= 1u8 << bit;
            let _ = decode::<Old>(&damaged);
        }
    }

    #[test]
    fn floats_are_kept_to_the_bit() {
        for x in [0.0, -0.0, 1.0, -1.0, 1e15, 1e300, f64::NAN, f64::NEG_INFINITY, f64::MIN_POSITIVE] {
            assert_eq!(decode::<f64>(&encode(&x).unwrap()).unwrap().to_bits(), x.to_bits());
        }
    }

    #[test]
    fn lists_in_lists_without_end_are_refused() {
        let mut blob = [tag::LIST, tag::SMALL + 1].repeat(100_000);
        blob.insert(0, FORMAT);
        assert!(decode::<serde::de::IgnoredAny>(&blob).is_err());
    }

    #[test]
    fn the_format_of_a_newer_program_is_told() {
        let error = decode::<u8>(&[FORMAT + 1, 0]).unwrap_err();
        assert!(error.contains("is of format 12") && error.contains("run the version that wrote it"), "{error}");
        assert!(decode::<u8>(&[]).is_err());
    }

    #[test]
    fn names_are_written_once() {
        let one = encode(&[Old::default()]).unwrap().len();
        let hundred = encode(&vec![Old::default(); 100]).unwrap().len();
        assert!(hundred < one + 100 * 17, "{one} bytes, then {hundred}");
    }
}
