//! Objects that have been read before, byte for byte: a unit's attributes are the same in each of its records, and most units share
//! theirs with others. An object ends where its text says, so the same bytes in the same place are the same object: a hit can
//! never be wrong.

use xxhash_rust::xxh3::xxh3_64;

/// Objects remembered, each at the place that its beginning hashes to.
const PLACES: usize = 256;
/// Longest object remembered, in bytes.
const LONGEST: usize = 127;
/// Bytes that choose the place: attributes mostly differ by then, and what follows them does not count yet.
const BEGINNING: usize = 64;

#[derive(Clone, Copy)]
struct Known {
    len: u8,
    bytes: [u8; LONGEST],
}

/// See the module.
pub struct KnownObjects(Vec<Known>);

impl KnownObjects {
    pub fn new() -> KnownObjects {
        KnownObjects(vec![Known { len: 0, bytes: [0; LONGEST] }; PLACES])
    }

    fn place(rest: &[u8]) -> usize {
        xxh3_64(&rest[..rest.len().min(BEGINNING)]) as usize % PLACES
    }

    /// Length of the remembered object that `rest` begins with.
    pub fn find(&self, rest: &[u8]) -> Option<usize> {
        let known = &self.0[KnownObjects::place(rest)];
        let len = usize::from(known.len);
        (len > 0 && rest.starts_with(&known.bytes[..len])).then_some(len)
    }

    /// Remembers the object of this length that `rest` begins with, in the stead of another.
    pub fn learn(&mut self, rest: &[u8], len: usize) {
        if let Some(text) = rest.get(..len).filter(|_| len <= LONGEST) {
            let known = &mut self.0[KnownObjects::place(rest)];
            known.bytes[..len].copy_from_slice(text);
            known.len = len as u8;
        }
    }
}
