//! What a case expects, and how it is written.

use super::keys::{ABOUT, keys_of};
use crate::engine::decision::{Action, Verdict};
use crate::engine::plan::Plan;
use crate::engine::time::Millis;
use crate::rules::diagnostic::{Faults, nearest, quote};
use crate::rules::quantity::{duration, percent};
use crate::rules::yaml::{Kind, Node};
use crate::tools::simulate::exact;
use std::fmt;
use std::ops::Range;

/// How sure one must be of a share of seeds: the chance of a pass, if the share were on the wrong side, is at most `1 - SURE`.
pub const SURE: f64 = 0.95;

#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    pub span: Range<usize>,
    pub is: Is,
}

/// Times are ms after the start.
#[derive(Clone, Debug, PartialEq)]
pub enum Is {
    Verdict {
        at: Millis,
        guardrail: String,
        bucket: Option<String>,
        segment: Option<String>,
        one_of: Vec<Verdict>,
    },
    /// Decisions like these, from when until when.
    Acts {
        like: Like,
        span: (Millis, Millis),
        times: Option<Count>,
        share: Option<Share>,
    },
    Never {
        like: Like,
        span: (Millis, Millis),
    },
    Stopped {
        at: Millis,
        bucket: String,
        state: String,
    },
    Go {
        at: Millis,
        wanted: bool,
    },
    Stop {
        at: Millis,
        wanted: bool,
    },
    Endpoint {
        endpoint: String,
        span: (Millis, Millis),
        event_type: Option<String>,
        got: Got,
    },
    Outcome {
        outcome: String,
        count: Count,
    },
}

/// Which decisions are meant.
#[derive(Clone, Debug, PartialEq)]
pub struct Like {
    pub actions: Vec<Action>,
    pub guardrail: Option<String>,
    pub criterion: Option<String>,
    pub bucket: Option<String>,
    pub segment: Option<String>,
    pub held_by: Option<String>,
}

/// What an endpoint got; `None` is any.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Got {
    pub attempts: Option<Count>,
    pub deliveries: Option<Count>,
    pub delivered: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    Exactly(u64),
    AtLeast(u64),
    AtMost(u64),
}

impl Count {
    fn parse(text: &str) -> Option<Count> {
        let number = |text: &str| text.trim().parse().ok();
        if let Some(rest) = text.strip_prefix(">=") {
            return number(rest).map(Count::AtLeast);
        }
        match text.strip_prefix("<=") {
            Some(rest) => number(rest).map(Count::AtMost),
            None => number(text).map(Count::Exactly),
        }
    }

    pub fn holds(self, n: u64) -> bool {
        match self {
            Count::Exactly(wanted) => n == wanted,
            Count::AtLeast(least) => n >= least,
            Count::AtMost(most) => n <= most,
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Count::Exactly(n) => write!(f, "{n}"),
            Count::AtLeast(n) => write!(f, "at least {n}"),
            Count::AtMost(n) => write!(f, "at most {n}"),
        }
    }
}

/// A bound on the share of seeds in which something happens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Share {
    AtLeast(f64),
    AtMost(f64),
}

/// What so many seeds prove of a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    Holds,
    /// The opposite is proved.
    Broken,
    /// Either may be.
    Open,
}

impl Share {
    /// What `hits` of `n` seeds prove: exact one-sided binomial bounds (Clopper and Pearson), each at the level [`SURE`].
    pub fn proof(self, hits: u64, n: u64) -> Proof {
        let [low, high] = bounds(hits, n);
        match self {
            Share::AtLeast(p) if low >= p => Proof::Holds,
            Share::AtMost(p) if high <= p => Proof::Holds,
            Share::AtLeast(p) if high < p => Proof::Broken,
            Share::AtMost(p) if low > p => Proof::Broken,
            _ => Proof::Open,
        }
    }

    /// The fewest seeds that can prove it, where `rate` of them are hits; `None` beyond a million.
    pub fn seeds(self, rate: f64) -> Option<u64> {
        let proved = |n: u64| self.proof((rate * n as f64).round() as u64, n) == Proof::Holds;
        let enough = (0..=20).map(|k| 1_u64 << k).find(|n| proved(*n))?;
        let (mut low, mut high) = (enough / 2, enough);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if proved(middle) { high = middle } else { low = middle }
        }
        Some(high)
    }
}

