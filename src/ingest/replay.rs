//! Partitions in the time of a recording: what a daemon that read the records as they came would have handed on.
//!
//! Kafka's time of the records stands for the clock. It tells records of the future, and moves quiet partitions on once a pane, by the
//! rule that a worker follows with the wall clock. So everything that comes out follows from the records and their order alone.

use super::kafka::FromIngest;
use super::mapped::Reader;
use crate::engine::aggregate::Aggregator;
use crate::engine::kept::{self, Change, Changes, Kept};
use crate::engine::outcome::Counts;
use crate::engine::pane::Emission;
use crate::engine::plan::{Catalog, Settings};
use crate::engine::time::{Millis, Pane};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A schema is waited for this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Parts of a snapshot: one for each partition's aggregator, and one for the rest.
const PARTITION: &str = "partition/";
const TIMES: &str = "times";

/// See the module. What it hands on is what a worker does: [`FromIngest::Emission`] and [`FromIngest::Idle`].
pub struct Replay {
    parts: BTreeMap<i32, Part>,
    settings: Settings,
    max_future: Millis,
    /// Kafka's time: the largest timestamp so far.
    now: Option<Millis>,
}

struct Part {
    aggregator: Aggregator,
    times: Times,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Times {
    /// Kafka's time of the last record, or of the beginning; and the partition's time then.
    quiet_since: Millis,
    time: Option<Millis>,
    /// Reported as idle, and no pane since.
    idle: bool,
}

/// What a snapshot keeps beside the aggregators.
#[derive(Serialize, Deserialize)]
struct AllTimes {
    now: Option<Millis>,
    parts: BTreeMap<i32, Times>,
}

/// What a replay came to.
#[derive(Debug, Default)]
pub struct Replayed {
    pub counts: Counts,
    /// Smallest and largest event time accepted.
    pub span: Option<(Millis, Millis)>,
    /// What a bound made the partitions forget: name of the bound and how often, where it did.
    pub dropped: BTreeMap<&'static str, u64>,
}

impl Replay {
    /// `max_future`: how far a record's event time may be ahead of Kafka's time, ms.
    pub fn new(partitions: impl IntoIterator<Item = i32>, catalog: &Arc<Catalog>, settings: &Settings, max_future: Millis) -> Replay {
        let part = |partition| {
            let aggregator = Aggregator::new(partition, Arc::clone(catalog), settings.clone());
            (partition, Part { aggregator, times: Times { quiet_since: Millis::MAX, time: None, idle: false } })
        };
        Replay { parts: partitions.into_iter().map(part).collect(), settings: settings.clone(), max_future, now: None }
    }

    /// What has changed since the last call, at first everything.
    ///
    /// # Errors
    /// It cannot be written down: a fault of the program.
    pub fn snapshot(&mut self) -> Result<Changes, String> {
        let times = AllTimes { now: self.now, parts: self.parts.iter().map(|(partition, part)| (*partition, part.times)).collect() };
        let mut changes = vec![(TIMES.to_owned(), Change::Set(vec![kept::encode(&times)?]))];
        for (partition, part) in &mut self.parts {
            changes.extend(kept::prefixed(&format!("{PARTITION}{partition}/"), part.aggregator.snapshot()?));
        }
        Ok(changes)
    }

    /// Goes on from what snapshots have left.
    ///
    /// # Errors
    /// It lacks something, or cannot be read.
    pub fn restore(catalog: &Arc<Catalog>, settings: &Settings, max_future: Millis, kept: &mut Kept) -> Result<Replay, String> {
        let AllTimes { now, parts } = kept.read(TIMES)?.ok_or_else(|| format!("the state lacks `{TIMES}`"))?;
        let mut part = |(partition, times)| {
            let own = kept.split_off(&format!("{PARTITION}{partition}/"));
            let aggregator = Aggregator::restore(partition, Arc::clone(catalog), settings.clone(), &own)?;
            Ok::<_, String>((partition, Part { aggregator, times }))
        };
        let parts = parts.into_iter().map(&mut part).collect::<Result<_, _>>()?;
        Ok(Replay { parts, settings: settings.clone(), max_future, now })
    }

    /// Each partition, and whether it is known to hold nothing.
    pub fn partitions(&self) -> impl Iterator<Item = (i32, bool)> + '_ {
        self.parts.iter().map(|(partition, part)| (*partition, part.times.idle))
    }

    /// Books the next record of a topic and partition. `at` is Kafka's time of it; one without is taken for the largest so far.
    ///
    /// # Errors
    /// Why the record's schema does not come.
    pub fn book(
        &mut self,
        (topic, partition): (usize, i32),
        at: Millis,
        payload: &[u8],
        reader: &mut Reader,
        out: &mut impl FnMut(FromIngest),
    ) -> Result<(), String> {
        let now = self.now.map_or(at, |now| now.max(at));
        self.pass(now, out);
        let latest = now.saturating_add(self.max_future);
        let Some(part) = self.parts.get_mut(&partition) else { return Ok(()) };
        reader.book_patiently((topic, payload), latest, &mut part.aggregator, PATIENCE)?;
        (part.times.quiet_since, part.times.time) = (now, part.aggregator.watermark());
        hand_on(partition, part, out);
        Ok(())
    }

