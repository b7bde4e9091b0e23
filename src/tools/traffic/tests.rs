use super::*;
use std::collections::BTreeSet;

fn record(traffic: &mut Traffic) -> Record {
    let mut out = Record::default();
    traffic.next(&mut out);
    out
}

fn records(case: Case, n: usize) -> Vec<Record> {
    let mut traffic = Traffic::new(case, 1_764_666_000_000).unwrap();
    (0..n).map(|_| record(&mut traffic)).collect()
}

fn json(record: &Record) -> serde_json::Value {
    serde_json::from_slice(&record.payload).unwrap()
}

fn busy() -> Case {
    Case { workflow_share: 0.5, ticket_share: 0.1, workflow_ms: 40, requests_per_visit: 3, request_delay_ms: 20, ..Case::default() }
}

/// Share of requests with an error and their 95th percentile of latency, of one bucket.
fn measure(records: &[Record], bucket: &str) -> (f64, f64) {
    let (mut inside, mut errors, mut latency) = (BTreeSet::new(), 0.0, Vec::new());
    for record in records {
        let value = json(record);
        if record.exposed.is_some() && value["bucket"] == bucket {
            inside.insert(record.user);
        } else if value["event"] == "request" && inside.contains(&record.user) {
            errors += f64::from(u8::from(value["error"].as_bool().unwrap()));
            latency.push(value["latency_ms"].as_f64().unwrap());
        }
    }
    latency.sort_by(f64::total_cmp);
    (errors / latency.len() as f64, latency[latency.len() * 95 / 100])
}

#[test]
fn one_seed_gives_the_same_records_and_another_gives_others() {
    assert_eq!(records(busy(), 2_000), records(busy(), 2_000));
    assert_ne!(records(busy(), 2_000), records(Case { seed: 2, ..busy() }, 2_000));
}

