//! Backtests of a range of Kafka's topics: one reader, in whose order all rule sets hear every record.

use super::court::Court;
use super::state::{Identity, Keeper, Left, POSITION};
use super::{BacktestError, Heard, KEEP_EVERY, Outcome, Side, Terms};
use crate::engine::decision::Output;
use crate::engine::kept::{self, Change, Kept};
use crate::engine::plan::Catalog;
use crate::engine::time::Millis;
use crate::ingest::decode::Limits;
use crate::ingest::mapped::{Layouts, Reader};
use crate::ingest::range::{Extent, Range, RangeConfig, RangeError};
use crate::ingest::replay::Replay;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Records between two reports of progress.
const STRIDE: u64 = 512;
const REPLAY: &str = "replay/";

/// Which range is asked for, and how it is read.
pub struct Asked<'a> {
    pub range: RangeConfig,
    /// The question as it was put (brokers, topics, moments), by which a kept state knows it again: `2h ago` is another moment each time.
    pub told: String,
    pub layouts: &'a Layouts,
    /// How far a record's event time may be ahead of Kafka's time, ms.
    pub max_future: Millis,
    pub limits: Limits,
    pub clock: fn() -> Millis,
}

/// A backtest of a range that is ready to run, from its beginning or from where it was interrupted.
pub struct Ranged<'a> {
    range: Range,
    benches: Vec<Bench>,
    terms: &'a Terms<'a>,
}

/// One rule set.
struct Bench {
    replay: Replay,
    reader: Reader,
    court: Court,
    keeper: Option<Keeper>,
    /// What it has heard already: another rule set may not have come as far when all were interrupted.
    heard: Option<Extent>,
}

/// A rule set before the range is open: its state, where there is one.
struct Opened {
    catalog: Arc<Catalog>,
    keeper: Option<Keeper>,
    left: Option<(Left, Extent)>,
}

