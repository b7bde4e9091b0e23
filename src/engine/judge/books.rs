//! Which evidence is whose: questions (guardrails, secondary metrics) about the same signal share its statistics, those that are asked since
//! the same pane.

use crate::engine::evidence::{Booking, SignalEvidence, Watched};
use crate::engine::plan::{Plan, Signal};
use crate::engine::time::{Millis, Pane};
use serde::{Deserialize, Serialize};

/// Statistics of a signal, for what asks for them since the same pane.
#[derive(Serialize, Deserialize)]
pub struct Book {
    pub signal: usize,
    /// First pane that counts: later than the experiment's own where rules were changed while it ran.
    pub from: Pane,
    pub statistics: SignalEvidence,
}

/// All of them.
#[derive(Clone, Copy)]
pub struct Books<'b> {
    pub list: &'b [Book],
    /// By question.
    pub of: &'b [Option<usize>],
}

impl Book {
    /// How the observations of all units are booked here.
    pub fn book<'a>(&self, of_all: &Booking<'a>) -> Booking<'a> {
        Booking { first_cohort: of_all.first_cohort.max(self.from), ..*of_all }
    }
}

/// Evidence of all units for a plan that begins: one for each signal that is asked for; and which is whose.
pub fn begin(plan: &Plan, pane_ms: Millis) -> (Vec<Book>, Vec<Option<usize>>) {
    let (mut books, mut book_of) = (Vec::new(), vec![None; plan.questions().count()]);
    for signal in (0..plan.signals.len()).filter(|signal| is_asked_for(plan, *signal)) {
        let mine: Vec<usize> = plan.questions().enumerate().filter(|(_, g)| g.signal == signal).map(|(index, _)| index).collect();
        mine.iter().for_each(|g| book_of[*g] = Some(books.len()));
        books.push(Book { signal, from: Pane(i64::MIN), statistics: statistics(plan, signal, &mine, pane_ms) });
    }
    (books, book_of)
}

/// Statistics of a signal that these questions ask for.
pub fn statistics(plan: &Plan, signal: usize, questions: &[usize], pane_ms: Millis) -> SignalEvidence {
    let mine = || questions.iter().map(|index| plan.question(*index));
    let (watched, expected) = (mine().filter_map(Watched::of).collect(), mine().find_map(|g| g.expected));
    let all = SignalEvidence::new(&plan.signals[signal], plan.buckets.len(), watched, expected, pane_ms);
    if mine().any(|g| g.max_increase.is_some()) { all } else { all.of_limit() }
}

/// Whether a test asks for a signal: a comparison with the baseline, or a limit on clustered observations. Retention is shown in any case.
pub fn is_asked_for(plan: &Plan, signal: usize) -> bool {
    let mut mine = plan.questions().filter(|g| g.signal == signal);
    match plan.signals[signal] {
        Signal::Count { .. } => mine.any(|g| g.max_increase.is_some()),
        Signal::Retention { .. } => true,
        _ => mine.next().is_some(),
    }
}
