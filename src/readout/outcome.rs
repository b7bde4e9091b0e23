//! What the figures say: lift, guardrails, what to do, and where the flag stands.

use super::Dossier;
use crate::report::Unit;
use serde_json::Value;

/// What is suggested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Advice {
    RollBack,
    Iterate,
    /// It runs, and nothing is proven yet.
    GoOn,
    Ship,
}

impl Advice {
    pub fn name(self) -> &'static str {
        match self {
            Advice::RollBack => "roll back",
            Advice::Iterate => "iterate",
            Advice::GoOn => "go on",
            Advice::Ship => "ship",
        }
    }
}

/// What is suggested for one bucket, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Suggestion {
    pub bucket: String,
    pub advice: Advice,
    pub reason: String,
}

/// The state of an experiment, read by name.
#[derive(Clone, Copy)]
pub struct State<'d>(pub &'d Value);

pub fn rows<'v>(value: &'v Value, key: &str) -> impl Iterator<Item = &'v Value> + Clone {
    value[key].as_array().map_or(&[][..], Vec::as_slice).iter()
}

pub fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

pub fn number(value: &Value) -> String {
    value.as_f64().map_or(String::new(), |v| Unit::Of(String::new()).show(v))
}

impl<'d> State<'d> {
    pub fn buckets(self) -> impl Iterator<Item = &'d Value> + Clone {
        rows(self.0, "buckets")
    }

    pub fn baseline(self) -> &'d str {
        self.buckets().find(|b| b["baseline"] == true).map_or("", |b| text(b, "bucket"))
    }

    /// Guardrails of a bucket, the comparison of the primary metric among them.
    pub fn guardrails(self, bucket: &'d str) -> impl Iterator<Item = &'d Value> + Clone {
        rows(self.0, "guardrails").filter(move |g| text(g, "bucket") == bucket)
    }

    /// The comparison of the primary metric.
    pub fn lift(self, bucket: &'d str) -> Option<&'d Value> {
        self.guardrails(bucket).find(|g| g["primary"] == true)
    }

    pub fn has_ended(self) -> bool {
        matches!(text(&self.0["rollout"], "stage"), "ended" | "done")
    }
}

/// What an interval says of a change: `Some(true)` that it is good, `Some(false)` that it is harm.
fn proven(guardrail: &Value) -> Option<bool> {
    let [low, high] = interval(guardrail)?;
    let up = guardrail["higher_is_worse"] == false;
    match (low > 0.0, high < 0.0) {
        (true, _) => Some(up),
        (_, true) => Some(!up),
        _ => None,
    }
}

pub fn interval(row: &Value) -> Option<[f64; 2]> {
    Some([row["interval"][0].as_f64()?, row["interval"][1].as_f64()?])
}

/// In what a guardrail's interval and change are measured.
pub fn unit_of_change(guardrail: &Value) -> Unit {
    let (margin, unit) = (&guardrail["max_increase"], text(guardrail, "unit"));
    match (margin["absolute"].is_number(), margin.is_null(), unit) {
        (true, _, "%") => Unit::Points,
        (true, _, unit) => Unit::By(unit.to_owned()),
        (false, true, _) => unit_of_value(guardrail),
        (false, false, _) => Unit::Change,
    }
}

pub fn unit_of_value(guardrail: &Value) -> Unit {
    match text(guardrail, "unit") {
        "%" => Unit::Share,
        unit => Unit::Of(unit.to_owned()),
    }
}

/// Values of the baseline and the bucket: over the whole life where the comparison is of it, else in the window.
pub fn values(state: State<'_>, guardrail: &Value) -> [Option<f64>; 2] {
    let whole = |bucket: &str| {
        let seen = rows(&state.0["whole_life"], "buckets").find(|b| text(b, "bucket") == bucket)?;
        rows(seen, "metrics").find(|m| text(m, "metric") == text(guardrail, "guardrail"))?["value"].as_f64()
    };
    match (whole(state.baseline()), whole(text(guardrail, "bucket"))) {
        (Some(baseline), Some(bucket)) if !guardrail["max_increase"].is_null() => [Some(baseline), Some(bucket)],
        _ => [guardrail["baseline_value"].as_f64(), guardrail["bucket_value"].as_f64()],
    }
}

/// The change of such values in what the margin is of; the bucket's value itself where there is only a limit.
pub fn change_of(guardrail: &Value, [baseline, bucket]: [Option<f64>; 2]) -> Option<f64> {
    let margin = &guardrail["max_increase"];
    match (margin["absolute"].is_number(), margin.is_null()) {
        (true, _) => Some(bucket? - baseline?),
        (false, true) => bucket,
        (false, false) => baseline.filter(|b| *b != 0.0).and_then(|baseline| Some(bucket? / baseline - 1.0)),
    }
}

/// What must not be passed, in the unit of the change: a margin with the sign of harm, else the limit.
pub fn margin(guardrail: &Value) -> Option<f64> {
    let allowed = guardrail["max_increase"]["relative"].as_f64().or(guardrail["max_increase"]["absolute"].as_f64());
    let signed = allowed.map(|allowed| if guardrail["higher_is_worse"] == false { -allowed } else { allowed });
    signed.or(guardrail["limit"].as_f64())
}

/// One for each bucket that is not the baseline, in their order.
pub fn suggestions(dossier: &Dossier) -> Vec<Suggestion> {
    let Some(state) = dossier.state.as_ref().map(State) else { return Vec::new() };
    let others = state.buckets().filter(|b| b["baseline"] != true);
    others.map(|bucket| suggestion(dossier, state, bucket)).collect()
}

/// What stopped a bucket: a rollback or kill in force, and what came of it. The log knows of what came after the figures.
struct Stop<'d> {
    decision: &'d Value,
    at: &'d str,
    confirmation: &'d str,
}