/// One-sided bounds of a share of which `hits` of `n` are a sample, each at the level [`SURE`].
pub fn bounds(hits: u64, n: u64) -> [f64; 2] {
    exact::interval(hits, n, 2.0 * SURE - 1.0)
}

/// What an expectation may name.
pub struct Names<'p> {
    pub plan: &'p Plan,
    /// Of the rule file and of the case.
    pub endpoints: &'p [String],
    /// Of the case.
    pub length: Option<Millis>,
    pub first_fault: Option<Millis>,
    pub seeds: u64,
}

/// Reads one expectation, whose keys have their shapes.
pub fn read(node: &Node, names: &Names<'_>, faults: &mut Faults) -> Option<Expectation> {
    let about: Vec<&str> = ABOUT.into_iter().filter(|key| node.get(key).is_some()).collect();
    let [about] = about[..] else {
        let message = if about.is_empty() { "an expectation about nothing" } else { "an expectation about several things" };
        faults.error(&node.span, "GR3001", message, format!("exactly one of {}", ABOUT.join(", ")));
        return None;
    };
    for entry in node.entries() {
        if entry.key != about && !keys_of(about).contains(&entry.key.as_str()) {
            let label = format!("{} has {}", quote(about), keys_of(about).join(", "));
            faults.error(&entry.key_span, "GR2503", format!("{} does not go with {}", quote(&entry.key), quote(about)), label);
        }
    }
    let mut reader = Reader { node, names, faults };
    let is = reader.is(about)?;
    Some(Expectation { span: node.span.clone(), is })
}

struct Reader<'a> {
    node: &'a Node,
    names: &'a Names<'a>,
    faults: &'a mut Faults,
}

