//! Exposures, and what records say of the data itself: who counts, who must not take part, what is late or missing.

use super::units::Exposed;
use super::{Aggregator, Target, unit};
use crate::engine::aggregate::keys::Key;
use crate::engine::event::{Event, Kind};
use crate::engine::pane::{Cause, Emission, Urgent, panes_between, traffic};
use crate::engine::time::Pane;
use smallvec::SmallVec;

impl Aggregator {
    /// What an exposure is to the traffic of its bucket, the age of its unit's cohort if it is the first, and whether its unit does not
    /// count (any more).
    pub(super) fn expose(&mut self, target: Target, unit: Option<Key>, event: &Event<'_>) -> (u16, u32, bool) {
        let Target { experiment, bucket, .. } = target;
        let (pane_ms, open_pane) = (self.settings.pane, self.open_pane(event.ts));
        let feeds = &self.catalog.feeds[experiment as usize];
        let eligible = feeds.plan.eligibility.judge(event);
        let exposed = unit.map(|unit| self.units.expose(unit, experiment, bucket, event.ts, pane_ms, self.settings.units_max));
        let set_aside = &mut self.set_aside[experiment as usize];
        *set_aside |= exposed == Some(Exposed::Mixed) || eligible.is_ineligible();
        let seen = unit.filter(|_| *set_aside).and_then(|unit| self.units.in_experiment(unit, experiment));
        self.units_dropped += u64::from(exposed == Some(Exposed::Full));
        if eligible.is_ineligible() {
            let quality = self.open.quality(experiment);
            if feeds.none_ineligible && quality.buckets.iter().all(|b| b.ineligible == 0) {
                let (bucket, label, cause) = (u32::from(bucket), eligible.to_string(), Cause::Ineligible);
                self.out.push(Emission::Urgent(Urgent { experiment, bucket, cause, at: event.ts, pane: open_pane, label }));
            }
            let new = unit.filter(|_| seen.is_some_and(|seen| !seen.ineligible));
            let quality = quality.bucket(usize::from(bucket));
            quality.ineligible += 1;
            quality.ineligible_units += u64::from(new.is_some());
            new.into_iter().for_each(|unit| self.units.disqualify(unit, experiment));
            return (traffic::EXPOSURE, 0, true);
        }
        if exposed == Some(Exposed::First) {
            let age = panes_between(Pane::of(event.ts, pane_ms), open_pane);
            feeds.enrol(&mut self.open, (experiment, bucket), event, age, eligible);
            return (traffic::FIRST_EXPOSURE, age, false);
        }
        match seen.filter(|seen| exposed == Some(Exposed::Mixed) && !seen.ineligible) {
            Some(seen) => {
                let age = panes_between(seen.cohort(pane_ms), open_pane);
                self.open.quality(experiment).bucket(usize::from(bucket)).mixed.push(age);
                (traffic::MIXED_EXPOSURE, 0, true)
            }
            None => (traffic::EXPOSURE, 0, seen.is_some_and(|seen| seen.is_aside())),
        }
    }

    /// Counts the fields that a record lacks, and the first event of its unit.
    pub(super) fn look(&mut self, target: Target, unit: Option<Key>, event: &Event<'_>) {
        let Target { experiment, bucket, .. } = target;
        let feeds = &self.catalog.feeds[experiment as usize];
        if !feeds.looks || matches!(event.kind, Kind::Phase { .. } | Kind::Annotation { .. }) {
            return;
        }
        let open_pane = self.open_pane(event.ts);
        let unit = unit.filter(|_| event.kind != Kind::Exposure);
        let heard = unit.and_then(|unit| self.units.hear(unit, experiment, bucket));
        let heard = heard.map(|seen| panes_between(seen.cohort(self.settings.pane), open_pane));
        feeds.look(self.open.quality(experiment).bucket(usize::from(bucket)), event, heard);
    }

    /// A record that comes too late is a figure of the experiments that it would have counted for.
    pub(super) fn note_late(&mut self, event: &Event<'_>) {
        let named = event.experiment.as_deref().map(|name| self.catalog.names.get(name).copied());
        let experiments: SmallVec<[u32; 2]> = match named {
            Some(named) => named.into_iter().collect(),
            None => unit(event).into_iter().flat_map(|unit| self.units.of(unit, event.ts)).map(|seen| seen.experiment).collect(),
        };
        for experiment in experiments {
            if self.active(experiment, event.ts) {
                self.open.quality(experiment).late += 1;
            }
        }
    }
}