fn stop<'d>(dossier: &'d Dossier, bucket: &'d Value) -> Option<Stop<'d>> {
    let said = |kind: &str, d: &Value| dossier.log.iter().any(|e| text(e, "kind") == kind && e["decision"] == d["decision"]);
    let of_bucket = |d: &&Value| text(d, "bucket") == text(bucket, "bucket");
    let stops = |d: &&Value| ["rollback", "kill"].contains(&text(d, "action")) && d["covered_by"].is_null();
    let follow_up = |criterion: &str, after: &Value| {
        let since = text(after, "decided_at");
        dossier.decisions.iter().any(|d| of_bucket(&d) && text(d, "criterion") == criterion && text(d, "decided_at") > since)
    };
    let first = |d: &&Value| !["confirm_within", "undone"].contains(&text(d, "criterion"));
    let found = dossier.decisions.iter().filter(of_bucket).filter(stops).filter(first).rfind(|d| !said("resolved", d))?;
    let seen = text(&bucket["stopped"], "confirmation");
    let confirmation = match (text(found, "mode"), found["held_by"].is_null()) {
        ("observe", _) => "observed",
        (_, false) => "held",
        _ if follow_up("undone", found) => "undone",
        _ if said("confirmed", found) => "confirmed",
        _ if follow_up("confirm_within", found) => "unconfirmed",
        _ if seen.is_empty() => "waiting",
        _ => seen,
    };
    Some(Stop { decision: found, at: text(found, "decided_at"), confirmation })
}

