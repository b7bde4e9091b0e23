//! What kept state is about, in digests: a restart, or a reload, with other rules keeps what is unchanged, and begins the rest anew.
//!
//! Parts of two plans with the same digest mean the same, however they are numbered.

use super::event::FieldId;
use super::pane::CellId;
use super::plan::{Catalog, FieldTable, Funnel, Guardrail, MissingField, Plan, QualityKind, Signal};
use serde::{Deserialize, Serialize};
use std::fmt::Debug;

/// See the module. The lists are in the order of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Revision, names of the buckets, method: where this differs, nothing means the same.
    pub whole: u64,
    pub buckets: u32,
    /// Designed shares at the start and in each phase.
    pub weights: u64,
    /// Who may take part, and where units belong.
    pub exposures: u64,
    /// Fields of the `missing` check.
    pub missing: u64,
    pub segments: u64,
    pub signals: Vec<u64>,
    pub funnels: Vec<u64>,
    /// What each question asks, but not what is done when a guardrail is breached.
    pub guardrails: Vec<u64>,
    /// Signal and panes of each guardrail's window.
    pub windows: Vec<u64>,
    pub checks: Vec<u64>,
}

impl Shape {
    pub fn of(plan: &Plan, fields: &FieldTable) -> Shape {
        let buckets: Vec<(&str, bool)> = plan.buckets.iter().map(|b| (b.name.as_str(), b.baseline)).collect();
        let weights: Vec<_> = plan.phases.iter().map(|phase| &phase.weights).collect();
        let wanted = |field: &MissingField| {
            let mut source = field.source.clone();
            (named(source.fields_mut(), fields), source, field.pointer.clone())
        };
        let missing = digest(&plan.missing().map(|(fields, _)| fields.iter().map(wanted).collect::<Vec<_>>()));
        let signals: Vec<u64> = plan.signals.iter().map(|signal| signal_digest(signal, fields)).collect();
        let asked = |g: &Guardrail| {
            let Guardrail { name, statistic, window, limit, max_increase, primary, expected, higher_is_worse, .. } = g;
            digest(&(name, signals[g.signal], statistic, window, limit, max_increase, primary, expected, higher_is_worse))
        };
        let funnel = |funnel: &Funnel| {
            let mut funnel = funnel.clone();
            let names = named(funnel.fields_mut(), fields);
            digest(&(names, funnel))
        };
        Shape {
            whole: digest(&(plan.revision, &buckets, plan.method, plan.cuped)),
            buckets: plan.buckets.len() as u32,
            weights: digest(&(plan.buckets.iter().map(|b| b.weight).collect::<Vec<_>>(), weights)),
            exposures: digest(&(&plan.eligibility, &plan.assignment)),
            segments: digest(&plan.segments),
            funnels: plan.funnels.iter().map(funnel).collect(),
            guardrails: plan.questions().map(asked).collect(),
            windows: plan.guardrails.iter().map(|g| digest(&(signals[g.signal], g.window))).collect(),
            checks: plan.quality.iter().map(|check| check_digest(&check.kind, missing)).collect(),
            missing,
            signals,
        }
    }

    /// Cells of a pane.
    fn cells(&self) -> CellId {
        self.buckets * (1 + self.signals.len() as CellId)
    }
}

/// Takes the numbers of fields out of a part of a plan, and returns their names in order.
fn named(ids: Vec<&mut FieldId>, fields: &FieldTable) -> Vec<(String, String)> {
    ids.into_iter().filter_map(|id| fields.entries.get(usize::from(std::mem::take(id))).cloned()).collect()
}

fn signal_digest(signal: &Signal, fields: &FieldTable) -> u64 {
    let mut signal = signal.clone();
    let names = named(signal.fields_mut(), fields);
    digest(&(names, signal))
}

fn check_digest(kind: &QualityKind, missing: u64) -> u64 {
    match kind {
        QualityKind::Missing { max, .. } => digest(&(kind.name(), max, missing)),
        kind => digest(kind),
    }
}

fn digest(of: &impl Debug) -> u64 {
    xxhash_rust::xxh3::xxh3_64(format!("{of:?}").as_bytes())
}

/// Where each of `new` stood in `old`.
pub fn places(new: &[u64], old: &[u64]) -> Vec<Option<usize>> {
    new.iter().map(|digest| old.iter().position(|d| d == digest)).collect()
}

/// What the numbers of experiments, cells, signals and funnels in kept state mean: the experiments in their order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plans(pub Vec<(String, Shape)>);

/// How the numbers of one catalog become those of another.
pub struct Renumber {
    /// First cell of each experiment before, and where those of the last one ended.
    cells: Vec<CellId>,
    /// By number before; `None` where nothing means the same.
    moved: Vec<Option<Moved>>,
}

struct Moved {
    experiment: u32,
    first: CellId,
    /// Numbers now, by those before.
    signals: Vec<Option<usize>>,
    funnels: Vec<Option<usize>>,
    cells: CellId,
    same_exposures: bool,
    same_missing: bool,
}

