//! A backtest as a page: what would have fired under each rule set, and how the intervals went.

use super::compare::{Cell, Row, compare, lead};
use super::course::{Course, Scale, Step};
use super::{Outcome, Summary};
use crate::engine::decision::{Decision, Timestamp};
use crate::engine::state::{ExperimentState, GuardrailState};
use crate::report::{Axis, Html, Line, Lines, Mark, MarkKind, Page, Point, Unit, thousands};

/// Decisions listed in the page at most.
const DECISIONS: usize = 1_000;

/// The whole page. `of`: what was read, for its head.
pub fn page(of: &str, sides: &[(&str, &Outcome)]) -> String {
    let names: Vec<&str> = sides.iter().map(|(label, _)| *label).collect();
    let Some((_, first)) = sides.first() else { return String::new() };
    let mut page = Page::new("Backtest", under(of, &first.summary));
    if names.len() > 1 {
        page.paragraph(format!("Rule sets: {}. Earlier and later are against {}.", names.join(", "), names[0]));
    }
    page.heading("What would have fired");
    fired(&mut page, &names, &compare(sides));
    let experiments = first.courses.as_ref().map(|courses| courses.left_out).unwrap_or(0);
    if experiments > 0 {
        page.paragraph(format!("Charts are of the first experiments by name; {experiments} more were judged and are in the table."));
    }
    for row in places(sides) {
        match row {
            Place::Experiment(name) => drop(page.heading(name)),
            Place::Guardrail(of) => chart(&mut page, sides, of),
        }
    }
    page.heading("Decisions");
    decisions(&mut page, sides);
    page.heading("Data");
    data(&mut page, &first.summary);
    page.finish()
}

fn under(of: &str, summary: &Summary) -> String {
    let span = summary.first.zip(summary.last).map(|(first, last)| format!(", from {} to {}", Timestamp(first), Timestamp(last)));
    let records = thousands(summary.records);
    format!("{of}: {records} records{}; guardraild {}", span.unwrap_or_default(), env!("CARGO_PKG_VERSION"))
}

fn fired(page: &mut Page, names: &[&str], rows: &[Row]) {
    let head: Vec<&str> = ["experiment", "bucket", "guardrail"].into_iter().chain(names.iter().copied()).collect();
    let row = |row: &Row| {
        let guardrail = row.segment.as_ref().map_or(row.guardrail.clone(), |segment| format!("{} in {segment}", row.guardrail));
        let bucket = if row.bucket.is_empty() { "-" } else { &row.bucket };
        [row.experiment.as_str(), bucket, &guardrail].map(Html::from).into_iter().chain(row.rules.iter().map(cell)).collect()
    };
    page.table(&head, rows.iter().map(row));
}

fn cell(cell: &Cell) -> Html {
    match (&cell.first, cell.verdict) {
        (Some(first), _) => {
            let lead = first.lead_ms.map(|lead_ms| format!(" ({})", lead(lead_ms))).unwrap_or_default();
            Html::strong(first.action.name()).then(format!(" {}{lead}", Timestamp(first.decided_at)))
        }
        (None, Some(verdict)) => Html::verdict(verdict.name()),
        (None, None) => Html::from("-"),
    }
}

/// What charts are headed by, in order.
enum Place<'a> {
    Experiment(&'a str),
    Guardrail(&'a Course),
}

/// Every guardrail that any rule set has followed, by experiment, once.
fn places<'a>(sides: &[(&str, &'a Outcome)]) -> Vec<Place<'a>> {
    let mut courses: Vec<&Course> = Vec::new();
    for course in sides.iter().filter_map(|(_, outcome)| outcome.courses.as_ref()).flat_map(|courses| &courses.courses) {
        if !courses.iter().any(|known| known.is_of(course)) {
            courses.push(course);
        }
    }
    courses.sort_by_key(|course| &course.experiment);
    let mut places = Vec::new();
    for (index, course) in courses.iter().enumerate() {
        if index == 0 || courses[index - 1].experiment != course.experiment {
            places.push(Place::Experiment(&course.experiment));
        }
        places.push(Place::Guardrail(course));
    }
    places
}

/// A guardrail of a bucket, by each rule set that has it.
fn chart(page: &mut Page, sides: &[(&str, &Outcome)], of: &Course) {
    page.subheading(&format!("{} of {}", of.guardrail, of.bucket));
    for (label, outcome) in sides {
        let course = outcome.courses.as_ref().and_then(|courses| courses.courses.iter().find(|course| course.is_of(of)));
        let Some(course) = course else { continue };
        let state = outcome.summary.experiments.iter().find(|state| state.experiment == of.experiment);
        let end = state.and_then(|state| state.guardrails.iter().find(|g| g.guardrail == of.guardrail && g.bucket == of.bucket));
        let whose = if sides.len() > 1 { Html::strong(label).then(": ") } else { Html::default() };
        let caption = whose.then(end.map_or_else(Html::default, ending));
        let steps = outcome.courses.as_ref().map_or(&[][..], |courses| &courses.steps);
        page.figure(caption, &lines(course, &outcome.decisions, steps).svg());
    }
}

fn ending(g: &GuardrailState) -> Html {
    Html::from("at the end ").then(Html::verdict(g.verdict.name())).then(format!(", {}", g.reason))
}

