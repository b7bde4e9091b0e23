//! What people are told: the live view with the checks of `/readyz`, and numbers that change without a message.

use super::Session;
use crate::engine::outcome::Counts;
use crate::engine::state::ExperimentState;
use crate::engine::time::Millis;
use crate::live::{Check, View};
use crate::telemetry::names;
use std::sync::Arc;

/// Event time between the wall clock and what has been judged, beyond the allowed lateness, in ms: data older than that is stale.
const BEHIND: Millis = 60_000;

impl Session {
    /// Numbers that nobody tells as they change.
    pub(super) fn count_kept(&self) {
        let metrics = &self.court.metrics;
        metrics.set(&names::AHEAD, &[], self.court.fleet.waiting_size() as f64);
        for (index, (reason, _)) in self.dropped.values().next().into_iter().flatten().enumerate() {
            let sum: u64 = self.dropped.values().map(|bounds| bounds[index].1).sum();
            metrics.set(&names::DROPPED, &[reason], sum as f64);
        }
        // While the store cannot be read, the last numbers stay; `/readyz` tells of it.
        let (Ok(pending), Ok(disabled)) = (self.court.store.pending(), self.court.store.disabled_endpoints()) else { return };
        for name in &self.court.endpoints {
            let n = pending.iter().find(|(endpoint, _)| endpoint == name).map_or(0, |(_, n)| *n);
            metrics.set(&names::DELIVERIES_PENDING, &[name], n as f64);
            metrics.set(&names::ENDPOINT_DISABLED, &[name], f64::from(u8::from(disabled.contains(name))));
        }
    }

    /// Replaces the live view.
    pub(super) fn publish(&mut self) {
        self.viewed = self.court.clock.steady();
        let mut counts = Counts::default();
        self.partitions.values().for_each(|p| counts.merge(&p.counts));
        let at = self.court.clock.now();
        let mut experiments = self.court.fleet.views();
        experiments.iter_mut().for_each(|state| self.doubt(state, at));
        let partitions = self.partitions.values().cloned().collect();
        let view = View { at, experiments, counts, partitions, checks: self.checks(), unavailable: None };
        self.tell_backlog(at);
        if view.checks.iter().all(|check| check.ok) {
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        }
        let view = Arc::new(view);
        self.court.metrics.view(Arc::clone(&view));
        self.court.live.set(view);
    }

    /// Takes back what a state says of now where it is of long ago: while there is more than can be judged, or nothing comes.
    pub(super) fn doubt(&self, state: &mut ExperimentState, now: Millis) {
        if let Some(behind) = state.judged_to.map(|to| now - to).filter(|behind| *behind > BEHIND + self.court.lateness) {
            state.outdate(format!("judged only up to {} s ago: what was known is stale", behind / 1_000));
        }
    }

    /// Records that are still to be read.
    fn lag(&self) -> i64 {
        self.partitions.values().flat_map(|p| p.lag.values()).sum()
    }

    /// Logs when judging falls behind, and when it is abreast again.
    fn tell_backlog(&mut self, now: Millis) {
        let seconds = self.court.fleet.judged_to().map_or(0, |to| (now - to) / 1_000);
        let records = self.lag();
        let behind = seconds * 1_000 > BEHIND + self.court.lateness;
        match (self.behind, behind) {
            (false, true) => tracing::warn!(seconds, records, "judging is behind: verdicts are late, and no gate says go"),
            (true, false) => tracing::info!("judging is abreast of the records again"),
            _ => {}
        }
        self.behind = behind;
    }

    fn checks(&self) -> Vec<Check> {
        let kafka = match self.assigned.len() {
            0 => Check {
                name: "kafka",
                ok: false,
                detail: "no partition assigned yet: is the broker reachable, do the topics exist?".into(),
            },
            n => Check { name: "kafka", ok: true, detail: format!("{n} partitions assigned") },
        };
        let store = match &self.store_error {
            Some(error) => Check { name: "store", ok: false, detail: error.clone() },
            None => Check { name: "store", ok: true, detail: "decisions can be written".into() },
        };
        let schemas = self.ingest.schemas().map(|schemas| match schemas.trouble() {
            Some(detail) => Check { name: "schemas", ok: false, detail },
            None => Check { name: "schemas", ok: true, detail: "the registry answers, or has not been asked".into() },
        });
        // Late verdicts are better than none: being behind is told, and does not make the daemon unready.
        let detail = match (self.lag(), self.court.fleet.judged_to()) {
            (0, _) | (_, None) => "every record has been read".to_owned(),
            (records, Some(to)) => format!("{records} records behind, judged up to {} s ago", (self.court.clock.now() - to) / 1_000),
        };
        let lag = Check { name: "lag", ok: true, detail };
        let rules = Check { name: "rules", ok: true, detail: crate::app::reload::told(&self.court.live.files()) };
        [kafka, store, lag, rules].into_iter().chain(schemas).collect()
    }
}
