//! Sliding windows: a ring of panes that held something, and their running total.

use crate::engine::histogram::{Bins, SparseBins};
use crate::engine::pane::Cell;
use crate::engine::plan::Signal;
use crate::engine::time::Pane;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// One signal of one bucket over the last `panes` panes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Length in panes, at least 1.
    panes: i64,
    content: Content,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Content {
    Distribution {
        ring: VecDeque<(Pane, SparseBins)>,
        /// Not kept in a checkpoint: see [`Window::recount`].
        #[serde(skip)]
        total: Bins,
        clamped: u64,
    },
    Rate {
        ring: VecDeque<(Pane, u64, u64)>,
        n: u64,
        x: u64,
    },
    Count {
        ring: VecDeque<(Pane, u64)>,
        total: u64,
    },
    /// Values of a mean, since the beginning: their sums are in the evidence.
    Values {
        n: u64,
    },
    Workflows {
        ring: VecDeque<Cohort>,
        within: i64,
    },
}

/// Workflows begun in one pane.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Cohort {
    pane: Pane,
    started: u64,
    abandoned: u64,
}

/// Hits among observations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Share {
    pub n: u64,
    pub x: u64,
}

impl Window {
    /// `pane_ms` converts an abandonment limit to panes.
    pub fn new(signal: &Signal, panes: i64, pane_ms: i64) -> Window {
        let content = match signal {
            Signal::Distribution { .. } => Content::Distribution { ring: VecDeque::new(), total: Bins::default(), clamped: 0 },
            Signal::Rate { .. } | Signal::Retention { .. } => Content::Rate { ring: VecDeque::new(), n: 0, x: 0 },
            Signal::Count { .. } => Content::Count { ring: VecDeque::new(), total: 0 },
            Signal::Moments { .. } => Content::Values { n: 0 },
            Signal::Abandonment { within, .. } => {
                Content::Workflows { ring: VecDeque::new(), within: (within + pane_ms - 1).div_euclid(pane_ms) }
            }
        };
        Window { panes: panes.max(1), content }
    }

    /// Adds what a bucket's cell of `pane` holds. Panes come in ascending order.
    pub fn add(&mut self, pane: Pane, cell: Cell<'_>) {
        match &mut self.content {
            Content::Distribution { ring, total, clamped } => {
                let (bins, more) = cell.bins();
                total.add(&bins);
                *clamped += more;
                ring.push_back((pane, bins));
            }
            Content::Rate { ring, n, x } => {
                let (dn, dx) = cell.share();
                *n += dn;
                *x += dx;
                ring.push_back((pane, dn, dx));
            }
            Content::Count { ring, total } => {
                let (more, _) = cell.share();
                *total += more;
                ring.push_back((pane, more));
            }
            Content::Values { n } => *n += cell.share().0,
            Content::Workflows { ring, .. } => {
                let (started, abandoned) = cell.workflows(pane);
                for (begun, count) in abandoned {
                    cohort(ring, begun).abandoned += count;
                }
                if started > 0 {
                    cohort(ring, pane).started += started;
                }
            }
        }
    }

    /// Adds up again what a checkpoint leaves out.
    pub fn recount(&mut self) {
        if let Content::Distribution { ring, total, .. } = &mut self.content {
            *total = Bins::default();
            ring.iter().for_each(|(_, bins)| total.add(bins));
        }
    }

    /// Lets go of what lies before the window that ends with `pane`; returns whether anything did, or may have, changed.
    pub fn slide(&mut self, pane: Pane) -> bool {
        let first = Pane(pane.0 - self.panes + 1);
        match &mut self.content {
            Content::Distribution { ring, total, .. } => evict(ring, |(p, _)| *p < first, |(_, bins)| total.subtract(&bins)),
            Content::Rate { ring, n, x } => evict(
                ring,
                |(p, ..)| *p < first,
                |(_, dn, dx)| {
                    *n -= dn;
                    *x -= dx;
                },
            ),
            Content::Count { ring, total } => evict(ring, |(p, _)| *p < first, |(_, count)| *total -= count),
            Content::Values { .. } => false,
            Content::Workflows { ring, within } => {
                let oldest = Pane(first.0 - *within);
                evict(ring, |c| c.pane < oldest, |_| ());
                !ring.is_empty()
            }
        }
    }

    /// Holds something that will change as time passes.
    pub fn is_live(&self) -> bool {
        match &self.content {
            Content::Distribution { ring, .. } => !ring.is_empty(),
            Content::Rate { ring, .. } => !ring.is_empty(),
            Content::Count { ring, .. } => !ring.is_empty(),
            Content::Values { .. } => false,
            Content::Workflows { ring, .. } => !ring.is_empty(),
        }
    }

    /// Values of a distribution in the window.
    pub fn bins(&self) -> Option<&Bins> {
        match &self.content {
            Content::Distribution { total, .. } => Some(total),
            _ => None,
        }
    }

    /// Hits of a rate in the window.
    pub fn share(&self) -> Option<Share> {
        match self.content {
            Content::Rate { n, x, .. } => Some(Share { n, x }),
            _ => None,
        }
    }