impl Reader<'_> {
    fn is(&mut self, about: &str) -> Option<Is> {
        let wanted = || self.node.get(about).and_then(Node::boolean);
        match about {
            "verdict" => {
                let guardrail = self.guardrail();
                if guardrail.is_none() {
                    self.faults.error(&self.node.span, "GR1003", "a verdict of which guardrail?", "add `guardrail`");
                }
                let one_of = words(self.node, about).iter().filter_map(|w| verdict(w)).collect();
                Some(Is::Verdict { at: self.at(), guardrail: guardrail?, bucket: self.bucket(), segment: self.text("segment"), one_of })
            }
            "acts" => {
                let (like, span) = (self.like(about), self.span());
                let (times, share) = (self.count("times"), self.share());
                if let (Some(_), Some(node)) = (share, self.node.get("times")) {
                    self.faults.error(&node.span, "GR3001", "`times` of a share of seeds", "one of the two");
                }
                Some(Is::Acts { like, span, times, share })
            }
            "never" => Some(Is::Never { like: self.like(about), span: self.span() }),
            "stopped" => {
                let only = || {
                    let mut others = self.names.plan.buckets.iter().filter(|b| !b.baseline);
                    others.next().filter(|_| others.next().is_none()).map(|b| b.name.clone())
                };
                let bucket = self.bucket().or_else(only);
                if bucket.is_none() {
                    self.faults.error(&self.node.span, "GR1003", "which bucket is stopped?", "add `bucket`");
                }
                Some(Is::Stopped { at: self.at(), bucket: bucket?, state: self.text(about)? })
            }
            "go" => wanted().map(|wanted| Is::Go { at: self.at(), wanted }),
            "stop" => wanted().map(|wanted| Is::Stop { at: self.at(), wanted }),
            "endpoint" => self.endpoint(),
            _ => {
                let count = self.count("count");
                if self.node.get("count").is_none() {
                    self.faults.error(&self.node.span, "GR1003", "how many records?", "add `count`, for example `count: \">=1\"`");
                }
                Some(Is::Outcome { outcome: self.text(about)?, count: count? })
            }
        }
    }

    fn endpoint(&mut self) -> Option<Is> {
        let node = self.node.get("endpoint")?;
        let endpoint = node.text()?.to_owned();
        if !self.names.endpoints.contains(&endpoint) {
            let known = || self.names.endpoints.iter().map(String::as_str);
            let label = nearest(&endpoint, known()).map_or_else(
                || format!("there are {}", known().collect::<Vec<_>>().join(", ")),
                |near| format!("did you mean {}?", quote(near)),
            );
            self.faults.error(&node.span, "GR3006", format!("no endpoint {}", quote(&endpoint)), label);
        }
        let delivered = self.node.get("delivered").and_then(Node::boolean);
        let got = Got { attempts: self.count("attempts"), deliveries: self.count("deliveries"), delivered };
        if ["attempts", "deliveries", "delivered"].iter().all(|key| self.node.get(key).is_none()) {
            self.faults.error(
                &self.node.span,
                "GR3001",
                "nothing is expected of the endpoint",
                "add `attempts`, `deliveries` or `delivered`",
            );
        }
        Some(Is::Endpoint { endpoint, span: self.span(), event_type: self.text("type"), got })
    }

    fn like(&mut self, about: &str) -> Like {
        let mut actions: Vec<Action> = Vec::new();
        for word in words(self.node, about) {
            match word.as_str() {
                "any" => actions.extend([Action::Pause, Action::Rollback, Action::Kill]),
                word => actions.extend(action(word)),
            }
        }
        Like {
            actions,
            guardrail: self.guardrail(),
            criterion: self.text("criterion"),
            bucket: self.bucket(),
            segment: self.text("segment"),
            held_by: self.text("held_by"),
        }
    }

    fn text(&self, key: &str) -> Option<String> {
        self.node.get(key)?.text().map(str::to_owned)
    }

    fn guardrail(&mut self) -> Option<String> {
        let node = self.node.get("guardrail")?;
        let name = node.text()?;
        let plan = self.names.plan;
        let known =
            || plan.guardrails.iter().map(|g| g.name.as_str()).chain(plan.quality.iter().map(|q| q.kind.name())).chain(["operator"]);
        if !known().any(|k| k == name) {
            let label = nearest(name, known()).map_or_else(
                || format!("there are {}", known().collect::<Vec<_>>().join(", ")),
                |near| format!("did you mean {}?", quote(near)),
            );
            self.faults.error(&node.span, "GR3006", format!("the rule has no guardrail or check {}", quote(name)), label);
        }
        Some(name.to_owned())
    }

    fn bucket(&mut self) -> Option<String> {
        let node = self.node.get("bucket")?;
        let name = node.text()?;
        super::read::bucket(node, self.names.plan, self.faults);
        Some(name.to_owned())
    }

    /// The key's time, which lies within the case.
    fn time(&mut self, key: &str) -> Option<Millis> {
        let node = self.node.get(key)?;
        let at = node.text().and_then(duration)?;
        super::read::inside(node, at, self.names.length, self.faults);
        Some(at)
    }

    fn at(&mut self) -> Millis {
        self.time("at").unwrap_or(Millis::MAX)
    }

    fn span(&mut self) -> (Millis, Millis) {
        let within = self.node.get("within").and_then(Node::text).and_then(duration);
        let from = self.time("from").unwrap_or(if within.is_some() { self.names.first_fault.unwrap_or(0) } else { 0 });
        let until = match (within, self.time("until")) {
            (Some(_), Some(_)) => {
                self.faults.error(&self.node.span, "GR3001", "both `within` and `until`", "one of the two");
                Millis::MAX
            }
            (Some(within), None) => from + within,
            (None, until) => until.unwrap_or(Millis::MAX),
        };
        let key = if within.is_some() { "within" } else { "until" };
        if let Some(node) = self.node.get(key) {
            if until <= from {
                self.faults.error(&node.span, "GR3002", "nothing can happen in no time", "later than `from`");
            } else if self.names.length.is_some_and(|length| until > length) && within.is_some() {
                let label = format!("the case ends {} after `from`", show(self.names.length.unwrap_or(0) - from));
                self.faults.error(&node.span, "GR3002", "a time beyond the end of the case", label);
            }
        }
        (from, until)
    }

    fn count(&mut self, key: &str) -> Option<Count> {
        let node = self.node.get(key)?;
        let count = node.text().and_then(Count::parse);
        if count.is_none() {
            self.faults.error(&node.span, "GR3005", "not a count", "write `2`, `\">=2\"` or `\"<=2\"`");
        }
        count
    }

    fn share(&mut self) -> Option<Share> {
        let of = |key: &str| self.node.get(key).and_then(|node| Some((node, node.text().and_then(percent)?)));
        let (node, share) = match (of("in_at_least"), of("in_at_most")) {
            (Some(_), Some((node, _))) => {
                self.faults.error(&node.span, "GR3001", "both `in_at_least` and `in_at_most`", "an expectation for each");
                return None;
            }
            (Some((node, p)), None) => (node, Share::AtLeast(p)),
            (None, Some((node, p))) => (node, Share::AtMost(p)),
            (None, None) => return None,
        };
        let best = if matches!(share, Share::AtLeast(_)) { self.names.seeds } else { 0 };
        if share.proof(best, self.names.seeds) != Proof::Holds {
            let rate = if best == 0 { 0.0 } else { 1.0 };
            let needed = share.seeds(rate).map_or_else(|| "no number of seeds can".to_owned(), |n| format!("at least {n} are needed"));
            let message = format!("{} seed{} cannot prove this share", self.names.seeds, if self.names.seeds == 1 { "" } else { "s" });
            let fault = self.faults.at(&node.span, "GR3003", message).with_label(needed);
            self.faults.push(fault.with_help("a pass must not be luck: it needs an exact binomial bound, at 95%, on the right side"));
        }
        Some(share)
    }
}