impl<'a> Ranged<'a> {
    /// Opens the range, or goes on with the one of which the state in `terms` tells.
    ///
    /// # Errors
    /// See [`BacktestError`].
    pub fn open(sides: Vec<Side>, asked: Asked<'_>, terms: &'a Terms<'a>) -> Result<Ranged<'a>, BacktestError> {
        let sides = sides.into_iter().enumerate().map(|(index, side)| opened(index, side, &asked, terms));
        let sides = sides.collect::<Result<Vec<Opened>, BacktestError>>()?;
        let Asked { range, layouts, max_future, limits, clock, .. } = asked;
        let range = match common(&sides)? {
            Some(extent) => Range::resume(range, extent, clock)?,
            None => Range::open(range, clock)?,
        };
        let bench = |Opened { catalog, keeper, left }: Opened| {
            let reader = Reader::new(range.topics(), layouts, &catalog.fields, limits);
            let Some((mut left, extent)) = left else {
                let (replay, court) = (Replay::new(range.partitions(), &catalog, terms.settings, max_future), Court::new(&catalog, terms));
                return Ok(Bench { replay, reader, court, keeper, heard: None });
            };
            let replay = Replay::restore(&catalog, terms.settings, max_future, &mut left.kept.split_off(REPLAY));
            let taken_up = replay.and_then(|replay| Ok((replay, Court::taken_up(&catalog, terms, left)?)));
            match (taken_up, &keeper) {
                (Ok((replay, court)), _) => Ok(Bench { replay, reader, court, keeper, heard: Some(extent) }),
                (Err(reason), Some(keeper)) => Err(keeper.unusable(reason).into()),
                (Err(reason), None) => Err(BacktestError::unwritten(reason)),
            }
        };
        let mut benches = sides.into_iter().map(bench).collect::<Result<Vec<Bench>, BacktestError>>()?;
        for bench in &mut benches {
            bench.replay.partitions().for_each(|(partition, _)| bench.court.fleet.assigned(partition));
            // All of them wait, so that nothing can be said yet.
            let empty = bench.replay.partitions().filter(|(_, empty)| *empty);
            empty.for_each(|(partition, _)| bench.court.fleet.empty(partition, &mut Output::default()));
        }
        Ok(Ranged { range, benches, terms })
    }

    /// Optional topics that are not there.
    pub fn left_out(&self) -> &[String] {
        self.range.left_out()
    }

    /// Reads the range through the engine, as a daemon would have that read the records as they came, for each of the rule sets. `hear` takes decisions as
    /// they are made, and progress in records.
    ///
    /// # Errors
    /// See [`BacktestError`].
    pub fn run(self, mut hear: impl FnMut(Heard<'_>)) -> Result<Vec<Outcome>, BacktestError> {
        let Ranged { range, mut benches, terms } = self;
        for (index, bench) in benches.iter().enumerate() {
            bench.court.decisions().iter().for_each(|decision| hear(Heard::Decided(index, decision)));
        }
        let (mut n, mut kept): (u64, Instant) = (0, Instant::now());
        let whole = range.read(|record, extent| {
            for (index, bench) in benches.iter_mut().enumerate() {
                let Bench { replay, reader, court, heard, .. } = bench;
                if heard.as_ref().is_some_and(|heard| heard.has(&record)) {
                    continue;
                }
                *heard = None;
                let place = (record.topic, record.partition);
                let mut take = |message| court.take(message, |decision| hear(Heard::Decided(index, decision)));
                replay.book(place, record.at, record.payload, reader, &mut take).map_err(RangeError::Record)?;
            }
            n += 1;
            let stop = terms.stop.load(Ordering::Relaxed);
            if n.is_multiple_of(STRIDE) {
                let (passed, total) = extent.passed();
                hear(Heard::Progress(passed, Some(total)));
            }
            if stop || n.is_multiple_of(STRIDE) && kept.elapsed() >= KEEP_EVERY {
                benches.iter_mut().try_for_each(|bench| bench.keep(extent))?;
                kept = Instant::now();
            }
            Ok::<bool, BacktestError>(!stop)
        })?;
        if !whole {
            return Err(BacktestError::Interrupted);
        }
        let (mut outcomes, mut keepers) = (Vec::new(), Vec::new());
        for (index, Bench { replay, mut court, keeper, .. }) in benches.into_iter().enumerate() {
            let replayed = replay.finish(&mut |message| court.take(message, |decision| hear(Heard::Decided(index, decision))));
            outcomes.push(court.outcome(replayed));
            keepers.extend(keeper);
        }
        keepers.into_iter().try_for_each(Keeper::forget)?;
        Ok(outcomes)
    }
}

impl Bench {
    /// Writes a checkpoint, unless it is further than the reader.
    fn keep(&mut self, extent: &Extent) -> Result<(), BacktestError> {
        let Some(keeper) = self.keeper.as_mut().filter(|_| self.heard.is_none()) else { return Ok(()) };
        let mut read = kept::prefixed(REPLAY, self.replay.snapshot().map_err(BacktestError::unwritten)?);
        let position = kept::encode(extent).map_err(BacktestError::unwritten)?;
        read.push((POSITION.to_owned(), Change::Set(vec![position])));
        Ok(self.court.keep(read, keeper)?)
    }
}

fn opened(index: usize, side: Side, asked: &Asked<'_>, terms: &Terms<'_>) -> Result<Opened, BacktestError> {
    let catalog = Arc::new(side.catalog);
    let Some(dir) = terms.state else { return Ok(Opened { catalog, keeper: None, left: None }) };
    let read = format!("{:?} {}", asked.limits, asked.max_future);
    let (keeper, left) = Keeper::open((dir, index), Identity::of_range(&side.text, terms, &read, &asked.told))?;
    let with_extent = |left: Left| match extent_of(&left.kept) {
        Ok(extent) => Ok((left, extent)),
        Err(reason) => Err(keeper.unusable(reason)),
    };
    let left = left.map(with_extent).transpose()?;
    Ok(Opened { catalog, keeper: Some(keeper), left })
}

fn extent_of(kept: &Kept) -> Result<Extent, String> {
    kept.read(POSITION)?.ok_or_else(|| format!("the state lacks `{POSITION}`"))
}

/// Where reading begins, for all of them: at the place of the one that has come least far.
fn common(sides: &[Opened]) -> Result<Option<Extent>, BacktestError> {
    let mut known = sides.iter().filter_map(|side| Some((side.keeper.as_ref()?, &side.left.as_ref()?.1)));
    let Some((_, first)) = known.next() else { return Ok(None) };
    let mut least = first;
    for (keeper, extent) in known {
        if !extent.is_of(first) {
            return Err(keeper.of_another("range of records").into());
        }
        least = if extent.passed() < least.passed() { extent } else { least };
    }
    let all = sides.iter().all(|side| side.left.is_some());
    Ok(Some(if all { least.clone() } else { least.begun() }))
}
