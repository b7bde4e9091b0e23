//! When the units of an experiment leave.

use super::Aggregator;

impl Aggregator {
    /// No record of the experiment can be counted any more: those of before its end would be late.
    pub(super) fn has_ended(&self, experiment: u32) -> bool {
        let Some(now) = self.time else { return false };
        let horizon = now.open.start(self.settings.pane).saturating_sub(self.settings.lateness);
        self.catalog.feeds[experiment as usize].plan.ends.is_some_and(|ends| ends <= horizon)
    }

    /// The units of experiments that have ended leave.
    pub(super) fn forget_ended(&mut self) {
        let ended: Vec<bool> = match (self.next_end, self.watermark()) {
            (Some(end), Some(watermark)) if end <= watermark => (0..self.catalog.feeds.len()).map(|e| self.has_ended(e as u32)).collect(),
            _ => return,
        };
        if !ended.contains(&true) {
            return;
        }
        self.units.forget(|experiment| ended[experiment as usize]);
        (0..).zip(&ended).filter(|(_, ended)| **ended).for_each(|(experiment, _)| self.tallies.forget(experiment));
        let going_on = self.catalog.feeds.iter().zip(&ended).filter(|(_, ended)| !**ended);
        self.next_end = going_on.filter_map(|(feeds, _)| feeds.plan.ends).min();
    }
}
