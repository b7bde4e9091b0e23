//! What a seed stands for: rules, records with faults among them, and a schedule of faults.

use super::alerts::ALERTS;
use super::vigil;
use guardraild::engine::time::Millis;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Event time at the beginning.
pub const START: Millis = 1_764_666_000_000;
/// Topics, exposures first.
pub const TOPICS: [&str; 2] = ["exposures", "events"];
/// Further ahead of the clock is the future.
pub const MAX_FUTURE: Millis = 900_000;
/// At the head, records of two topics come in the order of their times but for this much.
pub const MERGE_WAIT: Millis = 3_000;
/// Endpoints, as the rules name them: interventions, pages, notifications, both of them.
pub const ENDPOINTS: [&str; 4] = ["flags", "pager", "chat", ALERTS];

/// Tables whose writes may fail.
pub const TABLES: [&str; 8] = ["decisions", "outbox", "log", "notices", "attempts", "operations", "checkpoints", "parts"];

/// One record of a topic's partition. Times are ms since the beginning.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it was produced: Kafka's time of it.
    pub at: Millis,
    pub payload: Vec<u8>,
}

/// What happens to the daemon and around it. Times and spans in ms.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Everything that is not committed is lost, now or at a step that comes by soon (see `guardraild::fail`).
    Crash {
        down: Millis,
        at_step: Option<(usize, u32)>,
    },
    /// SIGTERM: it drains, and starts again.
    Restart {
        down: Millis,
    },
    /// Starts again with another revision of this experiment's rule.
    NewRule {
        experiment: usize,
        down: Millis,
    },
    /// This experiment's file changes while the daemon runs: it says something else, or the same in other words.
    Reload {
        experiment: usize,
        renewed: bool,
    },
    /// This experiment's file is removed.
    Removed {
        experiment: usize,
    },
    /// It stands still, another one takes over, and then it wakes up.
    TakeOver {
        down: Millis,
        span: Millis,
    },
    /// No records come, of one partition or of all.
    BrokerLost {
        partition: Option<i32>,
        span: Millis,
    },
    /// A partition is taken away, and comes back.
    Rebalance {
        partition: i32,
        span: Millis,
    },
    /// A worker's messages are on their way for long.
    SlowWorker {
        worker: usize,
        span: Millis,
    },
    /// Each commit takes this long.
    SlowDisk {
        each: Millis,
        span: Millis,
    },
    /// Writes of one table fail, in the middle of their transactions; of all where there is none.
    DiskFails {
        table: Option<&'static str>,
        span: Millis,
        /// It is killed while it waits for the disk.
        killed: bool,
    },
    /// An endpoint answers otherwise than with 200.
    Webhook {
        endpoint: &'static str,
        answer: Answer,
        span: Millis,
    },
    /// The wall clock is set.
    ClockSet {
        by: Millis,
    },
    Operator {
        experiment: usize,
        verb: &'static str,
    },
    /// Somebody asks for a delivery again.
    Redeliver,
    /// The Alertmanager starts anew, and knows nothing.
    Forget,
}

/// How an endpoint answers, and whether it has acted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Status(u16),
    /// With `Retry-After`, seconds.
    RetryAfter(u16, u32),
    /// Nothing within the endpoint's patience; it may have acted.
    TimeOut {
        acted: bool,
    },
    /// The connection breaks before the request is there, or after it acted.
    Lost {
        acted: bool,
    },
    /// 200, but late: within the endpoint's patience, or after it.
    Late,
    Overdue,
}

pub struct Plan {
    pub partitions: i32,
    pub workers: usize,
    pub rules: Vec<Rule>,
    /// By topic, then by partition.
    pub logs: Vec<Vec<Vec<Record>>>,
    /// In order of time.
    pub faults: Vec<(Millis, Fault)>,
    /// What happens while alerts are watched, in order of time since the beginning of that; `None` where they are not.
    pub vigil: Option<Vec<(Millis, Fault)>>,
    /// When the last record comes.
    pub end: Millis,
    /// Decisions must be those of a run without faults. Else operators, rebalances and quiet partitions act when they come.
    pub exact: bool,
    /// Single events decide before their panes are judged.
    pub hasty: bool,
    pub idle_after: Millis,
    /// Messages of one worker that may wait for the judge.
    pub inbox: usize,
    pub checkpoint_every: Millis,
    /// Small bounds on what a partition remembers.
    pub cramped: bool,
    /// Experiments that are rolled back without a person in a minute, at most; 0: all.
    pub radius: usize,
}

