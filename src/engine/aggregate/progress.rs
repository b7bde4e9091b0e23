//! What an event means for funnels and retention.

use super::feeds::{event_field, passes};
use super::funnels::{Bounds, Place, What};
use super::open::Mark;
use super::{Aggregator, Event, Kind, Millis, Observation, Pane, Signal, Step, Target, Targets, keys, tallies};
use crate::engine::event::Scalar;
use crate::engine::pane::{FIRST_HIT, HIT};
use crate::engine::plan::{Funnel, FunnelStep};
use smallvec::SmallVec;

const DAY: Millis = 86_400_000;

impl Aggregator {
    /// Follows the workflow that the event names, in the funnels of what it counts for.
    pub(super) fn follow(&mut self, event: &Event<'_>, targets: &Targets, unit: Option<keys::Key>) {
        let begun = self.open_pane(event.ts);
        let patience = self.watermark().unwrap_or(event.ts).saturating_add(self.settings.lateness);
        let bounds = Bounds { pane_ms: self.settings.pane, patience, max: self.settings.workflows_max };
        for &Target { experiment, bucket, aside, .. } in targets {
            let feeds = &self.catalog.feeds[experiment as usize];
            if !feeds.follows {
                continue;
            }
            for (index, funnel) in feeds.plan.funnels.iter().enumerate() {
                let place = Place { experiment, funnel: index as u8, bucket };
                for (id, what) in meanings(funnel, event, begun) {
                    // What a unit had begun before it was set aside is followed to its end.
                    if aside && matches!(what, What::Start { .. }) {
                        continue;
                    }
                    let flow = keys::pair(&funnel.workflow, id) ^ unit.unwrap_or(0);
                    let key = tallies::of(flow, feeds.shape.funnels[index]);
                    let strides = &mut self.open.strides;
                    self.funnels.take(key, place, what, event.ts, bounds, |stride, by| *strides.entry(stride).or_default() += by);
                }
            }
        }
    }

    /// Counts the unit as active where this is its first record on a day that is asked for.
    pub(super) fn returns(&mut self, target: Target, event: &Event<'_>, mark: Mark) {
        let Target { experiment, bucket, .. } = target;
        let (feeds, pane_ms) = (&self.catalog.feeds[experiment as usize], self.settings.pane);
        let Some((unit, age)) = mark.member.filter(|_| feeds.returns) else { return };
        let exposed = Pane(self.open_pane(event.ts).0 - i64::from(age)).start(pane_ms);
        let today = (event.ts - exposed).div_euclid(DAY);
        for (_, signal) in &feeds.plan.retention {
            let Signal::Retention { day, source } = &feeds.plan.signals[*signal] else { continue };
            let shows = source.as_ref().is_none_or(|s| s.event == event.kind.name() && passes(s, event));
            let key = tallies::of(unit, feeds.shape.signals[*signal]);
            if shows && today == i64::from(*day) && self.tallies.hit(experiment, key, self.settings.units_max) {
                let cell = feeds.signal_cell(bucket, *signal as u16);
                self.open.see(Observation { cell, age, value: HIT | FIRST_HIT, batch: mark.batch, profile: mark.listed });
            }
        }
    }
}

/// The workflow's id, and what the event tells of it: an event may be several steps.
fn meanings<'e>(funnel: &Funnel, event: &'e Event<'_>, begun: Pane) -> SmallVec<[(&'e str, What); 1]> {
    let of = |step: &FunnelStep| {
        let text = |field| match event_field(event, field) {
            Some(Scalar::Text(text)) => Some(text.as_ref()),
            _ => None,
        };
        let named = step.source.event == event.kind.name() && text(step.workflow).is_none_or(|name| name == funnel.workflow);
        text(step.workflow_id).filter(|_| named && passes(&step.source, event))
    };
    match &event.kind {
        Kind::Workflow { step, workflow, workflow_id } if *workflow == funnel.workflow => {
            let what = match step {
                Step::Started => What::Start { begun, within: funnel.within },
                Step::Completed => What::Completed,
                Step::Abandoned => What::Abandoned,
            };
            SmallVec::from_elem((workflow_id.as_ref(), what), 1)
        }
        _ => funnel.steps.iter().enumerate().filter_map(|(i, step)| Some((of(step)?, What::Step(i as u8)))).collect(),
    }
}
