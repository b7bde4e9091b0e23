//! How each experiment's figures went: the values behind charts. A point each second at first, fewer as they get older; those from before
//! the daemon's start come from the store, with longer spans between them.

use super::View;
use crate::engine::decision::Verdict;
use crate::engine::state::{ExperimentState, GuardrailState};
use crate::engine::time::Millis;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Points of one experiment at most.
const POINTS: usize = 600;
/// Points of all experiments together at most; each has an equal part, though never fewer than [`LEAST`].
const ALL_POINTS: usize = 100_000;
const LEAST: usize = 8;

/// Points of one experiment at most, where there are so many experiments.
pub fn most(experiments: usize) -> usize {
    (ALL_POINTS / experiments.max(1)).clamp(LEAST, POINTS)
}

/// What has been seen, by experiment.
#[derive(Default)]
pub struct History(BTreeMap<String, Track>);

/// One experiment. When it is full every second of its older points goes: the more recent, the finer.
#[derive(Default)]
pub struct Track {
    /// Guardrails by name and bucket, and buckets, in the order of the points' values; when they change, the track begins anew.
    guardrails: Vec<(String, String)>,
    buckets: Vec<String>,
    points: Vec<Point>,
    /// By guardrail, of a close look since the last point.
    looked: Option<Vec<Option<[f64; 2]>>>,
}

/// One experiment at one moment.
struct Point {
    /// Event time up to which it had been judged, ms since the epoch.
    at: Millis,
    guardrails: Box<[Sample]>,
    /// Exposed units, and exposures per second.
    buckets: Box<[(u64, f64)]>,
}

/// A guardrail in one bucket, at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub verdict: Verdict,
    pub baseline_value: Option<f64>,
    pub bucket_value: Option<f64>,
    /// There only where somebody looked closely since the point before.
    pub interval: Option<[f64; 2]>,
    pub n: u64,
    pub log_e_value: Option<f64>,
    pub log_threshold: Option<f64>,
}

