use super::*;
use crate::clock::{self, Time};
use crossbeam_channel::unbounded;
use std::sync::atomic::AtomicI64;

const START: Millis = 1_764_666_000_000;

/// A clock that is put forward by hand, ms.
#[derive(Default)]
struct Hand(AtomicI64);

impl Time for Hand {
    fn now(&self) -> Millis {
        START + self.0.load(Ordering::Relaxed)
    }

    fn moment(&self) -> clock::Moment {
        clock::Moment { wall: self.now(), steady: self.now() }
    }

    fn steady(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed).unsigned_abs())
    }

    fn sleep(&self, _: Duration) {}
}

/// What a worker of these topics shares, by this clock; and what it sends, which has room for everything.
fn shared(topics: &[&str], clock: &Arc<Hand>) -> (Shared, Receiver<FromIngest>) {
    let (sender, sent) = unbounded();
    let shared = Shared {
        topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
        layouts: Layouts::default(),
        catalog: Arc::new(Catalog::default()),
        settings: Settings::default(),
        limits: Limits::default(),
        max_future: 300_000,
        merge_wait: 250,
        clock: Arc::clone(clock) as Clock,
        sender,
        rejects: Rejects::default(),
        board: Arc::default(),
    };
    (shared, sent)
}

/// Partition, offset, time by Kafka and by itself, payload.
struct Ticket(i32, i64, Millis, String);

impl Ticket {
    fn new(partition: i32, offset: i64, ts: Millis) -> (usize, Ticket) {
        (0, Ticket(partition, offset, ts, format!(r#"{{"event":"ticket","ts":{ts},"tenant_id":"t","user_id":"u"}}"#)))
    }
}

impl Record for Ticket {
    fn partition(&self) -> i32 {
        self.0
    }

    fn offset(&self) -> i64 {
        self.1
    }

    fn timestamp(&self) -> Millis {
        self.2
    }

    fn payload(&self) -> &[u8] {
        self.3.as_bytes()
    }
}

#[test]
fn only_time_in_which_a_topic_could_bring_records_tries_the_patience() {
    let s = Duration::from_secs;
    let at = |steady, held, ahead: &[i32]| Moment {
        wall: 0,
        latest: 0,
        steady: s(steady),
        held: s(held),
        ahead: ahead.iter().copied().collect(),
    };
    let mut chance = Chance { looked: s(100), ..Chance::default() };
    assert_eq!(chance.had(&at(101, 0, &[4]), 3), 1_000);
    assert_eq!(chance.had(&at(191, 87, &[]), 3), 4_000, "87 s of it a worker was behind");
    assert_eq!(chance.had(&at(791, 87, &[3]), 3), 4_000, "paused: too far ahead");
    assert_eq!(chance.had(&at(792, 87, &[]), 3), 5_000);
}

#[test]
fn a_quiet_partition_whose_last_record_is_of_long_ago_holds_nobody_back() {
    let clock = Arc::new(Hand::default());
    let (shared, _sent) = shared(&["all"], &clock);
    let board = Arc::clone(&shared.board);
    let mut worker = Worker::new(0, shared, Vec::new()).unwrap();
    let watermarks = |board: &Board| board.marks.lock().unwrap().values().map(|mark| mark.watermark.unwrap() - START).collect::<Vec<_>>();
    // The first time it is known to be quiet, the second time others go by that.
    let ticks = |worker: &mut Worker, ms| {
        clock.0.store(ms, Ordering::Relaxed);
        worker.tick().unwrap();
        worker.tick().unwrap();
    };
    worker.assigned(&[(0, 0), (0, 1)]).unwrap();
    worker.records([Ticket::new(0, 0, START - 3_600_000), Ticket::new(1, 0, START - 90_000)].into_iter()).unwrap();
    worker.ended(&[(0, 0)]).unwrap();
    ticks(&mut worker, 4_000);
    assert_eq!(watermarks(&board), [-3_600_000, -90_000]);
    ticks(&mut worker, 6_000);
    assert_eq!(watermarks(&board), [-90_000, -90_000], "that of the one that is not at its end");
    worker.records([Ticket::new(1, 1, START + 200_000)].into_iter()).unwrap();
    ticks(&mut worker, 6_000);
    assert_eq!(watermarks(&board), [1_000, 200_000], "no further than idle_after behind the clock");
    worker.ended(&[(0, 1)]).unwrap();
    ticks(&mut worker, 12_000);
    assert_eq!(watermarks(&board), [7_000, 201_000], "both are quiet");
}

#[test]
fn a_topic_is_not_given_up_while_its_partition_is_paused() {
    const AGO: Millis = START - 3_600_000;
    let clock = Arc::new(Hand::default());
    let (shared, sent) = shared(&["exposures", "events"], &clock);
    let board = Arc::clone(&shared.board);
    let mut worker = Worker::new(0, shared, Vec::new()).unwrap();
    let watermark = || board.marks.lock().unwrap()[&0].watermark.map(|at| at - AGO);
    let pass = |worker: &mut Worker, seconds: i64| {
        clock.0.fetch_add(1_000 * seconds, Ordering::Relaxed);
        worker.tick().unwrap();
        watermark()
    };
    worker.assigned(&[(0, 0), (1, 0)]).unwrap();
    worker.records([Ticket::new(0, 0, AGO + 10)].into_iter()).unwrap();
    board.ahead.lock().unwrap().insert(0);
    assert_eq!(pass(&mut worker, 3_600), None, "an hour in which nothing could come");
    board.ahead.lock().unwrap().clear();
    assert_eq!(pass(&mut worker, 29), None);
    let (_, event) = Ticket::new(0, 0, AGO + 5);
    worker.records([(1, event)].into_iter()).unwrap();
    assert_eq!(watermark(), Some(5), "what belongs before it has come");
    assert_eq!(pass(&mut worker, 29), Some(5));
    assert_eq!(pass(&mut worker, 2), Some(10), "now it had the chance");
    let overtaken = sent.try_iter().map(|m| if let FromIngest::Progress { overtaken, .. } = m { overtaken } else { 0 });
    assert_eq!(overtaken.sum::<u64>(), 0);
}
