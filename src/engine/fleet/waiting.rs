//! Panes that wait until all live partitions have passed them, and their parts in checkpoints: each is written once, and goes when it is judged.

use crate::engine::kept::{self, Change, Changes, Kept};
use crate::engine::pane::{Closed, Seen};
use crate::engine::shape::Renumber;
use crate::engine::time::Pane;
use std::collections::{BTreeMap, BTreeSet};

/// By pane, and by partition: one entry for each pane that it has closed.
pub type Panes = BTreeMap<Pane, BTreeMap<i32, Vec<Closed>>>;

/// The same in checkpoints that kept all panes in one.
pub type Whole = BTreeMap<Pane, BTreeMap<i32, Vec<Seen>>>;

/// Before the number of a pane: what partitions have seen in it, a blob for each entry.
const PANE: &str = "pane/";

/// See the module.
#[derive(Default)]
pub struct Waiting {
    panes: Panes,
    /// Bytes of all.
    size: usize,
    /// Panes that checkpoints have.
    kept: BTreeSet<Pane>,
    /// The first entry of a pane and partition that they lack.
    fresh: BTreeMap<(Pane, i32), usize>,
}

impl Waiting {
    pub fn hear(&mut self, pane: Pane, partition: i32, seen: Closed) {
        let entries = self.panes.entry(pane).or_default().entry(partition).or_default();
        self.fresh.entry((pane, partition)).or_insert(entries.len());
        self.size += seen.size();
        entries.push(seen);
    }

    /// Takes out the panes up to this one.
    pub fn up_to(&mut self, pane: Pane) -> Panes {
        let next = Pane(pane.0 + 1);
        let later = self.panes.split_off(&next);
        let ready = std::mem::replace(&mut self.panes, later);
        self.fresh = self.fresh.split_off(&(next, i32::MIN));
        self.size -= ready.values().flat_map(BTreeMap::values).flatten().map(Closed::size).sum::<usize>();
        ready
    }

    /// Panes up to this one.
    pub fn count(&self, pane: Pane) -> usize {
        self.panes.range(..=pane).count()
    }

    pub fn size(&self) -> usize {
        self.size
    }

    pub fn kept(&self) -> &BTreeSet<Pane> {
        &self.kept
    }

    /// Checkpoints have these panes, too.
    pub fn are_kept(&mut self, panes: BTreeSet<Pane>) {
        self.kept.extend(panes);
    }

    /// What has changed since the last call; with `whole`, everything, because numbers mean something else.
    ///
    /// # Errors
    /// As [`kept::encode`].
    pub fn take_changes(&mut self, whole: bool) -> Result<Changes, String> {
        let judged = self.kept.iter().filter(|pane| !self.panes.contains_key(pane));
        let mut changes: Changes = judged.map(|pane| (name(*pane), Change::Set(Vec::new()))).collect();
        let blob = |partition: i32, seen: &Closed| kept::encode(&(partition, seen)).map_err(|e| format!("a pane {e}"));
        if whole {
            for (pane, partitions) in &self.panes {
                let all = partitions.iter().flat_map(|(partition, entries)| entries.iter().map(|seen| blob(*partition, seen)));
                changes.push((name(*pane), Change::Set(all.collect::<Result<_, _>>()?)));
            }
        } else {
            for ((pane, partition), from) in &self.fresh {
                let entries = &self.panes[pane][partition][*from..];
                let new = entries.iter().map(|seen| blob(*partition, seen)).collect::<Result<_, _>>()?;
                changes.push((name(*pane), Change::Append(new)));
            }
        }
        self.kept = self.panes.keys().copied().collect();
        self.fresh.clear();
        Ok(changes)
    }

    /// Takes up what [`Waiting::take_changes`] left, with the numbers of another catalog; and `more` of older ones.
    ///
    /// # Errors
    /// A blob cannot be read.
    pub fn restore(kept: &Kept, more: Whole, by: &Renumber) -> Result<Waiting, String> {
        let mut waiting = Waiting::default();
        for (pane, partitions) in more {
            for (partition, entries) in partitions {
                entries.into_iter().for_each(|seen| waiting.hear(pane, partition, seen.renumbered(by).close()));
            }
        }
        for name in kept.names() {
            let Some(pane) = name.strip_prefix(PANE).and_then(|number| number.parse().ok()).map(Pane) else { continue };
            waiting.kept.insert(pane);
            for blob in kept.blobs(name) {
                let (partition, seen) = read(blob).map_err(|e| format!("`{name}` {e}"))?;
                waiting.hear(pane, partition, seen.renumbered(by).close());
            }
        }
        Ok(waiting)
    }
}

/// Earlier versions wrote the pane as it was before it was closed.
fn read(blob: &[u8]) -> Result<(i32, Seen), String> {
    let closed = kept::decode::<(i32, Closed)>(blob).map(|(partition, closed)| (partition, closed.opened()));
    closed.or_else(|_| kept::decode(blob))
}

fn name(pane: Pane) -> String {
    format!("{PANE}{}", pane.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::pane::{NO_UNIT, Observation};
    use crate::engine::segment::NO_PROFILE;

    fn seen(value: u16) -> Closed {
        let observations = vec![Observation { cell: 0, age: 0, value, batch: NO_UNIT, profile: NO_PROFILE }];
        Seen { observations, ..Seen::default() }.close()
    }

    #[test]
    fn panes_of_earlier_versions_are_read() {
        let own = (3, seen(7).opened());
        assert_eq!(read(&kept::encode(&own).unwrap()), Ok(own.clone()));
        assert_eq!(read(&kept::encode(&(3, seen(7))).unwrap()), Ok(own));
        assert!(read(b"?").is_err());
    }

    #[test]
    fn a_pane_is_written_once_and_goes_when_it_is_judged() {
        let (mut waiting, mut kept) = (Waiting::default(), Kept::default());
        let mut size = 0;
        for n in 0..200_u16 {
            let pane = Pane(i64::from(n / 4 + n % 7));
            if waiting.panes.first_key_value().is_none_or(|(first, _)| pane >= *first) {
                waiting.hear(pane, i32::from(n % 3), seen(n));
            }
            if n % 5 == 0 {
                waiting.up_to(Pane(i64::from(n / 4) - 4));
            }
            if n % 11 == 0 {
                let changes = waiting.take_changes(n == 110).unwrap();
                let written: usize = changes.iter().map(|(_, Change::Set(blobs) | Change::Append(blobs))| blobs.len()).sum();
                assert!(n == 110 || written <= 11, "{written} panes at once");
                kept.apply(changes);
                let again: Panes = kept
                    .names()
                    .map(|name| {
                        let mut partitions: BTreeMap<i32, Vec<Closed>> = BTreeMap::new();
                        for blob in kept.blobs(name) {
                            let (partition, seen) = kept::decode(blob).unwrap();
                            partitions.entry(partition).or_default().push(seen);
                        }
                        (Pane(name[PANE.len()..].parse().unwrap()), partitions)
                    })
                    .collect();
                assert_eq!(again, waiting.panes);
                size = size.max(waiting.size());
            }
        }
        assert!(size >= 4 * 3);
        waiting.up_to(Pane(1_000));
        assert_eq!(waiting.size(), 0);
        kept.apply(waiting.take_changes(false).unwrap());
        assert!(kept.is_empty());
    }
}