/// A point as it is stored: it says itself what it is of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    pub revision: u32,
    pub guardrails: Vec<KeptSample>,
    pub buckets: Vec<KeptBucket>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptSample {
    pub guardrail: String,
    pub bucket: String,
    #[serde(flatten)]
    pub sample: Sample,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptBucket {
    pub bucket: String,
    pub exposed_units: u64,
    /// Exposures per second.
    pub exposure_rate: f64,
}

impl From<&ExperimentState> for Kept {
    /// Of a close look: with its intervals.
    fn from(state: &ExperimentState) -> Kept {
        let guardrail = |g: &GuardrailState| KeptSample {
            guardrail: g.guardrail.clone(),
            bucket: g.bucket.clone(),
            sample: Sample { interval: g.interval, ..Sample::from(g) },
        };
        let bucket = |b: &crate::engine::state::BucketState| KeptBucket {
            bucket: b.bucket.clone(),
            exposed_units: b.exposed_units,
            exposure_rate: b.exposure_rate,
        };
        Kept {
            revision: state.revision,
            guardrails: state.guardrails.iter().map(guardrail).collect(),
            buckets: state.buckets.iter().map(bucket).collect(),
        }
    }
}

impl From<&GuardrailState> for Sample {
    fn from(g: &GuardrailState) -> Sample {
        Sample {
            verdict: g.verdict,
            baseline_value: g.baseline_value,
            bucket_value: g.bucket_value,
            interval: None,
            n: g.n,
            log_e_value: g.log_e_value,
            log_threshold: g.log_threshold,
        }
    }
}

impl History {
    /// Adds a point for each experiment of the view that has been judged since the last one, and forgets experiments that it lacks.
    pub fn sample(&mut self, view: &View) {
        if view.experiments.is_empty() {
            return; // the daemon is starting
        }
        self.0.retain(|name, _| view.experiment(name).is_some());
        let most = most(view.experiments.len());
        for state in &view.experiments {
            self.0.entry(state.experiment.clone()).or_default().add(state, most);
        }
    }

    /// Takes the intervals of a close look into the next point.
    pub fn look(&mut self, state: &ExperimentState) {
        let track = self.0.entry(state.experiment.clone()).or_default();
        track.is_of(state);
        track.looked = Some(state.guardrails.iter().map(|g| g.interval).collect());
    }

    /// Takes up what was stored, oldest first: as much of its end as is of the guardrails and buckets that it ends with.
    pub fn restore(&mut self, experiment: &str, points: Vec<(Millis, Kept)>) {
        let mut track = Track::default();
        for (at, kept) in points {
            let guardrails: Vec<_> = kept.guardrails.iter().map(|g| (g.guardrail.clone(), g.bucket.clone())).collect();
            let buckets: Vec<_> = kept.buckets.iter().map(|b| b.bucket.clone()).collect();
            if (&track.guardrails, &track.buckets) != (&guardrails, &buckets) {
                track = Track { guardrails, buckets, ..Track::default() };
            }
            track.points.push(Point {
                at,
                guardrails: kept.guardrails.into_iter().map(|g| g.sample).collect(),
                buckets: kept.buckets.iter().map(|b| (b.exposed_units, b.exposure_rate)).collect(),
            });
        }
        self.0.insert(experiment.to_owned(), track);
    }

    /// An experiment's points in columns, as charts take them; of one that has not been seen, none.
    pub fn shown(&self, experiment: &str) -> Value {
        self.0.get(experiment).unwrap_or(&Track::default()).shown(experiment)
    }
}

impl Track {
    /// Begins anew if the state is that of other guardrails or buckets.
    fn is_of(&mut self, state: &ExperimentState) {
        let same = self.guardrails.iter().map(|(g, b)| (g, b)).eq(state.guardrails.iter().map(|g| (&g.guardrail, &g.bucket)))
            && self.buckets.iter().eq(state.buckets.iter().map(|b| &b.bucket));
        if !same {
            *self = Track {
                guardrails: state.guardrails.iter().map(|g| (g.guardrail.clone(), g.bucket.clone())).collect(),
                buckets: state.buckets.iter().map(|b| b.bucket.clone()).collect(),
                ..Track::default()
            };
        }
    }

    fn add(&mut self, state: &ExperimentState, most: usize) {
        self.is_of(state);
        let Some(at) = state.judged_to.filter(|at| self.points.last().is_none_or(|last| last.at < *at)) else { return };
        if self.points.len() >= most {
            // Of the older three quarters every second one goes.
            let (old, mut index) = (self.points.len() * 3 / 4, 0);
            self.points.retain(|_| {
                index += 1;
                index > old || index % 2 == 1
            });
        }
        let looked = self.looked.take().unwrap_or_default();
        let sample = |(i, g): (usize, &GuardrailState)| Sample { interval: looked.get(i).copied().flatten(), ..Sample::from(g) };
        self.points.push(Point {
            at,
            guardrails: state.guardrails.iter().enumerate().map(sample).collect(),
            buckets: state.buckets.iter().map(|b| (b.exposed_units, b.exposure_rate)).collect(),
        });
    }

    /// In columns, as charts take them.
    fn shown(&self, experiment: &str) -> Value {
        let of = |i: usize, get: &dyn Fn(&Sample) -> Value| -> Vec<Value> { self.points.iter().map(|p| get(&p.guardrails[i])).collect() };
        let guardrail = |(i, (guardrail, bucket)): (usize, &(String, String))| {
            json!({
                "guardrail": guardrail,
                "bucket": bucket,
                "verdict": of(i, &|s| json!(s.verdict)),
                "baseline_value": of(i, &|s| json!(s.baseline_value)),
                "bucket_value": of(i, &|s| json!(s.bucket_value)),
                "low": of(i, &|s| json!(s.interval.map(|ends| ends[0]))),
                "high": of(i, &|s| json!(s.interval.map(|ends| ends[1]))),
                "n": of(i, &|s| json!(s.n)),
                "log_e_value": of(i, &|s| json!(s.log_e_value)),
                "log_threshold": of(i, &|s| json!(s.log_threshold)),
            })
        };
        let bucket = |(i, bucket): (usize, &String)| {
            json!({
                "bucket": bucket,
                "exposed_units": self.points.iter().map(|p| p.buckets[i].0).collect::<Vec<_>>(),
                "exposure_rate": self.points.iter().map(|p| p.buckets[i].1).collect::<Vec<_>>(),
            })
        };
        json!({
            "experiment": experiment,
            "at": self.points.iter().map(|p| p.at).collect::<Vec<_>>(),
            "guardrails": self.guardrails.iter().enumerate().map(guardrail).collect::<Vec<_>>(),
            "buckets": self.buckets.iter().enumerate().map(bucket).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fleet::Fleet;
    use crate::engine::plan::{Catalog, FieldTable};
    use crate::rules::parse_str;

    fn view(n: usize) -> View {
        let rule = |i: usize| {
            let text = format!(
                "guardrail: v1\noverview: {{experiment: e{i:04}, owner: o}}\nbuckets: {{a: {{baseline: true}}, b: {{}}}}\n\
                 guardrails: [{{metric: error_rate, limit: 5%}}]\nactions: {{mode: observe, notify: {{slack: s}}}}\n"
            );
            parse_str("r.yaml", &text, &mut FieldTable::default(), None).rule.unwrap().plan
        };
        let catalog = Catalog::new((0..n).map(rule).collect(), FieldTable::default());
        View { experiments: Fleet::new(&catalog, 1_000).views(), ..View::default() }
    }

    /// The same view a second later.
    fn at(view: &mut View, second: i64) {
        view.experiments.iter_mut().for_each(|state| state.judged_to = Some(second * 1_000));
    }

    #[test]
    fn what_is_recent_is_kept_finely_and_what_is_old_is_not_forgotten() {
        let (mut history, mut view) = (History::default(), view(1));
        for second in 0..20_000 {
            at(&mut view, second);
            history.sample(&view);
            history.sample(&view);
        }
        let points = &history.0["e0000"].points;
        assert!(points.len() <= POINTS && points.len() > POINTS / 2, "{}", points.len());
        assert_eq!(points[0].at, 0, "the beginning stays");
        assert!(points.windows(2).all(|w| w[0].at < w[1].at));
        assert!(points.iter().rev().take(POINTS / 8).map(|p| p.at).eq((20_000 - POINTS as i64 / 8..20_000).rev().map(|s| s * 1_000)));
    }

    #[test]
    fn intervals_are_those_of_looks_since_the_point_before() {
        let (mut history, mut view) = (History::default(), view(1));
        let mut close = view.experiments[0].clone();
        close.guardrails[0].interval = Some([0.01, 0.02]);
        history.look(&close);
        for second in 0..2 {
            at(&mut view, second);
            history.sample(&view);
        }
        let shown = history.shown("e0000");
        assert_eq!(shown["guardrails"][0]["low"], json!([0.01, null]));
        assert_eq!(shown["at"], json!([0, 1_000]));
    }

    #[test]
    fn many_experiments_share_the_bound_and_those_that_are_gone_are_forgotten() {
        let (mut history, mut many) = (History::default(), view(1_000));
        for second in 0..150 {
            at(&mut many, second);
            history.sample(&many);
        }
        assert!(history.0.values().map(|track| track.points.len()).sum::<usize>() <= ALL_POINTS);
        history.sample(&view(2));
        assert_eq!(history.0.len(), 2);
    }

    #[test]
    fn what_was_stored_goes_on_where_the_guardrails_are_the_same() {
        let (mut history, mut view) = (History::default(), view(1));
        at(&mut view, 3);
        let kept = Kept::from(&view.experiments[0]);
        let other = Kept { buckets: Vec::new(), ..kept.clone() };
        let text = serde_json::to_string(&kept).unwrap();
        assert_eq!(serde_json::from_str::<Kept>(&text).unwrap(), kept);
        history.restore("e0000", vec![(1_000, other), (2_000, kept.clone()), (2_500, kept)]);
        history.sample(&View::default());
        history.sample(&view);
        assert_eq!(history.shown("e0000")["at"], json!([2_000, 2_500, 3_000]));
    }
}
