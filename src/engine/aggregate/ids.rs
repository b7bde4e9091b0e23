//! Record ids seen inside the dedupe horizon: two generations, so that forgetting costs nothing, neither here nor in checkpoints.

use super::checkpoint::CHUNK;
use super::keys::{Key, KeySet, key};
use crate::engine::kept::{self, Bytes, Change, Changes, Kept};
use crate::engine::time::Millis;
use serde::{Deserialize, Serialize};

/// Remembers an id for one to two horizons of event time, and at most `max` of them.
pub struct Ids {
    young: KeySet,
    old: KeySet,
    age: Age,
    /// Ids that no checkpoint has, of the old and of the young generation; `None` before the first checkpoint, which has all.
    new: Option<[Vec<Key>; 2]>,
    /// [`Age::turns`] at the last checkpoint.
    kept: Option<u64>,
}

/// What a checkpoint keeps beside the ids themselves.
#[derive(Clone, Serialize, Deserialize)]
pub struct Age {
    /// When the young generation began.
    since: Millis,
    /// Its number.
    turns: u64,
    /// Ids forgotten before their horizon because there were too many.
    pub evicted: u64,
}

impl Ids {
    pub fn new() -> Ids {
        let age = Age { since: Millis::MIN, turns: 0, evicted: 0 };
        Ids { young: KeySet::default(), old: KeySet::default(), age, new: None, kept: None }
    }

    pub fn age(&self) -> &Age {
        &self.age
    }

    /// Whether `id` is new; remembers it.
    pub fn insert(&mut self, id: &str, watermark: Millis, horizon: Millis, max: usize) -> bool {
        if watermark.saturating_sub(self.age.since) >= horizon {
            self.turn(watermark);
        } else if self.young.len() >= max.div_ceil(2) {
            self.age.evicted += self.old.len() as u64;
            self.turn(watermark);
        }
        let key = key(id);
        let is_new = !self.old.contains(&key) && self.young.insert(key);
        if is_new && let Some([_, young]) = &mut self.new {
            young.push(key);
        }
        is_new
    }

    fn turn(&mut self, watermark: Millis) {
        std::mem::swap(&mut self.young, &mut self.old);
        self.young.clear();
        self.age = Age { since: watermark, turns: self.age.turns + 1, ..self.age };
        if let Some([old, young]) = &mut self.new {
            *old = std::mem::take(young);
        }
    }

    /// The ids that have come since the last call, or all of them; generations that have been forgotten go.
    ///
    /// # Errors
    /// As [`kept::encode`].
    pub fn take_changes(&mut self) -> Result<Changes, String> {
        let turns = self.age.turns;
        let before = self.kept.replace(turns);
        let gone = before.into_iter().flat_map(|t| [t.checked_sub(1), Some(t)]).flatten().filter(|t| t + 1 < turns);
        let mut changes: Changes = gone.map(|t| (part(t), Change::Set(Vec::new()))).collect();
        let new = self.new.replace(Default::default());
        let [old, young] = new.unwrap_or_else(|| [&self.old, &self.young].map(|all| all.iter().copied().collect()));
        for (generation, mut keys) in [(turns.checked_sub(1), old), (Some(turns), young)] {
            keys.sort_unstable();
            if let Some(generation) = generation.filter(|_| !keys.is_empty()) {
                let blobs = keys.chunks(CHUNK).map(|keys| kept::encode(&Bytes(keys.iter().flat_map(|k| k.to_le_bytes()).collect())));
                changes.push((part(generation), Change::Append(blobs.collect::<Result<_, _>>()?)));
            }
        }
        Ok(changes)
    }

    /// Takes up what [`Ids::take_changes`] left.
    ///
    /// # Errors
    /// A blob cannot be read.
    pub fn restore(age: Age, kept: &Kept) -> Result<Ids, String> {
        let read = |generation: Option<u64>| {
            let mut keys = KeySet::default();
            for blob in generation.map_or(&[][..], |generation| kept.blobs(&part(generation))) {
                let Bytes(bytes) = kept::decode(blob).map_err(|e| format!("a list of ids {e}"))?;
                keys.reserve(bytes.len() / size_of::<Key>());
                keys.extend(bytes.as_chunks().0.iter().map(|key| Key::from_le_bytes(*key)));
            }
            Ok::<_, String>(keys)
        };
        let (old, young) = (read(age.turns.checked_sub(1))?, read(Some(age.turns))?);
        Ok(Ids { young, old, kept: Some(age.turns), age, new: Some(Default::default()) })
    }
}

/// Name of a generation's part.
fn part(generation: u64) -> String {
    format!("ids/{generation}")
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
        assert!(ids.age.evicted >= 85, "{}", ids.age.evicted);
    }

    #[test]
    fn increments_hold_what_is_remembered_and_nothing_that_is_forgotten() {
        for every in [1, 7, 90, 400] {
            let (mut ids, mut kept) = (Ids::new(), Kept::default());
            let mut again = Ids::new();
            for i in 0..1_000 {
                // Every third id comes once more.
                let id = (i - i % 3).to_string();
                assert_eq!(ids.insert(&id, i, 100, 120), again.insert(&id, i, 100, 120), "{i}, every {every}");
                if i % every == 0 {
                    kept.apply(ids.take_changes().unwrap());
                    assert!(kept.names().count() <= 2, "{kept:?}");
                    again = Ids::restore(ids.age().clone(), &kept).unwrap();
                    assert_eq!((&again.young, &again.old), (&ids.young, &ids.old));
                }
            }
        }
    }
}
