//! Statistics kept apart by period of allocation: the newest few, each found by its index.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Periods<T> {
    /// By index.
    kept: Vec<(usize, T)>,
    most: usize,
}

impl<T> Periods<T> {
    /// Keeps `most` periods; the oldest go first.
    pub fn new(most: usize) -> Periods<T> {
        Periods { kept: Vec::new(), most }
    }

    /// The period's statistics, begun if there are none. `None` for one older than all that are kept, once there is no room:
    /// what belongs to it must not be counted in another.
    pub fn at(&mut self, index: usize, fresh: impl FnOnce() -> T) -> Option<&mut T> {
        let at = match self.kept.binary_search_by_key(&index, |p| p.0) {
            Ok(at) => at,
            Err(0) if self.kept.len() >= self.most => return None,
            Err(at) => {
                self.kept.insert(at, (index, fresh()));
                let full = self.kept.len() > self.most;
                if full {
                    self.kept.remove(0);
                }
                at - usize::from(full)
            }
        };
        self.kept.get_mut(at).map(|p| &mut p.1)
    }

    pub fn get(&self, index: usize) -> Option<&T> {
        self.kept.binary_search_by_key(&index, |p| p.0).ok().map(|at| &self.kept[at].1)
    }

    /// In the order of time.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (usize, &T)> {
        self.kept.iter().map(|(index, period)| (*index, period))
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.kept.iter_mut().map(|p| &mut p.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_a_forgotten_period_is_not_counted_in_another() {
        let mut periods: Periods<u64> = Periods::new(3);
        for index in [0, 2, 4, 6] {
            *periods.at(index, || 0).unwrap() += 1;
        }
        assert!(periods.at(0, || 0).is_none() && periods.get(0).is_none());
        *periods.at(5, || 0).unwrap() += 7;
        assert_eq!(periods.iter().map(|(i, n)| (i, *n)).collect::<Vec<_>>(), [(4, 1), (5, 7), (6, 1)]);
    }
}