#[derive(Clone, Debug)]
pub struct Rule {
    pub name: String,
    pub text: String,
}

fn rule(rng: &mut ChaCha8Rng, name: &str, revision: u32) -> String {
    let mode = if rng.random_bool(0.8) { "enforce" } else { "observe" };
    let compared = match rng.random_range(0..3) {
        0 => "  - {metric: error_rate, max_increase: 1pp, on_breach: notify}\n",
        1 => "  - {metric: latency_p90, max_increase: 20%, on_breach: page}\n",
        _ => "",
    };
    let silence = if rng.random_bool(0.5) { "{after: 20s, do: hold}" } else { "off" };
    let barred = match rng.random_range(0..6) {
        0 => ", ineligible: {max: 0, do: pause}",
        1 => ", ineligible: {max: 0, do: rollback}",
        _ => "",
    };
    let quality = format!("eligibility: {{population: {{region: [eu, us]}}}}\nquality: {{silence: {silence}{barred}}}\n");
    let limited = if rng.random_bool(0.3) { "  rate_limit: {rollbacks: 1/h}\n" } else { "" };
    let segments = if rng.random_bool(0.2) { "analysis: {min_units: 20, segments: {by: [region], top: 2}}\n" } else { "" };
    format!(
        "guardrail: v1
revision: {revision}
overview: {{experiment: {name}, owner: team}}
buckets: {{control: {{baseline: true}}, treatment: {{}}}}
guardrails:
  - {{metric: latency_p95, window: {window}s, limit: 500ms, on_breach: rollback}}
  - {{metric: error_rate, window: 10s, limit: 20%, on_breach: {on_errors}}}
  - {{metric: tickets, window: 30s, limit: 60%, on_breach: notify}}
  - {{metric: abandonment, within: 5s, window: 20s, limit: 50%, on_breach: pause}}
  - {{metric: compliance_flags, window: 1h, limit: 0, on_breach: {on_flags}}}
{compared}{segments}actions:
  mode: {mode}
  rollback: {{webhook: flags, body: {{flag: {name}}}}}
  kill: {{webhook: flags}}
  pause: {{webhook: flags}}
  page: {{webhook: {pages}}}
  notify: {{webhook: {notifies}}}
  confirm_within: {confirm}s
  unconfirmed: [kill, page]
{limited}{quality}",
        window = [5, 10, 30].choose(rng).unwrap(),
        on_errors = ["rollback", "pause", "page", "hold"].choose(rng).unwrap(),
        on_flags = ["kill", "kill", "rollback", "notify"].choose(rng).unwrap(),
        confirm = rng.random_range(5..25),
        pages = ["pager", ALERTS].choose(rng).unwrap(),
        notifies = ["chat", "chat", ALERTS].choose(rng).unwrap(),
    )
}

/// What is wrong with an experiment's treatment, from when on.
struct Harm {
    slow: Millis,
    failing: Millis,
    abandoning: Millis,
    flagged: Millis,
    /// Units take part that must not.
    barred: Millis,
    /// No exposures from here on.
    stopped: Millis,
}

impl Harm {
    fn draw(rng: &mut ChaCha8Rng, end: Millis, hasty: bool) -> Harm {
        let mut from = |chance| if rng.random_bool(chance) { rng.random_range(5_000..end) } else { Millis::MAX };
        Harm {
            slow: from(0.5),
            failing: from(0.4),
            abandoning: from(0.3),
            flagged: if hasty { from(0.7) } else { Millis::MAX },
            barred: if hasty { from(0.5) } else { Millis::MAX },
            stopped: from(0.4),
        }
    }
}

impl Plan {
    pub fn of(seed: u64) -> Plan {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (partitions, workers) = (rng.random_range(1..=4), rng.random_range(1..=3));
        let end = rng.random_range(40_000..110_000);
        let experiments = rng.random_range(1..=4);
        let exact = rng.random_bool(0.7);
        let rules: Vec<Rule> = (0..experiments)
            .map(|n| {
                let name = format!("exp-{n}");
                Rule { text: rule(&mut rng, &name, 1), name }
            })
            .collect();
        let hasty = rng.random_bool(0.5);
        let harm: Vec<Harm> = rules.iter().map(|_| Harm::draw(&mut rng, end, hasty)).collect();
        let logs = records(&mut rng, partitions, &rules, &harm, end);
        let faults = faults(&mut rng, exact, end, partitions, workers, experiments);
        let radius = *[0, 0, 1, 2].choose(&mut rng).unwrap();
        let alerts = rules.iter().any(|rule| rule.text.contains(ALERTS)) && rng.random_bool(0.5);
        let vigil = alerts.then(|| vigil::faults(&mut rng, experiments));
        Plan {
            partitions,
            workers,
            rules,
            logs,
            faults,
            vigil,
            end,
            exact,
            hasty,
            // Where nobody else moves time on, a partition's records alone do.
            idle_after: if exact { 200_000 } else { 5_000 },
            inbox: *[1, 5, 50, 4_096].choose(&mut rng).unwrap(),
            checkpoint_every: rng.random_range(1_000..30_000),
            cramped: rng.random_bool(0.2),
            radius,
        }
    }

