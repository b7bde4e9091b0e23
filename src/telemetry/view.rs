//! What a view of the daemon tells, as metrics.

use super::metrics::Metrics;
use super::names;
use crate::engine::decision::Verdict;
use crate::engine::outcome::{Counts, Reject};
use crate::engine::state::ExperimentState;
use crate::engine::time::Millis;
use crate::live::View;
use std::collections::BTreeMap;

/// Values of labels, and the number.
type Row = (Vec<String>, f64);

impl Metrics {
    /// Takes over everything that a view tells.
    pub(super) fn tell(&self, view: &View) {
        self.counts(&view.counts);
        let watermarks = || view.partitions.iter().filter_map(|p| Some((p.partition, p.watermark?)));
        self.replace(&names::WATERMARK, watermarks().map(|(partition, at)| (vec![partition.to_string()], seconds(at))));
        let [ahead, behind] = [watermarks().map(|(_, at)| at).max(), watermarks().map(|(_, at)| at).min()];
        self.set(&names::SKEW, &[], seconds(ahead.zip(behind).map_or(0, |(ahead, behind)| ahead - behind)));
        self.data(view);
        self.experiments(&view.experiments);
        self.guardrails(&view.experiments);
        let judged = view.experiments.iter().filter_map(|e| e.judged_to).max();
        self.set(&names::JUDGED_TO, &[], seconds(judged.unwrap_or(0)));
        for verdict in Verdict::ALL {
            let n = view.experiments.iter().filter(|e| e.verdict == verdict).count();
            self.set(&names::EXPERIMENTS, &[verdict.name()], n as f64);
        }
        let ready = !view.checks.is_empty() && view.checks.iter().all(|check| check.ok);
        self.set(&names::READY, &[], f64::from(u8::from(ready)));
        self.set(&names::JUDGE_HEARTBEAT, &[], seconds(view.at));
    }

    /// What is wrong with the data of each experiment, and which checks say so.
    fn data(&self, view: &View) {
        let flaws = view.experiments.iter().flat_map(|e| {
            let wrong = e.data.flaws().into_iter().filter(|(_, n)| *n > 0);
            wrong.map(|(flaw, n)| row([&e.experiment, flaw], n as f64))
        });
        self.replace(&names::FLAWS, flaws);
        let checks = view.experiments.iter().flat_map(|e| &e.quality);
        let mut failing: BTreeMap<&str, f64> = BTreeMap::new();
        for check in checks {
            *failing.entry(&check.check).or_default() += f64::from(u8::from(check.verdict == Verdict::Breach));
        }
        self.replace(&names::CHECKS_FAILING, failing.into_iter().map(|(check, n)| row([check], n)));
    }

    /// How each experiment stands, for alerts of its owners and for charts.
    fn experiments(&self, experiments: &[ExperimentState]) {
        let each = || experiments.iter();
        self.replace(&names::EXPERIMENT_VERDICT, each().map(|e| row([&e.experiment, e.verdict.name()], 1.0)));
        self.replace(&names::EXPERIMENT_GO, each().map(|e| row([&e.experiment], f64::from(u8::from(e.go)))));
        self.replace(&names::EXPERIMENT_HOLDS, each().flat_map(|e| e.holds.iter().map(|hold| row([&e.experiment, hold.by.as_str()], 1.0))));
        let mut stopped: BTreeMap<[&str; 3], f64> = BTreeMap::new();
        for e in each() {
            for stop in e.buckets.iter().filter_map(|bucket| bucket.stopped.as_ref()) {
                *stopped.entry([&e.experiment, stop.action.name(), &stop.confirmation]).or_default() += 1.0;
            }
        }
        self.replace(&names::EXPERIMENT_STOPPED, stopped.into_iter().map(|(labels, n)| row(labels, n)));
        let buckets = each().flat_map(|e| e.buckets.iter().map(|bucket| (&e.experiment, bucket)));
        self.replace(&names::EXPERIMENT_UNITS, buckets.map(|(name, b)| row([name, b.bucket.as_str()], b.exposed_units as f64)));
        let last = each().filter_map(|e| Some(row([&e.experiment], seconds(e.last_record?))));
        self.replace(&names::EXPERIMENT_LAST, last);
    }

    /// Values of guarded metrics, and how near each guardrail is to acting.
    fn guardrails(&self, experiments: &[ExperimentState]) {
        let each = || experiments.iter().flat_map(|e| e.guardrails.iter().map(move |g| (e, g)));
        let values = each().flat_map(|(e, g)| {
            let baseline = e.buckets.iter().find(|bucket| bucket.baseline).map(|bucket| (bucket.bucket.as_str(), g.baseline_value));
            let values = [baseline, Some((g.bucket.as_str(), g.bucket_value))].into_iter().flatten();
            values.filter_map(|(bucket, value)| Some(row([&e.experiment, g.guardrail.as_str(), bucket], value?)))
        });
        self.replace(&names::GUARDRAIL_VALUE, values);
        let evidence = each().filter_map(|(e, g)| {
            let share = g.log_e_value? / g.log_threshold?;
            share.is_finite().then(|| row([&e.experiment, g.guardrail.as_str(), &g.bucket], share))
        });
        self.replace(&names::GUARDRAIL_EVIDENCE, evidence);
    }

    fn counts(&self, counts: &Counts) {
        let plain = [
            ("accepted", counts.accepted),
            ("late", counts.late),
            ("duplicate", counts.duplicate),
            ("unattributed", counts.unattributed),
            ("unknown_experiment", counts.unknown_experiment),
            ("inactive", counts.inactive),
            ("unmapped", counts.unmapped),
        ];
        for (outcome, n) in plain {
            self.set(&names::RECORDS, &[outcome, ""], n as f64);
        }
        self.set(&names::WAITING, &[], counts.waiting as f64);
        for reason in Reject::ALL {
            self.set(&names::RECORDS, &["rejected", reason.name()], counts.rejected.get(reason) as f64);
        }
    }
}

fn row<const N: usize>(labels: [&str; N], n: f64) -> Row {
    (labels.map(str::to_owned).to_vec(), n)
}

fn seconds(millis: Millis) -> f64 {
    millis as f64 / 1_000.0
}
