//! What a Judge keeps of one that followed other rules: after a restart, or where the rules were changed while it ran.
//!
//! What is asked as before keeps its windows, its evidence and its verdicts. What is asked anew begins with a pane that no record had
//! reached before: units of earlier cohorts do not count for it, as nobody knows what they had done.

use super::books::{Book, Books, is_asked_for, statistics};
use super::segments::compared;
use super::{Guard, Judge, State};
use crate::engine::decision::{Notice, NoticeKind, Output};
use crate::engine::kept;
use crate::engine::plan::Signal;
use crate::engine::shape::{Shape, places};
use crate::engine::time::{Millis, Pane};

impl Judge {
    /// Takes up a state that a Judge of the same experiment left, whose rules were of the shape `was`, and now are of the shape `is`.
    /// `judged`: the time that had come since; `begin`: the first pane that counts for what is new.
    ///
    /// # Errors
    /// The bytes are no state.
    pub fn restore(
        &mut self,
        state: &[u8],
        (was, is): (&Shape, &Shape),
        (judged, begin): (Option<Pane>, Pane),
        out: &mut Output,
    ) -> Result<(), String> {
        if was.whole != is.whole {
            return Ok(());
        }
        let mut old: State = kept::decode(state).map_err(|e| format!("the state of `{}` {e}", self.plan.experiment))?;
        // Had anything but the time changed, it would have been saved anew.
        old.at = old.at.max(judged.filter(|_| old.at.is_some()));
        match was == is {
            true => self.state = old,
            false => self.carry(old, was, is, begin),
        }
        self.state.windows.iter_mut().flatten().for_each(super::Window::recount);
        if was.weights != is.weights {
            self.follow_weights(begin, out);
        }
        Ok(())
    }

    fn carry(&mut self, old: State, was: &Shape, is: &Shape, begin: Pane) {
        let guardrails = places(&is.guardrails, &was.guardrails);
        let fresh = std::mem::replace(&mut self.state, old);
        let old = &mut self.state;
        let mut windows = fresh.windows;
        for (index, before) in places(&is.windows, &was.windows).into_iter().enumerate() {
            if let Some(before) = before {
                windows[fresh.window_of[index]].clone_from(&old.windows[old.window_of[before]]);
            }
        }
        (old.windows, old.window_of) = (windows, fresh.window_of);
        old.guards = kept_ones(&guardrails, &old.guards, fresh.guards);
        old.quality = fresh.quality.carried(&old.quality, was, is);
        old.funnels = fresh.funnels.carried(&old.funnels, &places(&is.funnels, &was.funnels));
        old.rollout.phases.renumber(&places(&is.signals, &was.signals));
        let books = self.carry_evidence(&guardrails, &places(&is.signals, &was.signals), begin);
        let old_segments = std::mem::replace(&mut self.state.segments, fresh.segments);
        if was.segments == is.segments {
            self.state.segments = old_segments;
            let all = Books { list: &self.state.evidence, of: &self.state.book_of };
            for segment in &mut self.state.segments.list {
                let mut before = std::mem::take(&mut segment.evidence);
                let own = |(book, from): (usize, &Option<usize>)| {
                    from.and_then(|from| before.get_mut(from)?.take()).or_else(|| compared(&self.plan, all, book, self.pane_ms))
                };
                segment.evidence = books.iter().enumerate().map(own).collect();
                let none = vec![vec![Guard::default(); self.plan.buckets.len()]; guardrails.len()];
                segment.guards = kept_ones(&guardrails, &segment.guards, none);
            }
        }
    }

    /// Gives each guardrail its evidence: its own where it asks what it asked, else one that begins. Returns which each was, by number
    /// before.
    fn carry_evidence(&mut self, guardrails: &[Option<usize>], signals: &[Option<usize>], begin: Pane) -> Vec<Option<usize>> {
        let (list, of) = (std::mem::take(&mut self.state.evidence), std::mem::take(&mut self.state.book_of));
        // By number before: who goes on with it.
        let mut users: Vec<(Option<usize>, usize, Vec<usize>)> = Vec::new();
        for signal in (0..self.plan.signals.len()).filter(|signal| is_asked_for(&self.plan, *signal)) {
            let shown = matches!(self.plan.signals[signal], Signal::Retention { .. });
            let mine = (0..guardrails.len()).filter(|g| self.plan.question(*g).signal == signal);
            let mut entries: Vec<(Option<usize>, Vec<usize>)> = Vec::new();
            for guardrail in mine {
                let before = guardrails[guardrail].and_then(|before| of[before]);
                match entries.iter_mut().find(|(from, _)| *from == before) {
                    Some((_, mine)) => mine.push(guardrail),
                    None => entries.push((before, vec![guardrail])),
                }
            }
            let unguarded = || signals[signal].and_then(|before| list.iter().position(|book| book.signal == before));
            if entries.is_empty() && shown {
                entries.push((unguarded(), Vec::new()));
            }
            users.extend(entries.into_iter().map(|(from, mine)| (from, signal, mine)));
        }
        let mut list: Vec<Option<Book>> = list.into_iter().map(Some).collect();
        self.state.book_of = vec![None; guardrails.len()];
        for (index, (from, signal, mine)) in users.iter().enumerate() {
            mine.iter().for_each(|guardrail| self.state.book_of[*guardrail] = Some(index));
            let before = from.and_then(|from| list[from].take());
            let statistics_anew = || statistics(&self.plan, *signal, mine, self.pane_ms);
            self.state.evidence.push(match before {
                Some(book) => Book { signal: *signal, ..book },
                None => Book { signal: *signal, from: begin, statistics: statistics_anew() },
            });
        }
        users.into_iter().map(|(from, ..)| from).collect()
    }

    /// The rules give other shares to the present phase than before.
    fn follow_weights(&mut self, begin: Pane, out: &mut Output) {
        let phase = self.state.phase;
        let planned = self.plan.phases.get(phase as usize).and_then(|phase| phase.weights.clone());
        let weights = planned.or_else(|| (phase == 0).then(|| self.plan.first_weights())).unwrap_or_else(|| self.state.weights.clone());
        if weights != self.state.weights {
            let named: Vec<(String, f64)> = self.plan.buckets.iter().map(|b| b.name.clone()).zip(weights).collect();
            self.move_to(begin.start(self.pane_ms), Some(phase), &named, None, out);
        }
    }

    /// Takes over what another Judge of the experiment had decided, before its rules were changed at `at`. A new revision arms all anew.
    pub fn inherit(&mut self, from: Judge, at: Millis, out: &mut Output) {
        if from.plan.revision != self.plan.revision {
            for decision in from.in_force.into_values().chain(from.ahead.into_values()) {
                let text = format!("{} of {} re-armed by revision {}", decision.guardrail, decision.experiment, self.plan.revision);
                out.notices.push(Notice { kind: NoticeKind::Resolved, at, decision, text });
            }
            return;
        }
        from.in_force.values().for_each(|decision| self.note_tripped(decision));
        (self.in_force, self.ahead) = (from.in_force, from.ahead);
    }
}

/// Of each guardrail, what it was before, where it asks the same.
fn kept_ones(guardrails: &[Option<usize>], old: &[Vec<Guard>], fresh: Vec<Vec<Guard>>) -> Vec<Vec<Guard>> {
    guardrails.iter().zip(fresh).map(|(before, fresh)| before.and_then(|before| old.get(before).cloned()).unwrap_or(fresh)).collect()
}