    /// The rule of an experiment after [`Fault::NewRule`], and a [`Fault::Reload`] that is one.
    pub fn new_rule(&self, seed: u64, experiment: usize) -> String {
        rule(&mut ChaCha8Rng::seed_from_u64(!seed), &self.rules[experiment].name, 2)
    }

    /// Experiments whose rule stays as it is.
    pub fn unchanged(&self, experiment: &str) -> bool {
        let renews = |fault: &Fault| match fault {
            Fault::NewRule { experiment: n, .. } | Fault::Reload { experiment: n, renewed: true } => self.rules[*n].name == experiment,
            _ => false,
        };
        !self.faults.iter().any(|(_, fault)| renews(fault))
    }

    /// A rule becomes another one at some time.
    pub fn renews(&self) -> bool {
        self.rules.iter().any(|rule| !self.unchanged(&rule.name))
    }

    /// Records of all topics and partitions.
    pub fn records(&self) -> u64 {
        self.logs.iter().flatten().map(|log| log.len() as u64).sum()
    }
}

fn records(rng: &mut ChaCha8Rng, partitions: i32, rules: &[Rule], harm: &[Harm], end: Millis) -> Vec<Vec<Vec<Record>>> {
    let mut logs = vec![vec![Vec::new(); partitions as usize]; TOPICS.len()];
    let gap: Millis = rng.random_range(60..250);
    let (mut at, mut visit) = (0, 0u32);
    while at < end {
        // Each partition has a record soon, so that nobody waits for one.
        let user = if visit < 4 * partitions as u32 { visit } else { rng.random_range(0..400) };
        let partition = user as usize % partitions as usize;
        let treated = user / 4 % 2 == 1;
        let unit = format!(r#""tenant_id":"t","user_id":"u{user}""#);
        let ts = START + at;
        let mut add = |topic: usize, after: Millis, payload: String| {
            logs[topic][partition].push(Record { at: at + after, payload: payload.into_bytes() });
        };
        for (rule, harm) in rules.iter().zip(harm) {
            if !treated || at < harm.stopped {
                let bucket = if treated { "treatment" } else { "control" };
                let region = match user % 3 {
                    0 => "eu",
                    _ if user % 40 == 7 && at >= harm.barred => "mars",
                    _ => "us",
                };
                let name = &rule.name;
                add(
                    0,
                    0,
                    format!(
                        r#"{{"event":"exposure","ts":{ts},{unit},"experiment":"{name}","bucket":"{bucket}","attributes":{{"region":"{region}"}}}}"#
                    ),
                );
            }
        }
        let harmed = |from: fn(&Harm) -> Millis| treated && harm.iter().any(|h| at >= from(h));
        let latency = if harmed(|h| h.slow) { 900 } else { rng.random_range(50..250) };
        let error = rng.random_bool(if harmed(|h| h.failing) { 0.7 } else { 0.02 });
        let (then, id) = (ts + 5, format!(r#""id":"r{visit}""#));
        let request = format!(r#"{{"event":"request","ts":{then},{id},{unit},"latency_ms":{latency},"error":{error}}}"#);
        add(1, 5, request.clone());
        if rng.random_bool(0.3) {
            let workflow = format!(r#""workflow":"purchase","workflow_id":"w{visit}""#);
            add(1, 6, format!(r#"{{"event":"workflow_started","ts":{then},{unit},{workflow}}}"#));
            if !harmed(|h| h.abandoning) || rng.random_bool(0.1) {
                add(1, 900, format!(r#"{{"event":"workflow_completed","ts":{},{unit},{workflow}}}"#, ts + 900));
            }
        }
        match rng.random_range(0..40) {
            0 => add(1, 8, request),
            1 => add(1, 8, "{\"event\":".to_owned()),
            2 => add(1, 8, format!(r#"{{"event":"ticket","ts":{then},"tenant_id":"t","user_id":"nobody"}}"#)),
            3 => add(1, 8, format!(r#"{{"event":"ticket","ts":{then},{unit}}}"#)),
            4 => add(1, 8, format!(r#"{{"event":"ticket","ts":{},{unit}}}"#, ts - 60_000)),
            5 => add(1, 8, format!(r#"{{"event":"ticket","ts":{},{unit}}}"#, ts - rng.random_range(0..25_000))),
            6 => add(0, 8, format!(r#"{{"event":"exposure","ts":{then},{unit},"experiment":"nothing","bucket":"b"}}"#)),
            7 => add(1, 8, format!(r#"{{"event":"ticket","ts":{},{unit}}}"#, ts + 4 * MAX_FUTURE)),
            8 if harmed(|h| h.flagged) => add(1, 8, format!(r#"{{"event":"compliance_flag","ts":{then},{unit},"flag":"pii"}}"#)),
            // Overtakes its exposure.
            9 => add(1, 0, format!(r#"{{"event":"ticket","ts":{},{unit}}}"#, ts + 10)),
            _ => {}
        }
        visit += 1;
        at += if rng.random_bool(0.01) { rng.random_range(500..3_000) } else { rng.random_range(1..2 * gap) };
    }
    // Later steps of a visit may come after the beginning of the next one.
    logs.iter_mut().flatten().for_each(|log: &mut Vec<Record>| log.sort_by_key(|record| record.at));
    logs
}

fn faults(rng: &mut ChaCha8Rng, exact: bool, end: Millis, partitions: i32, workers: usize, experiments: usize) -> Vec<(Millis, Fault)> {
    let mut faults = Vec::new();
    for _ in 0..rng.random_range(0..16) {
        let span = rng.random_range(100..12_000);
        let fault = match rng.random_range(0..24) {
            0 => Fault::Crash { down: span, at_step: None },
            1..4 => Fault::Crash { down: span, at_step: Some((rng.random_range(0..12), rng.random_range(0..4))) },
            4 => Fault::Restart { down: span },
            5 => Fault::BrokerLost { partition: rng.random_bool(0.7).then(|| rng.random_range(0..partitions)), span },
            6 => Fault::SlowWorker { worker: rng.random_range(0..workers), span },
            7 => Fault::SlowDisk { each: rng.random_range(10..1_500), span },
            8 => Fault::DiskFails {
                table: rng.random_bool(0.7).then(|| *TABLES.choose(rng).unwrap()),
                span: span / 2,
                killed: rng.random_bool(0.3),
            },
            9..14 => {
                let answer = answer(rng);
                Fault::Webhook { endpoint: ENDPOINTS.choose(rng).unwrap(), answer, span: span * 4 }
            }
            14 => Fault::ClockSet { by: rng.random_range(-120_000..120_000) },
            15 => Fault::Redeliver,
            16 if !exact => Fault::Rebalance { partition: rng.random_range(0..partitions), span },
            16 => Fault::NewRule { experiment: rng.random_range(0..experiments), down: span },
            17..19 => Fault::Reload { experiment: rng.random_range(0..experiments), renewed: rng.random_bool(0.3) },
            19 | 20 => Fault::TakeOver { down: rng.random_range(0..6_000), span },
            _ if !exact => {
                let verb = ["hold", "resume", "rollback", "kill", "annotate", "phase"].choose(rng).unwrap();
                Fault::Operator { experiment: rng.random_range(0..experiments), verb }
            }
            _ => Fault::Crash { down: span / 10, at_step: None },
        };
        faults.push((rng.random_range(0..end), fault));
    }
    faults.sort_by_key(|(at, _)| *at);
    faults
}

pub fn answer(rng: &mut ChaCha8Rng) -> Answer {
    *[
        Answer::Status(500),
        Answer::Status(503),
        Answer::Status(302),
        Answer::Status(404),
        Answer::Status(410),
        Answer::RetryAfter(429, rng.random_range(0..2_000)),
        Answer::RetryAfter(503, rng.random_range(0..30)),
        Answer::TimeOut { acted: true },
        Answer::TimeOut { acted: false },
        Answer::Lost { acted: true },
        Answer::Lost { acted: false },
        Answer::Late,
        Answer::Overdue,
    ]
    .choose(rng)
    .unwrap()
}
