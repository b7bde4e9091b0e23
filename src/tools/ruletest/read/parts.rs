//! What a case has happen: faults, records, operations, answers.

use super::{DAY, LONGEST, Reader, bucket};
use crate::engine::time::Millis;
use crate::rules::diagnostic::{nearest, quote};
use crate::rules::quantity::{Quantity, duration, percent};
use crate::rules::yaml::{Entry, Kind, Node};
use crate::tools::ruletest::case::{Answer, Content, Does, Fault, Operate, Receiver, Reply, Written};
use crate::tools::simulate::{Effect, Harm, Size, Spec, World};
use serde_json::Value;
use std::collections::BTreeMap;

impl Reader<'_> {
    pub(super) fn fault(&mut self, length: Option<Millis>, partitions: usize) -> Option<Fault> {
        let from = self.time("from", length)?;
        let until = self.node.get("until").and_then(Node::text).and_then(duration).unwrap_or(Millis::MAX);
        if let Some(node) = self.node.get("until").filter(|_| until <= from) {
            self.faults.error(&node.span, "GR3002", "over before it begins", "later than `from`");
        }
        let part =
            |key: &'static str| self.node.get(key).map(|n| (n, n.get("share").and_then(Node::text).and_then(percent).unwrap_or(1.0)));
        let (late, missing) = (part("late"), part("missing"));
        let by = late.and_then(|(node, share)| Some((node.get("by")?, share)));
        let by = by.and_then(|(node, share)| Some((node, node.text().and_then(duration)?, share)));
        if let Some((node, ..)) = by.filter(|(_, by, _)| !(1..=DAY).contains(by)) {
            self.faults.error(&node.span, "GR2404", "a time out of range", "above 0 and at most 1d");
        }
        let changes = self.node.get("change").map_or(&[][..], Node::entries);
        let fault = Fault {
            from,
            until,
            bucket: self.node.get("bucket").and_then(|node| bucket(node, &self.under.rule.plan, self.faults)),
            partition: self.partition(partitions),
            changes: changes.iter().map(|e| format!("{} {}", e.key, e.value.text().unwrap_or_default())).collect(),
            weights: self.node.get("weights").map(|node| self.weights(node)),
            exposures_go_on: self.flag("exposures_go_on"),
            silence: self.flag("silence"),
            other_bucket: self.share("other_bucket"),
            late: by.map(|(_, by, share)| (by, share)),
            duplicates: self.share("duplicates"),
            missing: missing.and_then(|(node, share)| Some((node.get("field")?.text()?.to_owned(), share))),
            invalid: self.share("invalid"),
        };
        if fault.text().is_empty() {
            let label = "add `change`, `silence`, `late` or another of its keys";
            self.faults.error(&self.node.span, "GR3004", "a fault that does nothing", label);
        }
        Some(fault)
    }

    fn weights(&mut self, node: &Node) -> Vec<f64> {
        let plan = &self.under.rule.plan;
        let mut weights = vec![0.0; plan.buckets.len()];
        for entry in node.entries() {
            let named = Node { span: entry.key_span.clone(), kind: Kind::Scalar { text: entry.key.clone(), plain: false } };
            if let Some(bucket) = bucket(&named, plan, self.faults) {
                weights[bucket] = entry.value.text().and_then(percent).unwrap_or(0.0);
            }
        }
        let sum: f64 = weights.iter().sum();
        if (sum - 1.0).abs() > 1e-3 {
            let message = format!("shares add to {}%", (sum * 1e6).round() / 1e4);
            self.faults.error(&node.span, "GR2101", message, "they must add to 100%");
        }
        weights
    }

    /// What the faults do to metrics.
    pub(super) fn harms(&mut self, spec: &Spec) -> Vec<Harm> {
        let of = |reader: &mut Reader<'_>| Some(reader.harm(spec));
        self.list("faults", of).into_iter().flatten().collect()
    }

    fn harm(&mut self, spec: &Spec) -> Vec<Harm> {
        let changes = self.node.get("change").map_or(&[][..], Node::entries);
        let healthy = spec.healthy();
        let worlds: Vec<World> = changes.iter().filter_map(|entry| self.change(entry, spec)).map(|effect| spec.world(&effect)).collect();
        let Some(world) = worlds.into_iter().reduce(|a, b| a.and(&b, &healthy)) else { return Vec::new() };
        let segment = self.node.get("segment").and_then(|node| {
            let found = spec.segment(node.text()?);
            if found.is_none() {
                let known = spec.traffic.segments.iter().flat_map(|(name, values)| values.iter().map(move |(v, _)| format!("{name}={v}")));
                let known: Vec<String> = known.collect();
                let label = if known.is_empty() {
                    "`segments` of `traffic` has none".to_owned()
                } else {
                    format!("there are {}", known.join(", "))
                };
                self.faults.error(&node.span, "GR3005", "the traffic has no such segment", label);
            }
            found
        });
        let named = self.node.get("bucket").and_then(Node::text).and_then(|name| spec.plan.bucket(name));
        let others: Vec<usize> = (0..spec.plan.buckets.len()).filter(|b| !spec.plan.buckets[*b].baseline).collect();
        if named.is_none() && others.len() > 1 && self.node.get("bucket").is_none() {
            self.faults.error(&self.node.span, "GR1003", "a change of which bucket?", "add `bucket`");
        }
        let bucket = named.unwrap_or(others.first().copied().unwrap_or(0));
        let at = |key: &str| self.node.get(key).and_then(Node::text).and_then(duration);
        vec![Harm { bucket, world, segment, onset: at("from").unwrap_or(0), until: at("until").unwrap_or(Millis::MAX) }]
    }

    fn change(&mut self, entry: &Entry, spec: &Spec) -> Option<Effect> {
        let text = entry.value.text()?;
        let factor = text.strip_prefix('x').and_then(|rest| match Quantity::parse(rest) {
            Some(Quantity::Number(factor)) if factor > 0.0 && factor != 1.0 => Some(format!("{:+}%", (factor - 1.0) * 100.0)),
            _ => None,
        });
        match Effect::parse(&format!("{}={}", entry.key, factor.as_deref().unwrap_or(text)), &spec.plan) {
            Ok(Effect { metric, size: Size::Absolute(ms) }) if metric.starts_with("latency_") && ms < 0.0 => {
                self.faults.error(&entry.value.span, "GR3005", "latencies cannot be made shorter by a time", "write `-20%`");
                None
            }
            Ok(effect) if effect.possible(&spec.traffic) => Some(effect),
            Ok(effect) => {
                self.faults.error(&entry.value.span, "GR3005", format!("{effect} would leave the range of a share"), "0% to 100%");
                None
            }
            Err(message) => {
                let span = if message.starts_with("no guardrail") { &entry.key_span } else { &entry.value.span };
                self.faults.error(span, "GR3005", "not a change that can be played", message);
                None
            }
        }
    }

    pub(super) fn record(&mut self, length: Option<Millis>, partitions: usize) -> Option<Written> {
        let at = self.time("at", length)?;
        let node = self.node.get("record")?;
        let record = match node.to_json() {
            Value::Object(mut fields) => {
                let about =
                    fields.contains_key("bucket") || matches!(fields.get("event").and_then(Value::as_str), Some("phase" | "annotation"));
                if about && !fields.contains_key("experiment") {
                    fields.insert("experiment".into(), self.under.rule.plan.experiment.clone().into());
                }
                Content::Event(fields)
            }
            Value::String(text) => Content::Bytes(text),
            _ => {
                self.faults.error(&node.span, "GR1002", "a record is a mapping, or a text", format!("this is {}", node.noun()));
                return None;
            }
        };
        let (times, partition) = (self.whole("times", 1, 10_000) as u32, self.partition(partitions).unwrap_or(0));
        Some(Written { at, record, times, partition })
    }

    pub(super) fn operation(&mut self, length: Option<Millis>) -> Option<Operate> {
        let at = self.time("at", length)?;
        let word = self.node.get("do")?.text()?;
        let fits: &[&str] = match word {
            "hold" => &["for"],
            "phase" => &["phase", "weights"],
            "resume" => &[],
            _ => &["bucket"],
        };
        for entry in self.node.entries().iter().filter(|e| !["at", "do"].contains(&e.key.as_str()) && !fits.contains(&e.key.as_str())) {
            let label = if fits.is_empty() { "it has no further keys".to_owned() } else { format!("it has {}", fits.join(", ")) };
            self.faults.error(&entry.key_span, "GR2503", format!("{} does not go with {}", quote(&entry.key), quote(word)), label);
        }
        let bucket = self.node.get("bucket").and_then(|node| {
            bucket(node, &self.under.rule.plan, self.faults);
            node.text().map(str::to_owned)
        });
        let does = match word {
            "hold" => Does::Hold(self.span("for", 1, LONGEST)),
            "resume" => Does::Resume,
            "rollback" => Does::Rollback,
            "kill" => Does::Kill,
            _ => self.phase()?,
        };
        Some(Operate { at, does, bucket })
    }

    fn phase(&mut self) -> Option<Does> {
        let Some(node) = self.node.get("phase") else {
            self.faults.error(&self.node.span, "GR1003", "which phase?", "add `phase`: its number, from 0, or its name");
            return None;
        };
        let (plan, name) = (&self.under.rule.plan, node.text()?);
        let number = plan
            .phases
            .iter()
            .position(|p| p.name == name)
            .or_else(|| name.parse().ok().filter(|n| plan.phases.is_empty() || *n < plan.phases.len()));
        if number.is_none() {
            let names: Vec<&str> = plan.phases.iter().map(|p| p.name.as_str()).collect();
            let label = if names.is_empty() {
                "it names none: give a number, from 0".to_owned()
            } else {
                format!("there are {}", names.join(", "))
            };
            self.faults.error(&node.span, "GR3006", format!("the rule has no phase {}", quote(name)), label);
        }
        let weights = match self.node.get("weights") {
            Some(node) => self.weights(node),
            None => {
                let planned = plan.phases.get(number?).and_then(|p| p.weights.clone());
                planned.unwrap_or_else(|| plan.buckets.iter().map(|b| b.weight).collect())
            }
        };
        Some(Does::Phase(name.to_owned(), weights))
    }

    pub(super) fn endpoints(&mut self) -> BTreeMap<String, Receiver> {
        let entries = self.node.get("endpoints").map_or(&[][..], Node::entries);
        let routed = |name: &str| self.under.rule.routes.values().any(|r| r.endpoint == name);
        let escalated = |name: &str| entries.iter().any(|e| e.value.get("escalate_to").and_then(Node::text) == Some(name));
        let mut all = BTreeMap::new();
        for entry in entries {
            if !routed(&entry.key) && !escalated(&entry.key) {
                let known = self.under.rule.routes.values().map(|r| r.endpoint.as_str());
                let label = nearest(&entry.key, known)
                    .map_or_else(|| "no route leads to it".to_owned(), |near| format!("did you mean {}?", quote(near)));
                self.faults.error(&entry.key_span, "GR3006", format!("the rule has no endpoint {}", quote(&entry.key)), label);
            }
            let node = &entry.value;
            let (under, folder) = (self.under, self.folder);
            let mut reader = Reader { node, under, folder, faults: &mut *self.faults };
            let timeout = reader.span("timeout", 1, 60_000).unwrap_or(15_000);
            let answers = reader.list("answers", |reader| reader.reply());
            let escalate_to = node.get("escalate_to").and_then(Node::text).map(str::to_owned);
            let given = !answers.is_empty();
            let usual = Receiver::default().answers;
            all.insert(entry.key.clone(), Receiver { answers: if given { answers } else { usual }, escalate_to, timeout });
        }
        all
    }

    fn reply(&mut self) -> Option<Reply> {
        let word = self.node.get("answer").unwrap_or(self.node);
        let text = word.text()?;
        let answer = match text {
            "timeout" => Some(Answer::Timeout),
            "refused" => Some(Answer::Refused),
            _ => text.parse().ok().filter(|status| (200..=599).contains(status)).map(Answer::Status),
        };
        if answer.is_none() {
            self.faults.error(&word.span, "GR3005", "no answer that can be played", "a status from 200 to 599, `timeout` or `refused`");
        }
        Some(Reply { answer: answer?, span: self.span("for", 1, LONGEST), retry_after: self.span("retry_after", 1, DAY) })
    }
}