    /// Workflows whose limit has passed by the end of `pane` (begun one window before that), and those begun inside the window, of which
    /// only the explicitly abandoned count as such: both as begun and abandoned, each cohort together, so that falling traffic
    /// does not look like abandonment.
    pub fn cohorts(&self, pane: Pane) -> Option<(Share, Share)> {
        let Content::Workflows { ring, within } = &self.content else { return None };
        let matured = (pane.0 - self.panes - within + 1)..=(pane.0 - within);
        let recent = (pane.0 - self.panes + 1)..=pane.0;
        let sum = |span: std::ops::RangeInclusive<i64>| {
            let inside = ring.iter().filter(|c| span.contains(&c.pane.0));
            inside.fold(Share::default(), |s, c| Share { n: s.n + c.started, x: s.x + c.abandoned })
        };
        Some((sum(matured), sum(recent)))
    }

    pub fn count(&self) -> Option<u64> {
        match self.content {
            Content::Count { total, .. } => Some(total),
            _ => None,
        }
    }

    /// Number of values of a mean, since the beginning.
    pub fn values(&self) -> Option<u64> {
        match self.content {
            Content::Values { n } => Some(n),
            _ => None,
        }
    }

    /// Values moved to the nearest bound of the histogram, since the beginning.
    pub fn clamped(&self) -> u64 {
        match self.content {
            Content::Distribution { clamped, .. } => clamped,
            _ => 0,
        }
    }
}

fn cohort(ring: &mut VecDeque<Cohort>, pane: Pane) -> &mut Cohort {
    let at = ring.partition_point(|c| c.pane < pane);
    if ring.get(at).is_none_or(|c| c.pane != pane) {
        ring.insert(at, Cohort { pane, started: 0, abandoned: 0 });
    }
    &mut ring[at]
}

fn evict<T>(ring: &mut VecDeque<T>, gone: impl Fn(&T) -> bool, mut take: impl FnMut(T)) -> bool {
    let mut any = false;
    while ring.front().is_some_and(&gone) {
        ring.pop_front().into_iter().for_each(&mut take);
        any = true;
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::pane::{Abandoned, HIT, Observation, Surplus};
    use crate::engine::plan::{Hit, Source, Unit};

    fn rate() -> Signal {
        Signal::Rate { source: Source { event: "request".into(), filter: Vec::new() }, hit: Hit::Error, unit: Unit::Event }
    }

    /// `n` observations, the first `x` of which are hits.
    fn observations(n: usize, x: usize) -> Vec<Observation> {
        (0..n).map(|i| Observation { cell: 0, age: 0, value: if i < x { HIT } else { 0 }, batch: 0, profile: 0 }).collect()
    }

    #[test]
    fn a_window_holds_exactly_its_panes() {
        let mut w = Window::new(&rate(), 3, 1_000);
        for pane in 0..5 {
            w.add(Pane(pane), Cell { observations: &observations(10, pane as usize), ..Cell::default() });
            w.slide(Pane(pane));
        }
        assert_eq!(w.share(), Some(Share { n: 30, x: 2 + 3 + 4 }));
        assert!(w.slide(Pane(6)));
        assert_eq!(w.share(), Some(Share { n: 10, x: 4 }));
        w.slide(Pane(7));
        assert_eq!((w.share(), w.is_live()), (Some(Share { n: 0, x: 0 }), false));
    }

    #[test]
    fn what_there_was_no_room_for_counts_too() {
        let mut w = Window::new(&rate(), 3, 1_000);
        let surplus = [(Surplus { cell: 0, value: 0, age: 0 }, 70), (Surplus { cell: 0, value: HIT, age: 0 }, 20)];
        w.add(Pane(0), Cell { observations: &observations(10, 4), surplus: &surplus, ..Cell::default() });
        assert_eq!(w.share(), Some(Share { n: 100, x: 24 }));
    }

    /// Adds starts, and workflows that turned out abandoned: the pane in which they began, and how many.
    fn add(w: &mut Window, pane: i64, started: usize, abandoned: &[(i64, usize)]) {
        let of =
            |&(begun, n): &(i64, usize)| std::iter::repeat_n(Abandoned { cell: 0, begun: Pane(begun), age: 0, batch: 0, profile: 0 }, n);
        let abandoned: Vec<Abandoned> = abandoned.iter().flat_map(of).collect();
        w.add(Pane(pane), Cell { observations: &observations(started, 0), abandoned: &abandoned, ..Cell::default() });
    }

    #[test]
    fn workflows_are_judged_by_the_pane_they_began_in() {
        let mut w = Window::new(&Signal::Abandonment { within: 5_000, workflow: None }, 2, 1_000);
        add(&mut w, 0, 8, &[]);
        add(&mut w, 1, 2, &[(0, 1)]);
        assert_eq!(w.cohorts(Pane(1)), Some((Share::default(), Share { n: 10, x: 1 })));
        add(&mut w, 5, 0, &[(0, 3), (1, 2)]);
        w.slide(Pane(5));
        assert_eq!(w.cohorts(Pane(5)), Some((Share { n: 8, x: 4 }, Share::default())), "pane 0 has matured, pane 1 not yet");
        w.slide(Pane(6));
        assert_eq!(w.cohorts(Pane(6)), Some((Share { n: 10, x: 6 }, Share::default())));
        w.slide(Pane(8));
        assert!(!w.is_live());
    }
}