fn lines(course: &Course, decisions: &[Decision], steps: &[Step]) -> Lines {
    let (unit, what, zero) = match &course.scale {
        Scale::Change => (Unit::Change, "change against the baseline", true),
        Scale::Difference(unit) if unit == "%" => (Unit::Points, "difference from the baseline", true),
        Scale::Difference(unit) => (Unit::By(unit.clone()), "difference from the baseline", true),
        Scale::Value(unit) if unit == "%" => (Unit::Share, "value", false),
        Scale::Value(unit) => (Unit::Of(unit.clone()), "value", false),
    };
    let of = |d: &&Decision| (&d.experiment, &d.bucket, &d.guardrail) == (&course.experiment, &course.bucket, &course.guardrail);
    let mark = |d: &Decision| Mark { x: d.decided_at as f64, kind: MarkKind::Decision, label: marked(d) };
    let steps = steps.iter().filter(|step| step.experiment == course.experiment);
    let step = |step: &Step| Mark { x: step.at as f64, kind: MarkKind::Phase, label: step.text.clone() };
    let bound = course.bound.map(|bound| (bound, format!("{} {}", if zero { "margin" } else { "limit" }, unit.show(bound))));
    let with = if course.points.iter().any(|p| p.interval.is_some()) { ", with its anytime-valid interval" } else { "" };
    let points = course.points.iter().map(|p| Point { x: p.at as f64, y: p.value, band: p.interval });
    Lines {
        alt: format!("{} of {} over time: {what}", course.guardrail, course.bucket),
        axis: Axis::Time,
        unit,
        lines: vec![Line { name: format!("{what}{with}"), points: points.collect() }],
        margin: bound,
        zero,
        marks: steps.map(step).chain(decisions.iter().filter(of).map(mark)).collect(),
    }
}

fn marked(d: &Decision) -> String {
    let segment = d.segment.as_ref().map(|segment| format!(" in {segment}")).unwrap_or_default();
    let follow_up = if d.is_follow_up() { format!(" ({})", d.criterion) } else { String::new() };
    format!("{}{segment}{follow_up}", d.action.name())
}

fn decisions(page: &mut Page, sides: &[(&str, &Outcome)]) {
    let mut all: Vec<(&str, &Decision)> = sides.iter().flat_map(|(label, outcome)| outcome.decisions.iter().map(|d| (*label, d))).collect();
    all.sort_by_key(|(_, d)| d.decided_at);
    if all.is_empty() {
        page.paragraph("None.");
        return;
    }
    let several = sides.len() > 1;
    let row = |(label, d): &(&str, &Decision)| {
        let rules = several.then(|| Html::from(*label));
        let at = Html::from(Timestamp(d.decided_at).to_string());
        rules
            .into_iter()
            .chain([
                at,
                Html::strong(d.action.name()),
                Html::from(d.experiment.as_str()),
                Html::from(d.reason.as_str()),
                Html::code(&d.decision),
            ])
            .collect()
    };
    let head: Vec<&str> = several.then_some("rules").into_iter().chain(["time", "action", "experiment", "reason", "decision"]).collect();
    page.table(&head, all.iter().take(DECISIONS).map(row));
    if all.len() > DECISIONS {
        page.paragraph(format!("{} more are in the output of the command alone.", all.len() - DECISIONS));
    }
}

/// What became of the records, and what the checks of the data said.
fn data(page: &mut Page, summary: &Summary) {
    let c = &summary.counts;
    let outcomes = [
        ("accepted", c.accepted),
        ("late", c.late),
        ("duplicate", c.duplicate),
        ("unattributed", c.unattributed),
        ("of unknown experiments", c.unknown_experiment),
        ("inactive", c.inactive),
        ("unmapped", c.unmapped),
        ("rejected", c.rejected.total()),
    ];
    let share = |n: u64| Unit::Share.show(n as f64 / summary.records.max(1) as f64);
    page.table(
        &["records", "#", "#share"],
        outcomes.map(|(name, n)| vec![Html::from(name), Html::from(thousands(n)), Html::from(share(n))]),
    );
    if let serde_json::Value::Object(reasons) = serde_json::to_value(&c.rejected).unwrap_or_default()
        && !reasons.is_empty()
    {
        page.table(
            &["rejected because", "#"],
            reasons.iter().map(|(reason, n)| vec![Html::from(reason.as_str()), Html::from(n.to_string())]),
        );
    }
    let checks = summary.experiments.iter().flat_map(|state| state.quality.iter().map(move |check| (state, check)));
    let rows = checks.map(|(state, check)| {
        vec![
            Html::from(state.experiment.as_str()),
            Html::from(check.check.as_str()),
            Html::verdict(check.verdict.name()),
            Html::from(check.reason.as_str()),
        ]
    });
    page.table(&["experiment", "check", "verdict", "why"], rows);
    let flawed = |state: &ExperimentState| {
        let flaws: Vec<String> =
            state.data.flaws().iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{} {n}", name.replace('_', " "))).collect();
        (!flaws.is_empty()).then(|| Html::strong(&state.experiment).then(format!(": {}", flaws.join(", "))))
    };
    let flaws: Vec<Html> = summary.experiments.iter().filter_map(flawed).collect();
    if !flaws.is_empty() {
        page.list(flaws);
    }
}