fn suggestion(dossier: &Dossier, state: State<'_>, bucket: &Value) -> Suggestion {
    let name = text(bucket, "bucket");
    let says = |advice, reason: String| Suggestion { bucket: name.to_owned(), advice, reason };
    if let Some(stop) = stop(dossier, bucket) {
        let why = text(stop.decision, "reason");
        let done = match (text(stop.decision, "action"), stop.confirmation) {
            ("kill", "observed") => "a kill was decided and, in observe mode, not sent",
            (_, "observed") => "a rollback was decided and, in observe mode, not sent",
            ("kill", _) => "it was killed",
            _ => "it was rolled back",
        };
        return says(Advice::RollBack, format!("{done}: {why}"));
    }
    let mut guardrails = state.guardrails(name);
    if let Some(breached) = guardrails.clone().find(|g| text(g, "verdict") == "breach") {
        let advice = if ["rollback", "kill"].contains(&text(breached, "on_breach")) { Advice::RollBack } else { Advice::Iterate };
        return says(advice, format!("{} is in breach", text(breached, "guardrail")));
    }
    let lift = state.lift(name);
    if let Some(lift) = lift.filter(|lift| proven(lift) == Some(false)) {
        return says(Advice::RollBack, format!("{} got worse: {}", text(lift, "guardrail"), shown(state, lift)));
    }
    if let Some(check) = rows(state.0, "quality").find(|q| text(q, "verdict") == "breach") {
        return says(Advice::Iterate, format!("the data cannot be trusted: {}", text(check, "reason")));
    }
    if let Some(hold) = rows(state.0, "holds").next() {
        return says(Advice::Iterate, format!("it is held by {}: {}", text(hold, "by"), text(hold, "reason")));
    }
    let unknown = guardrails.find(|g| g["primary"] != true && text(g, "verdict") != "safe");
    let open = if state.has_ended() { Advice::Iterate } else { Advice::GoOn };
    if let Some(unknown) = unknown {
        let why = if text(unknown, "verdict") == "no_data" { "has no data" } else { "is not proven safe" };
        return says(open, format!("{} {why}: {}", text(unknown, "guardrail"), text(unknown, "reason")));
    }
    match lift {
        Some(lift) if proven(lift) == Some(true) => {
            says(Advice::Ship, format!("{} improved ({}), and every guardrail is safe", text(lift, "guardrail"), shown(state, lift)))
        }
        Some(lift) => says(
            open,
            format!("every guardrail is safe, and the lift of {} is not proven: {}", text(lift, "guardrail"), shown(state, lift)),
        ),
        None if state.has_ended() => says(Advice::Ship, "every guardrail is safe; no primary metric was tested".to_owned()),
        None => says(open, "every guardrail is safe so far; no primary metric is tested".to_owned()),
    }
}

/// A guardrail's change with its interval.
pub fn shown(state: State<'_>, row: &Value) -> String {
    let unit = unit_of_change(row);
    match (change_of(row, values(state, row)), interval(row)) {
        (Some(change), Some([low, high])) => format!("{} [{}, {}]", unit.show(change), unit.show(low), unit.show(high)),
        (Some(change), None) => format!("{}, interval not known yet", unit.show(change)),
        (None, _) => "no value".to_owned(),
    }
}

/// Where the flag stands for each bucket, by what exposures showed.
pub fn flag(dossier: &Dossier) -> Vec<(String, String)> {
    let Some(state) = dossier.state.as_ref().map(State) else { return Vec::new() };
    let of = |bucket: &Value| {
        let rate = bucket["exposure_rate"].as_f64().unwrap_or(0.0);
        let told = match stop(dossier, bucket) {
            None if state.has_ended() => "not stopped; the experiment has ended".to_owned(),
            None => format!("on: {rate:.1} exposures/s when last seen"),
            Some(Stop { decision, at, confirmation }) => {
                let action = if text(decision, "action") == "kill" { "killed" } else { "rolled back" };
                match confirmation {
                    "confirmed" => format!("off: {action} at {at}, and exposures stopped (confirmed)"),
                    "unconfirmed" => format!("NOT off as far as exposures show: {action} at {at}, and they went on (unconfirmed)"),
                    "undone" => format!("on again: {action} at {at}, then exposures came back (undone)"),
                    "observed" => format!("unchanged: {action} at {at} in observe mode, nothing was sent"),
                    "held" => format!("unchanged: the action was held back at {at} and waits for a person"),
                    _ => format!("{action} at {at}; whether exposures stop is not known yet"),
                }
            }
        };
        (text(bucket, "bucket").to_owned(), told)
    };
    state.buckets().map(of).collect()
}