    /// Moves quiet partitions on, where a pane of Kafka's time has passed.
    fn pass(&mut self, now: Millis, out: &mut impl FnMut(FromIngest)) {
        let pane = Pane::of(now, self.settings.pane);
        match self.now.replace(now) {
            None => self.parts.values_mut().for_each(|part| part.times.quiet_since = now),
            Some(before) if Pane::of(before, self.settings.pane) < pane => {
                let tick = pane.start(self.settings.pane);
                for (&partition, part) in &mut self.parts {
                    let quiet = tick.saturating_sub(part.times.quiet_since).saturating_sub(self.settings.idle_after);
                    if quiet <= 0 {
                        continue;
                    }
                    match part.times.time {
                        Some(time) => part.aggregator.advance(time.saturating_add(quiet)),
                        None if !part.times.idle => {
                            part.times.idle = true;
                            out(FromIngest::Idle(partition));
                        }
                        None => {}
                    }
                    hand_on(partition, part, out);
                }
            }
            Some(_) => {}
        }
    }

    /// Closes the open panes. Every partition comes to the time of the one that is furthest: the end of a recording is no silence.
    pub fn finish(mut self, out: &mut impl FnMut(FromIngest)) -> Replayed {
        let last = self.parts.values().filter_map(|part| part.aggregator.watermark()).max();
        let mut replayed = Replayed::default();
        for (&partition, part) in &mut self.parts {
            match (part.aggregator.watermark(), last) {
                (Some(_), Some(last)) => part.aggregator.advance(last),
                _ => out(FromIngest::Idle(partition)),
            }
            part.aggregator.finish();
            hand_on(partition, part, out);
            replayed.add(&part.aggregator);
        }
        replayed
    }
}

impl Replayed {
    pub fn add(&mut self, aggregator: &Aggregator) {
        self.counts.merge(aggregator.counts());
        if let Some((first, last)) = aggregator.span() {
            self.span = Some(self.span.map_or((first, last), |(a, b)| (a.min(first), b.max(last))));
        }
        for (bound, n) in aggregator.dropped().into_iter().filter(|(_, n)| *n > 0) {
            *self.dropped.entry(bound).or_default() += n;
        }
    }
}

fn hand_on(partition: i32, part: &mut Part, out: &mut impl FnMut(FromIngest)) {
    for emission in part.aggregator.drain() {
        part.times.idle &= !matches!(emission, Emission::Pane(_));
        out(FromIngest::Emission { partition, emission });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::outcome::Reject;
    use crate::ingest::decode::Limits;
    use crate::ingest::mapped::Layouts;

    const AT: Millis = 1_764_666_000_000;

    fn said(message: FromIngest) -> String {
        match message {
            FromIngest::Emission { partition, emission: Emission::Pane(batch) } => {
                format!("{partition}: {}", batch.pane.start(1_000) - AT)
            }
            FromIngest::Idle(partition) => format!("{partition}: idle"),
            other => panic!("{other:?}"),
        }
    }

    /// Replays records (partition, Kafka's time, event time) of two partitions; what was said, and what it came to.
    fn replay(records: &[(i32, Millis, Millis)]) -> (Vec<String>, Replayed) {
        let catalog = Arc::new(Catalog::default());
        let mut replay = Replay::new([0, 1], &catalog, &Settings::default(), 300_000);
        let mut reader = Reader::new(&[], &Layouts::default(), &catalog.fields, Limits::default());
        let mut heard = Vec::new();
        let mut out = |message| heard.push(said(message));
        for (partition, at, ts) in records {
            let json = format!(r#"{{"event":"ticket","ts":{},"tenant_id":"t","user_id":"u"}}"#, AT + ts);
            replay.book((0, *partition), AT + at, json.as_bytes(), &mut reader, &mut out).unwrap();
        }
        let replayed = replay.finish(&mut out);
        (heard, replayed)
    }

    #[test]
    fn a_quiet_partition_moves_on_with_kafkas_time() {
        let idle_after = Settings::default().idle_after;
        let (heard, _) = replay(&[(0, 0, 0), (1, 0, 0), (0, idle_after, 500), (0, idle_after + 2_000, 900), (0, idle_after + 2_100, 950)]);
        // Quiet for two seconds more than it may be, so two seconds on; the other has never been quiet for so long.
        assert_eq!(heard[..2], ["1: 0", "1: 1000"], "{heard:?}");
        assert_eq!(heard[2..], ["0: 0", "0: 1000", "0: 2000", "1: 2000"], "at the end both have come to the same time");
    }

    #[test]
    fn a_partition_that_never_had_a_record_is_not_waited_for() {
        let idle_after = Settings::default().idle_after;
        let (heard, replayed) = replay(&[(0, 0, 0), (0, idle_after + 1_000, 100), (0, idle_after + 3_000, 200)]);
        assert_eq!(heard[..2], ["0: 0", "1: idle"], "as soon as both have been quiet for long enough");
        assert_eq!(heard.iter().filter(|line| *line == "1: idle").count(), 2, "once when it was noticed, once at the end: {heard:?}");
        assert_eq!(replayed.counts.records(), 3);
    }

    #[test]
    fn the_future_is_told_by_kafkas_time() {
        let (_, replayed) = replay(&[(0, 0, 300_000), (0, 1, 300_002), (1, -50, 300_001)]);
        assert_eq!(replayed.counts.rejected.get(Reject::FutureTimestamp), 1);
        assert_eq!(replayed.counts.records(), 3);
    }
}
