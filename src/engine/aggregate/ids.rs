//! Record ids seen inside the dedupe horizon: two generations, so that forgetting costs nothing.

use super::keys::{KeySet, key};
use crate::engine::time::Millis;
use serde::{Deserialize, Serialize};

/// Remembers an id for one to two horizons of event time, and at most `max` of them.
#[derive(Serialize, Deserialize)]
pub struct Ids {
    young: KeySet,
    old: KeySet,
    /// When the young generation began.
    since: Millis,
    /// Ids forgotten before their horizon because there were too many.
    pub evicted: u64,
}

impl Ids {
    pub fn new() -> Ids {
        Ids { young: KeySet::default(), old: KeySet::default(), since: Millis::MIN, evicted: 0 }
    }

    /// Whether `id` is new; remembers it.
    pub fn insert(&mut self, id: &str, watermark: Millis, horizon: Millis, max: usize) -> bool {
        if watermark.saturating_sub(self.since) >= horizon {
            self.turn(watermark);
        } else if self.young.len() >= max.div_ceil(2) {
            self.evicted += self.old.len() as u64;
            self.turn(watermark);
        }
        let key = key(id);
        !self.old.contains(&key) && self.young.insert(key)
    }

    fn turn(&mut self, watermark: Millis) {
        std::mem::swap(&mut self.young, &mut self.old);
        self.young.clear();
        self.since = watermark;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_duplicate_for_at_least_one_horizon_and_then_forgotten() {
        let mut ids = Ids::new();
        assert!(ids.insert("a", 0, 100, 1_000));
        assert!(!ids.insert("a", 99, 100, 1_000));
        assert!(!ids.insert("a", 150, 100, 1_000), "still in the old generation");
        assert!(ids.insert("a", 300, 100, 1_000));
    }

    #[test]
    fn too_many_ids_are_forgotten_and_counted() {
        let mut ids = Ids::new();
        for i in 0..100 {
            assert!(ids.insert(&i.to_string(), 0, 1_000, 10));
        }
        assert!(ids.young.len() + ids.old.len() <= 10);
        assert!(ids.evicted >= 85, "{}", ids.evicted);
    }
}
