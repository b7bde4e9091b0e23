//! What exposed units have done so far, for metrics whose observation is the unit: who has had a hit, and how much each adds up to.

use super::keys::{Key, KeyMap, KeySet, key};
use crate::engine::pane::Sums;
use hashbrown::hash_map::Entry;
use serde::{Deserialize, Serialize};

/// Sums of one unit: its values, and its covariate once one has been seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    y: f64,
    x: Option<f64>,
}

/// See the module. A key is that of a unit in one signal: [`of`].
#[derive(Default)]
pub struct Tallies {
    /// By experiment; `None` where a partition has seen no unit of it that matters here.
    of: Vec<Option<Box<Experiment>>>,
    hits: usize,
    sums: usize,
    /// By experiment: the usual kinds of events that repeat, a [`bit`] each. All of them together are small enough to stay in the caches.
    repeating: Vec<u8>,
    /// Units that there was no room to remember; they do not count.
    pub dropped: u64,
}

#[derive(Default)]
struct Experiment {
    hits: KeySet,
    sums: KeyMap<Tally>,
    /// Units that have come once with an event of a kind; `None` from when one came again.
    once: Vec<(Key, Option<KeySet>)>,
    /// What the last checkpoint does not have yet.
    new_hits: Vec<Key>,
    new_sums: KeySet,
    new_once: Vec<(Key, Key)>,
}

/// What a checkpoint appends for one experiment. Later sums replace earlier ones.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Changes {
    hits: Vec<Key>,
    sums: Vec<(Key, Tally)>,
    /// Kind and unit, in order.
    once: Vec<(Key, Key)>,
}

impl Changes {
    pub fn len(&self) -> usize {
        self.hits.len() + self.sums.len() + self.once.len()
    }

    /// The same in parts of at most `most`.
    pub fn split(self, most: usize) -> impl Iterator<Item = Changes> {
        let parts = |n: usize| n.div_ceil(most);
        let n = parts(self.hits.len()).max(parts(self.sums.len())).max(parts(self.once.len()));
        (0..n).map(move |i| Changes { hits: part(&self.hits, i, most), sums: part(&self.sums, i, most), once: part(&self.once, i, most) })
    }
}

fn part<T: Copy>(of: &[T], index: usize, most: usize) -> Vec<T> {
    of.chunks(most).nth(index).unwrap_or_default().to_vec()
}