impl Renumber {
    pub fn new(old: &Plans, catalog: &Catalog) -> Renumber {
        let (mut cells, mut moved) = (vec![0], Vec::new());
        for (name, shape) in &old.0 {
            cells.push(cells[cells.len() - 1] + shape.cells());
            let now = catalog.names.get(name.as_str()).map(|index| (*index, &catalog.shapes[*index as usize]));
            moved.push(now.filter(|(_, now)| now.whole == shape.whole).map(|(experiment, now)| Moved {
                experiment,
                first: catalog.cells[experiment as usize],
                signals: places(&shape.signals, &now.signals),
                funnels: places(&shape.funnels, &now.funnels),
                cells: 1 + now.signals.len() as CellId,
                same_exposures: shape.exposures == now.exposures,
                same_missing: shape.missing == now.missing,
            }));
        }
        Renumber { cells, moved }
    }

    fn moved(&self, experiment: u32) -> Option<&Moved> {
        self.moved.get(experiment as usize)?.as_ref()
    }

    pub fn experiment(&self, experiment: u32) -> Option<u32> {
        Some(self.moved(experiment)?.experiment)
    }

    pub fn signal(&self, experiment: u32, signal: u16) -> Option<u16> {
        let now = self.moved(experiment)?.signals.get(usize::from(signal)).copied()??;
        u16::try_from(now).ok()
    }

    pub fn funnel(&self, experiment: u32, funnel: u8) -> Option<u8> {
        let now = self.moved(experiment)?.funnels.get(usize::from(funnel)).copied()??;
        u8::try_from(now).ok()
    }

    pub fn cell(&self, cell: CellId) -> Option<CellId> {
        let index = self.cells.partition_point(|first| *first <= cell).checked_sub(1)?;
        let moved = self.moved.get(index)?.as_ref()?;
        let before = 1 + moved.signals.len() as CellId;
        let (bucket, place) = ((cell - self.cells[index]) / before, (cell - self.cells[index]) % before);
        let now = match place.checked_sub(1) {
            None => 0,
            Some(signal) => 1 + moved.signals[signal as usize]? as CellId,
        };
        Some(moved.first + bucket * moved.cells + now)
    }

    /// Whether what a pane says of exposures, and of the `missing` check, means the same.
    pub fn quality(&self, experiment: u32) -> [bool; 2] {
        self.moved(experiment).map_or([false; 2], |moved| [moved.same_exposures, moved.same_missing])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::parse_str;
    use std::sync::Arc;

    fn catalog(rules: &[&str]) -> Catalog {
        let mut fields = FieldTable::default();
        let plans = rules.iter().map(|text| {
            let text = format!("guardrail: v1\nbuckets: {{a: {{baseline: true}}, b: {{}}}}\nactions: {{mode: observe}}\n{text}");
            parse_str("r", &text, &mut fields, None).rule.expect("a good rule").plan
        });
        let plans = plans.collect::<Vec<Arc<Plan>>>();
        Catalog::new(plans, fields)
    }

    const TWO: &str = "overview: {experiment: m, owner: o}
metrics: {basket: {kind: mean, event: outcome, value: /value, unit: user}}
guardrails: [{metric: error_rate, limit: 5%}, {metric: basket, max_increase: 5%}]
";

    #[test]
    fn numbers_of_fields_and_signals_mean_nothing() {
        let alone = catalog(&[TWO]);
        let other = "overview: {experiment: a, owner: o}
metrics: {n: {kind: mean, event: page, value: /n, unit: user}}
guardrails: [{metric: n, max_increase: 5%}]
";
        let both = catalog(&[other, TWO]);
        assert_eq!(alone.shapes[0], both.shapes[1]);
        let turned = TWO.replace(
            "[{metric: error_rate, limit: 5%}, {metric: basket, max_increase: 5%}]",
            "[{metric: basket, max_increase: 5%}, {metric: error_rate, limit: 4%}]",
        );
        let turned = catalog(&[&turned]);
        let renumber = Renumber::new(&Plans(vec![("m".into(), Shape::clone(&alone.shapes[0]))]), &turned);
        // Traffic and two signals for each of two buckets.
        let cells: Vec<_> = (0..7).map(|cell| renumber.cell(cell)).collect();
        assert_eq!(cells, [Some(0), Some(2), Some(1), Some(3), Some(5), Some(4), None]);
        assert_eq!(places(&turned.shapes[0].guardrails, &alone.shapes[0].guardrails), [Some(1), None], "another limit");
    }

    #[test]
    fn another_action_is_no_other_question_but_another_revision_is() {
        let shape = |text: &str| catalog(&[text]).shapes[0].clone();
        let milder = TWO.replace("limit: 5%", "limit: 5%, for: 30s, on_breach: notify");
        assert_eq!(shape(TWO), shape(&milder));
        let renewed = format!("revision: 2\n{TWO}");
        assert_ne!(shape(TWO).whole, shape(&renewed).whole);
        let renewed = catalog(&[&renewed]);
        assert_eq!(Renumber::new(&Plans(vec![("m".into(), Shape::clone(&shape(TWO)))]), &renewed).experiment(0), None);
    }
}
