//! Stable 64-bit keys of texts, and maps over them. Stable, because checkpoints keep them.

use hashbrown::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// XXH3 of one or two texts. Of 10 million keys, two collide with a probability of 3 in a million.
pub type Key = u64;

pub fn key(text: &str) -> Key {
    xxh3_64(text.as_bytes())
}

/// The first text seeds the second, so that ("a", "bc") and ("ab", "c") differ.
pub fn pair(first: &str, second: &str) -> Key {
    chain(key(first), second)
}

/// The key of a text after another.
pub fn chain(before: Key, text: &str) -> Key {
    xxh3_64_with_seed(text.as_bytes(), before)
}

/// Keys are hashes already.
#[derive(Default)]
pub struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64(bytes);
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

pub type KeyMap<V> = HashMap<Key, V, BuildHasherDefault<AsIs>>;
pub type KeySet = HashSet<Key, BuildHasherDefault<AsIs>>;