/// The key of a unit, or workflow, in what has this digest: what changes begins anew.
pub fn of(unit: Key, digest: u64) -> Key {
    // An odd multiplier (golden ratio) spreads it over all bits.
    unit ^ digest.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Tallies {
    /// Whether this is the unit's first hit.
    pub fn hit(&mut self, experiment: u32, key: Key, max: usize) -> bool {
        let own = entry(&mut self.of, experiment);
        if self.hits >= max && !own.hits.contains(&key) {
            self.dropped += 1;
            return false;
        }
        let first = own.hits.insert(key);
        if first {
            own.new_hits.push(key);
            self.hits += 1;
        }
        first
    }

    /// Whether a unit may have had an event of this kind before. Once one has, so may all others: that is known for nothing, and
    /// of kinds that do not repeat for a set of units. What the experiment means is digested in `whole`.
    pub fn again(&mut self, experiment: u32, (kind, whole): (&str, u64), unit: Key, max: usize) -> bool {
        let bit = bit(kind);
        if self.repeating.get(experiment as usize).is_some_and(|known| known & bit != 0) {
            return true;
        }
        let again = self.notice(experiment, of(key(kind), whole), unit, max);
        if again {
            let experiment = experiment as usize;
            self.repeating.resize(self.repeating.len().max(experiment + 1), 0);
            self.repeating[experiment] |= bit;
        }
        again
    }

    fn notice(&mut self, experiment: u32, kind: Key, unit: Key, max: usize) -> bool {
        let own = entry(&mut self.of, experiment);
        let at = own.once.iter().position(|(known, _)| *known == kind).unwrap_or(own.once.len());
        if at == own.once.len() {
            own.once.push((kind, Some(KeySet::default())));
        }
        let once = &mut own.once[at].1;
        let Some(units) = once else { return true };
        own.new_once.push((kind, unit));
        let full = units.len() >= max;
        if full {
            // As two changes of one unit are read.
            own.new_once.push((kind, unit));
        }
        if full || !units.insert(unit) {
            *once = None;
        }
        once.is_none()
    }

    /// Adds a value to the unit's sum; returns what that adds to the sums over all units. The covariate counts once.
    pub fn add(&mut self, experiment: u32, key: Key, value: f64, covariate: Option<f64>, max: usize) -> Option<Sums> {
        let own = entry(&mut self.of, experiment);
        let tally = match own.sums.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if self.sums >= max => {
                self.dropped += 1;
                return None;
            }
            Entry::Vacant(new) => {
                self.sums += 1;
                new.insert(Tally::default())
            }
        };
        let before = *tally;
        tally.y += value;
        tally.x = tally.x.or(covariate);
        own.new_sums.insert(key);
        let (x0, x1) = (before.x.unwrap_or(0.0), tally.x.unwrap_or(0.0));
        Some(Sums {
            y: value,
            yy: tally.y * tally.y - before.y * before.y,
            x: x1 - x0,
            xx: x1 * x1 - x0 * x0,
            xy: x1 * tally.y - x0 * before.y,
        })
    }

    /// What a checkpoint of everything would hold: units, each once for every signal, and for every kind of event that does not repeat.
    pub fn len(&self) -> usize {
        let once = self.of.iter().flatten().flat_map(|own| &own.once).map(|(_, units)| units.as_ref().map_or(2, KeySet::len));
        self.hits + self.sums + once.sum::<usize>()
    }

    /// What has changed since the last call, or all, of each experiment with any; in the order of keys.
    pub fn take_changes(&mut self, all: bool) -> Vec<(u32, Changes)> {
        let take = |(experiment, own): (usize, &mut Option<Box<Experiment>>)| {
            let own = own.as_mut()?;
            let (new_hits, new_sums) = (std::mem::take(&mut own.new_hits), std::mem::take(&mut own.new_sums));
            let new_once = std::mem::take(&mut own.new_once);
            let mut once = if all { own.once.iter().flat_map(|(kind, units)| told(*kind, units.as_ref())).collect() } else { new_once };
            let mut hits = if all { own.hits.iter().copied().collect() } else { new_hits };
            let changed = if all { own.sums.keys().copied().collect() } else { new_sums.into_iter().collect::<Vec<_>>() };
            let mut sums: Vec<(Key, Tally)> = changed.into_iter().filter_map(|key| Some((key, *own.sums.get(&key)?))).collect();
            hits.sort_unstable();
            sums.sort_unstable_by_key(|(key, _)| *key);
            if all {
                once.sort_unstable();
            }
            let changes = Changes { hits, sums, once };
            (changes.len() > 0).then_some((experiment as u32, changes))
        };
        self.of.iter_mut().enumerate().filter_map(take).collect()
    }

    /// Replays changes from a checkpoint.
    pub fn apply(&mut self, experiment: u32, changes: Changes) {
        let own = entry(&mut self.of, experiment);
        let before = (own.hits.len(), own.sums.len());
        own.hits.extend(changes.hits);
        own.sums.extend(changes.sums);
        let after = (own.hits.len(), own.sums.len());
        self.hits += after.0 - before.0;
        self.sums += after.1 - before.1;
        for (kind, unit) in changes.once {
            self.notice(experiment, kind, unit, usize::MAX);
        }
        entry(&mut self.of, experiment).new_once.clear();
    }

    /// Drops what units did in an experiment.
    pub fn forget(&mut self, experiment: u32) {
        self.repeating.get_mut(experiment as usize).into_iter().for_each(|known| *known = 0);
        if let Some(gone) = self.of.get_mut(experiment as usize).and_then(Option::take) {
            self.hits -= gone.hits.len();
            self.sums -= gone.sums.len();
        }
    }
}

/// Of a kind of event that experiments count; 0 for others.
fn bit(kind: &str) -> u8 {
    match kind {
        "request" => 1,
        "workflow" => 2,
        "outcome" => 4,
        "ticket" => 8,
        "compliance_flag" => 16,
        _ => 0,
    }
}