/// One word, or a list of them.
fn words(node: &Node, key: &str) -> Vec<String> {
    match node.get(key) {
        Some(Node { kind: Kind::List(items), .. }) => items.iter().filter_map(|n| n.text().map(str::to_owned)).collect(),
        Some(node) => node.text().map(str::to_owned).into_iter().collect(),
        None => Vec::new(),
    }
}

fn verdict(word: &str) -> Option<Verdict> {
    [Verdict::Safe, Verdict::Watching, Verdict::Breach, Verdict::NoData].into_iter().find(|v| verdict_name(*v) == word)
}

pub fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Safe => "safe",
        Verdict::Watching => "watching",
        Verdict::Breach => "breach",
        Verdict::NoData => "no_data",
    }
}

fn action(word: &str) -> Option<Action> {
    let all = [Action::Hold, Action::Notify, Action::Page, Action::Pause, Action::Rollback, Action::Kill];
    all.into_iter().find(|a| a.name() == word)
}

/// A time as people write it: `15m`, `1m30s`, `2h05m`, `450ms`.
pub fn show(ms: Millis) -> String {
    let (seconds, rest) = (ms / 1_000, ms % 1_000);
    let (h, m, s) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    match (h, m, s) {
        (0, 0, _) if rest != 0 && s == 0 => format!("{rest}ms"),
        (0, 0, s) => format!("{s}s"),
        (0, m, 0) => format!("{m}m"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, 0, 0) => format!("{h}h"),
        (h, m, 0) => format!("{h}h{m:02}m"),
        (h, m, s) => format!("{h}h{m:02}m{s:02}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_proved() {
        // 0.99^298 > 0.05 > 0.99^299
        assert_eq!((Share::AtMost(0.01).proof(0, 298), Share::AtMost(0.01).proof(0, 299)), (Proof::Open, Proof::Holds));
        assert_eq!((Share::AtMost(0.01).seeds(0.0), Share::AtLeast(0.95).seeds(1.0)), (Some(299), Some(59)));
        assert_eq!((Share::AtMost(0.01).proof(3, 500), Share::AtMost(0.01).proof(1, 500)), (Proof::Open, Proof::Holds));
        assert_eq!((Share::AtMost(0.01).proof(30, 500), Share::AtLeast(0.95).proof(100, 200)), (Proof::Broken, Proof::Broken));
        assert_eq!(Share::AtLeast(1.0).seeds(1.0), None);
        assert_eq!(Share::AtMost(0.5).seeds(0.5), None);
    }

    #[test]
    fn counts_are_read_as_they_are_written() {
        assert_eq!(
            (Count::parse("3"), Count::parse(">= 3"), Count::parse("<=0")),
            (Some(Count::Exactly(3)), Some(Count::AtLeast(3)), Some(Count::AtMost(0)))
        );
        assert!(["", "-1", ">3", "many", "1.5"].iter().all(|text| Count::parse(text).is_none()));
        assert!(Count::AtLeast(2).holds(2) && !Count::AtLeast(2).holds(1) && Count::AtMost(2).holds(2) && !Count::Exactly(2).holds(3));
    }

    #[test]
    fn times_are_short() {
        let shown = [0, 450, 5_000, 90_000, 900_000, 7_500_000, 3_661_000].map(show);
        assert_eq!(shown, ["0s", "450ms", "5s", "1m30s", "15m", "2h05m", "1h01m01s"]);
    }
}