#[test]
fn records_are_canonical_events_in_the_order_of_time() {
    let mut last = 0;
    let mut names = BTreeSet::new();
    for record in records(busy(), 5_000) {
        let value = json(&record);
        assert_eq!(value["ts"].as_i64().unwrap(), record.ts);
        assert!(record.ts >= last, "time ran back");
        last = record.ts;
        let unit = format!("{}|{}", value["tenant_id"].as_str().unwrap(), value["user_id"].as_str().unwrap());
        assert_eq!(unit.as_bytes(), record.key);
        assert_eq!(value["event"] == "exposure", record.topic == Topic::Exposures);
        assert_eq!(value.get("experiment").is_some(), record.topic == Topic::Exposures, "only exposures are stamped");
        names.insert(value["event"].as_str().unwrap().to_owned());
    }
    let expected = ["exposure", "request", "ticket", "workflow_abandoned", "workflow_completed", "workflow_started"];
    assert_eq!(names.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn requests_are_about_250_bytes() {
    let all = records(Case { stamped: true, ..Case::default() }, 1_000);
    let sizes: Vec<usize> = all.iter().filter(|r| r.topic == Topic::Events).map(|r| r.payload.len()).collect();
    let mean = sizes.iter().sum::<usize>() / sizes.len();
    assert!((220..290).contains(&mean), "{mean} bytes");
}

#[test]
fn stamped_events_name_the_bucket_that_the_user_was_exposed_to() {
    let case = Case { stamped: true, ..busy() };
    let mut bucket = std::collections::BTreeMap::new();
    for record in records(case, 3_000) {
        let value = json(&record);
        let known = bucket.entry(record.user).or_insert_with(|| value["bucket"].clone());
        assert_eq!(value["bucket"], *known);
        assert_eq!(value["experiment"], "new-checkout");
    }
}

#[test]
fn latency_and_errors_follow_the_case_and_the_fault() {
    let fault = Fault {
        at_s: 0.0,
        until_s: None,
        experiment: "new-checkout".into(),
        stagger_s: 0.0,
        bucket: "treatment".into(),
        segment: None,
        effect: Effect { latency: 1.5, errors: 0.05, ..Effect::default() },
    };
    let case = Case { requests_per_visit: 5, faults: vec![fault], ..Case::default() };
    let all = records(case, 60_000);
    let (errors, p95) = measure(&all, "control");
    assert!((errors - 0.01).abs() < 0.003, "control errors {errors}");
    assert!((p95 / 420.0 - 1.0).abs() < 0.05, "control p95 {p95}");
    let (errors, p95) = measure(&all, "treatment");
    assert!((errors - 0.06).abs() < 0.006, "treatment errors {errors}");
    assert!((p95 / 630.0 - 1.0).abs() < 0.05, "treatment p95 {p95}");
}

#[test]
fn a_fault_begins_and_ends_at_its_time() {
    let fault = |effect| Fault {
        at_s: 1.0,
        until_s: Some(2.0),
        experiment: "new-checkout".into(),
        stagger_s: 0.0,
        bucket: "treatment".into(),
        segment: None,
        effect,
    };
    let case = Case { faults: vec![fault(Effect { compliance: 1.0, ..Effect::default() })], ..Case::default() };
    let start = 1_764_666_000_000;
    let flags: Vec<Millis> = records(case, 4_000).iter().filter(|r| json(r)["event"] == "compliance_flag").map(|r| r.ts - start).collect();
    assert!(flags.len() > 100);
    assert!(flags.iter().all(|ts| (1_000..2_000).contains(ts)), "{flags:?}");
}

#[test]
fn a_stopped_bucket_is_no_longer_exposed_and_behaves_as_the_first() {
    let mut traffic = Traffic::new(Case::default(), 0).unwrap();
    let slow = Effect { latency: 100.0, ..Effect::default() };
    let fault = Fault {
        at_s: 0.0,
        until_s: None,
        experiment: "new-checkout".into(),
        stagger_s: 0.0,
        bucket: "treatment".into(),
        segment: None,
        effect: slow,
    };
    traffic.inject(&fault, 0).unwrap();
    assert!((0..500).any(|_| record(&mut traffic).exposed == Some((0, 1))));
    assert!(traffic.stop("new-checkout", "treatment"));
    assert!(!traffic.stop("new-checkout", "nobody"));
    while !traffic.steps.is_empty() {
        record(&mut traffic);
    }
    for _ in 0..2_000 {
        let record = record(&mut traffic);
        assert_ne!(record.exposed, Some((0, 1)));
        let slow = json(&record)["latency_ms"].as_f64().is_some_and(|ms| ms > 5_000.0);
        assert!(!slow, "a user of the stopped bucket is still served it");
    }
}

#[test]
fn copies_share_the_users_and_are_struck_one_after_another() {
    let mut case = Case { request_delay_ms: 0, ..Case::default() };
    case.experiments[0].copies = 20;
    case.faults = vec![Fault {
        at_s: 1.0,
        until_s: None,
        experiment: "new-checkout".into(),
        stagger_s: 0.5,
        bucket: "treatment".into(),
        segment: None,
        effect: Effect { compliance: 1.0, ..Effect::default() },
    }];
    let mut traffic = Traffic::new(case, 0).unwrap();
    assert_eq!(traffic.experiments().last(), Some("new-checkout-0019"));
    let (mut first, mut current) = ([Millis::MAX; 20], 0);
    let mut out = Record::default();
    while traffic.next_ts() < 20_000 {
        traffic.next(&mut out);
        if let Some((experiment, _)) = out.exposed {
            current = experiment as usize;
        } else if out.payload.starts_with(b"{\"event\":\"compliance_flag\"") {
            first[current] = first[current].min(out.ts);
        }
    }
    for (n, ts) in first.iter().enumerate() {
        let due = 1_000 + n as Millis * 500;
        assert!(*ts >= due && *ts < due + 1_000, "copy {n} was struck at {ts}, due {due}");
    }
}

#[test]
fn the_first_visits_are_all_of_different_users() {
    let case = Case { users: 1_000, requests_per_visit: 0, ..Case::default() };
    let keys: BTreeSet<Vec<u8>> = records(case, 1_000).into_iter().map(|r| r.key).collect();
    assert_eq!(keys.len(), 1_000);
}

#[test]
fn impossible_cases_are_refused() {
    let refused = |case: Case| Traffic::new(case, 0).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(refused(Case { visits_per_s: f64::NAN, ..Case::default() }).contains("visits_per_s"));
    assert!(refused(Case { visits_per_s: 0.0, ..Case::default() }).contains("visits_per_s"));
    assert!(refused(Case { users: 0, ..Case::default() }).contains("users"));
    assert!(refused(Case { error_rate: 1.5, ..Case::default() }).contains("error_rate"));
    assert!(refused(Case { latency_p95_ms: 1.0, ..Case::default() }).contains("latency_p95_ms"));
    assert!(refused(Case { experiments: Vec::new(), ..Case::default() }).contains("at least one"));
    let fault = Fault {
        at_s: 0.0,
        until_s: None,
        experiment: "new-checkout".into(),
        stagger_s: 0.0,
        bucket: "blue".into(),
        segment: None,
        effect: Effect::default(),
    };
    assert!(refused(Case { faults: vec![fault], ..Case::default() }).contains("`blue`"));
}

#[test]
fn a_fault_of_a_segment_strikes_those_who_belong_to_it() {
    let effect = Effect { errors: 0.5, ..Effect::default() };
    let fault = |segment: &str| Fault {
        at_s: 0.0,
        until_s: None,
        experiment: "new-checkout".into(),
        stagger_s: 0.0,
        bucket: "treatment".into(),
        segment: Some(segment.into()),
        effect,
    };
    let case = Case { faults: vec![fault("region=uk")], ..Case::default() };
    let mut failed = [[0.0; 2]; 2];
    for value in records(case, 20_000).iter().map(json).filter(|value| value["event"] == "request") {
        let cell = &mut failed[usize::from(value["attributes"]["region"] == "uk")];
        cell[0] += f64::from(u8::from(value["error"] == true));
        cell[1] += 1.0;
    }
    let [others, struck] = failed.map(|[x, n]| x / n);
    // Half of those in the region are in the treatment.
    assert!(others < 0.03 && (0.2..0.35).contains(&struck), "{others} {struck}");
    let refused = Traffic::new(Case { faults: vec![fault("region=mars")], ..Case::default() }, 0).err().unwrap().to_string();
    assert!(refused.contains("`region=mars`"), "{refused}");
}

#[test]
fn requests_follow_their_exposure_after_the_delay() {
    let case = Case { requests_per_visit: 2, request_delay_ms: 100, users: 50, ..Case::default() };
    let mut exposed = std::collections::BTreeMap::new();
    let mut requests = 0;
    for record in records(case, 1_000) {
        if record.exposed.is_some() {
            exposed.insert(record.user, record.ts);
        } else {
            requests += 1;
            assert_eq!(record.ts - exposed[&record.user], 100);
        }
    }
    assert!(requests > 600);
}

#[test]
fn ids_are_unique_where_asked_for() {
    let all = records(Case { ids: true, ..busy() }, 2_000);
    let ids: BTreeSet<String> = all.iter().map(|r| json(r)["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 2_000);
}
