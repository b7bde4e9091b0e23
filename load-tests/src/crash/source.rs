//! Where a round's records come from, so that the order in which a daemon reads them is that of a backtest.

use crate::rig::Rig;
use anyhow::Context;
use guardraild::clock;
use guardraild::engine::time::Millis;
use guardraild::tools::broker::{Feed, Writer};
use guardraild::tools::receiver::OnStop;
use guardraild::tools::traffic::{Case, Record, Traffic};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

pub enum Source {
    /// One topic, which is written while daemons read it.
    Live(Feed),
    /// Two topics, each stage of which is written as a whole while no daemon runs: of what one reads nothing is still to come, so that it is
    /// merged by Kafka's timestamps alone, however busy the machine is. Stages follow each other in these, too.
    Staged(Box<Stages>),
}

/// Experiment and bucket that are turned off.
type Stop = (String, String);

/// See [`Source::Staged`].
pub struct Stages {
    traffic: Traffic,
    writer: Writer,
    stop: Sender<Stop>,
    stopped: Receiver<Stop>,
    begun: Millis,
    records: u64,
}

impl Source {
    pub fn live(case: &Case, rig: &Rig) -> anyhow::Result<Source> {
        Ok(Source::Live(Feed::start(Traffic::new(case.clone(), clock::now())?, rig.writer()?.in_one_topic())?))
    }

    pub fn staged(case: &Case, rig: &Rig) -> anyhow::Result<Source> {
        let begun = clock::now();
        let (traffic, writer) = (Traffic::new(case.clone(), begun)?, rig.writer()?);
        let (stop, stopped) = channel();
        Ok(Source::Staged(Box::new(Stages { traffic, writer, stop, stopped, begun, records: 0 })))
    }

    /// What turns a bucket off.
    pub fn on_stop(&self) -> OnStop {
        match self {
            Source::Live(feed) => {
                let switch = feed.switch();
                Box::new(move |experiment, bucket| switch.stop(experiment, bucket))
            }
            Source::Staged(stages) => {
                let stop = stages.stop.clone();
                // Once the round is over, nobody listens.
                Box::new(move |experiment, bucket| drop(stop.send((experiment.to_owned(), bucket.to_owned()))))
            }
        }
    }

    /// Writes the records of so many milliseconds of event time since the beginning, those that are not there yet. No daemon may run.
    pub fn stage(&mut self, until: Millis) -> anyhow::Result<()> {
        let Source::Staged(stages) = self else { return Ok(()) };
        for (experiment, bucket) in stages.stopped.try_iter() {
            stages.traffic.stop(&experiment, &bucket);
        }
        let mut record = Record::default();
        while stages.traffic.next_ts() < stages.begun + until {
            stages.traffic.next(&mut record);
            stages.writer.send(&record)?;
            stages.writer.serve();
            stages.records += 1;
        }
        stages.writer.flush(Duration::from_secs(60)).context("the broker did not take all records within 60 s")
    }

    /// Records so far.
    pub fn records(&self) -> u64 {
        match self {
            Source::Live(feed) => feed.sent().records,
            Source::Staged(stages) => stages.records,
        }
    }

    /// Ends it; the records of the whole round.
    pub fn finish(self) -> anyhow::Result<u64> {
        match self {
            Source::Live(feed) => Ok(feed.finish()?.records),
            Source::Staged(stages) => Ok(stages.records),
        }
    }
}
