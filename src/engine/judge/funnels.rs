//! What workflows have come to: the figures of funnels, which decide nothing.
//!
//! Workflows are counted by the pane in which they began. Those whose limit has passed are **matured**: rates of them compare buckets
//! fairly, as a workflow that has just begun has had no time to fail.

use crate::engine::pane::{Progress, Stride};
use crate::engine::plan::{Funnel, Plan};
use crate::engine::state::{FunnelBucket, FunnelCounts, FunnelState};
use crate::engine::time::{Millis, Pane};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Groups of panes that wait at a time.
const GROUPS: i64 = 256;

/// See the module; by funnel of the plan.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Funnels(Vec<Counted>);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Counted {
    /// Limit, in panes.
    within: i64,
    /// Panes in a group.
    group: i64,
    /// Last group whose workflows have matured.
    matured_to: i64,
    /// By bucket: workflows whose limit has passed.
    matured: Vec<FunnelCounts>,
    /// By group of the pane in which they began, then by bucket: the others.
    young: BTreeMap<i64, Vec<FunnelCounts>>,
}

impl Funnels {
    /// With the counts of the funnels that were there before, by their numbers then.
    pub fn carried(self, old: &Funnels, before: &[Option<usize>]) -> Funnels {
        let of = |(fresh, before): (Counted, &Option<usize>)| before.and_then(|b| old.0.get(b).cloned()).unwrap_or(fresh);
        Funnels(self.0.into_iter().zip(before).map(of).collect())
    }

    pub fn new(plan: &Plan, pane_ms: Millis) -> Funnels {
        let counted = |funnel: &Funnel| {
            let within = (funnel.within + pane_ms - 1).div_euclid(pane_ms);
            let matured = vec![FunnelCounts::none(funnel.steps.len()); plan.buckets.len()];
            Counted { within, group: within / GROUPS + 1, matured_to: i64::MIN, matured, young: BTreeMap::new() }
        };
        Funnels(plan.funnels.iter().map(counted).collect())
    }

    /// Adds what a pane says.
    pub fn add(&mut self, pane: Pane, strides: &[(Stride, i64)]) {
        for (stride, by) in strides {
            let Some(funnel) = self.0.get_mut(usize::from(stride.funnel)) else { continue };
            if let Some(counts) = funnel.at(stride.begun, usize::from(stride.bucket)) {
                counts.add(stride.progress, *by);
            }
        }
        self.0.iter_mut().for_each(|funnel| funnel.mature(pane));
    }

    pub fn view(&self, plan: &Plan, pane: Pane) -> Vec<FunnelState> {
        let state = |(funnel, counted): (&Funnel, &Counted)| {
            let grown = counted.grown(pane);
            let bucket = |b: usize| {
                let (mut all, mut matured) = (counted.matured[b].clone(), counted.matured[b].clone());
                for (group, young) in &counted.young {
                    all.merge(&young[b]);
                    if *group <= grown {
                        matured.merge(&young[b]);
                    }
                }
                FunnelBucket { bucket: plan.buckets[b].name.clone(), all, matured }
            };
            FunnelState {
                funnel: funnel.name.clone(),
                workflow: funnel.workflow.clone(),
                within_ms: funnel.within,
                steps: funnel.steps.iter().map(|s| s.name.clone()).collect(),
                buckets: (0..plan.buckets.len()).map(bucket).collect(),
            }
        };
        plan.funnels.iter().zip(&self.0).map(state).collect()
    }
}

impl Counted {
    /// Counts of the workflows that began in `pane`.
    fn at(&mut self, pane: Pane, bucket: usize) -> Option<&mut FunnelCounts> {
        let group = pane.0.div_euclid(self.group);
        if group <= self.matured_to {
            return self.matured.get_mut(bucket);
        }
        let Counted { matured, young, .. } = self;
        let none = || vec![FunnelCounts::none(matured[0].reached.len()); matured.len()];
        young.entry(group).or_insert_with(none).get_mut(bucket)
    }

    /// The last group whose workflows' limits have all passed by the end of `pane`.
    fn grown(&self, pane: Pane) -> i64 {
        (pane.0 + 1 - self.within).div_euclid(self.group) - 1
    }

    fn mature(&mut self, pane: Pane) {
        self.matured_to = self.matured_to.max(self.grown(pane));
        while let Some(entry) = self.young.first_entry().filter(|e| *e.key() <= self.matured_to) {
            entry.remove().iter().zip(&mut self.matured).for_each(|(young, into)| into.merge(young));
        }
    }
}

impl FunnelCounts {
    fn none(steps: usize) -> FunnelCounts {
        FunnelCounts { reached: vec![0; steps], ..FunnelCounts::default() }
    }

    fn add(&mut self, progress: Progress, by: i64) {
        let counted = match progress {
            Progress::Started => Some(&mut self.started),
            Progress::Restarted => Some(&mut self.restarted),
            Progress::Step(step) => self.reached.get_mut(usize::from(step)),
            Progress::Completed => Some(&mut self.completed),
            Progress::CompletedLate => Some(&mut self.completed_late),
            Progress::Abandoned => Some(&mut self.abandoned),
            Progress::TimedOut => Some(&mut self.timed_out),
        };
        if let Some(counted) = counted {
            *counted += by;
        }
        self.open = self.started - self.completed - self.completed_late - self.abandoned - self.timed_out;
    }

    fn merge(&mut self, more: &FunnelCounts) {
        let ends = [(&mut self.completed, more.completed), (&mut self.completed_late, more.completed_late)];
        let others = [(&mut self.abandoned, more.abandoned), (&mut self.timed_out, more.timed_out)];
        let begun = [(&mut self.started, more.started), (&mut self.restarted, more.restarted), (&mut self.open, more.open)];
        ends.into_iter().chain(others).chain(begun).for_each(|(into, n)| *into += n);
        self.reached.iter_mut().zip(&more.reached).for_each(|(into, n)| *into += n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workflows_mature_in_groups_when_all_their_limits_have_passed() {
        let stride = |begun: i64, progress| (Stride { experiment: 0, funnel: 0, bucket: 0, begun: Pane(begun), progress }, 1);
        // An hour of panes: groups of 15.
        let mut counted =
            Counted { within: 3_600, group: 15, matured_to: i64::MIN, matured: vec![FunnelCounts::none(0)], young: BTreeMap::new() };
        let mut add = |pane: i64, stride: (Stride, i64)| {
            counted.at(stride.0.begun, 0).unwrap().add(stride.0.progress, 1);
            counted.mature(Pane(pane));
            (counted.matured[0].started, counted.matured[0].completed, counted.matured[0].open)
        };
        assert_eq!(add(0, stride(0, Progress::Started)), (0, 0, 0));
        assert_eq!(add(14, stride(14, Progress::Started)), (0, 0, 0));
        assert_eq!(add(3_613, stride(0, Progress::Completed)), (0, 0, 0));
        assert_eq!(add(3_614, stride(15, Progress::Started)), (2, 1, 1));
        assert_eq!(add(3_620, stride(14, Progress::CompletedLate)), (2, 1, 0), "what is late joins its own");
    }
}