/// Units as [`Tallies::again`] would be told of them; one twice where some came again.
fn told(kind: Key, units: Option<&KeySet>) -> Vec<(Key, Key)> {
    units.map_or(vec![(kind, 0), (kind, 0)], |units| units.iter().map(|unit| (kind, *unit)).collect())
}

fn entry(of: &mut Vec<Option<Box<Experiment>>>, experiment: u32) -> &mut Experiment {
    let at = experiment as usize;
    if of.len() <= at {
        of.resize_with(at + 1, || None);
    }
    of[at].get_or_insert_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_hit_counts_and_sums_follow_each_unit() {
        let mut tallies = Tallies::default();
        assert!(tallies.hit(0, 1, 9) && !tallies.hit(0, 1, 9) && tallies.hit(0, 2, 9) && tallies.hit(1, 2, 9));
        let mut total = Sums::default();
        for (unit, y, x) in [(1, 3.0, Some(2.0)), (2, 1.0, None), (1, 4.0, Some(9.0)), (2, 0.5, Some(4.0))] {
            total += tallies.add(0, unit, y, x, 9).unwrap();
        }
        assert_eq!(total, Sums { y: 8.5, yy: 49.0 + 2.25, x: 6.0, xx: 20.0, xy: 14.0 + 6.0 });
        for all in [false, true] {
            let mut again = Tallies::default();
            tallies.take_changes(all).into_iter().for_each(|(experiment, changes)| again.apply(experiment, changes));
            assert_eq!(again.len(), 5);
            assert!(!again.hit(0, 2, 9) && !again.hit(1, 2, 9) && again.hit(1, 1, 9));
            assert_eq!(again.add(0, 1, 0.0, None, 9), Some(Sums::default()));
        }
    }

    #[test]
    fn a_unit_that_goes_on_and_on_is_written_down_once() {
        let mut tallies = Tallies::default();
        assert!((0..1_000).all(|_| tallies.add(0, 1, 1.0, None, 9).is_some()));
        let changes = tallies.take_changes(false);
        assert_eq!((changes.len(), changes[0].1.len()), (1, 1));
        assert_eq!(tallies.take_changes(false), []);
    }

    #[test]
    fn a_full_table_counts_no_further_unit_until_an_experiment_has_gone() {
        let mut tallies = Tallies::default();
        assert!(tallies.hit(0, 1, 1) && !tallies.hit(1, 2, 1));
        assert!(tallies.add(0, 1, 1.0, None, 1).is_some() && tallies.add(1, 2, 1.0, None, 1).is_none());
        assert_eq!((tallies.dropped, tallies.len()), (2, 2));
        tallies.forget(0);
        assert_eq!(tallies.len(), 0);
        assert!(tallies.hit(1, 2, 1));
    }

    #[test]
    fn a_unit_that_comes_again_is_noticed_and_then_nobody_is_asked() {
        let mut tallies = Tallies::default();
        let (one, two) = (("request", 1), ("own", 1));
        assert!(!tallies.again(0, one, 7, 9) && !tallies.again(0, one, 8, 9) && !tallies.again(0, two, 7, 9));
        let restore = |changes: Vec<(u32, Changes)>| {
            let mut restored = Tallies::default();
            changes.into_iter().for_each(|(experiment, changes)| restored.apply(experiment, changes));
            restored
        };
        let (mut part, mut whole) = (restore(tallies.take_changes(false)), restore(tallies.take_changes(true)));
        for tallies in [&mut tallies, &mut part, &mut whole] {
            assert!(tallies.again(0, one, 8, 9) && tallies.again(0, one, 99, 9), "no kind that repeats is kept");
            assert!(!tallies.again(0, two, 8, 2) && tallies.again(0, two, 9, 2), "no room to tell");
            assert!(!tallies.again(0, ("ticket", 1), 8, 9) && !tallies.again(1, one, 8, 9), "of this kind and experiment alone");
        }
        assert!(restore(tallies.take_changes(true)).again(0, one, 100, 9));
        tallies.forget(0);
        assert!(!tallies.again(0, one, 8, 9));
    }
}
