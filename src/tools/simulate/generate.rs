//! Events of one run, pane by pane, in the order of time.
//!
//! Units arrive in a Poisson process. What a unit will do is drawn when it arrives, and waits in the slot of its pane; a slot is sorted
//! when its time has come. Nothing is allocated for an event, and its record is never written: the engine gets it decoded.

use super::draw::{Draw, normal_cdf};
use super::run::Harm;
use super::sample::{self, mixed};
use super::spec::{Spec, StreamEvent, VariantOf, World};
use super::traffic::Model;
use crate::engine::assign::UnitField;
use crate::engine::event::{Event, Kind, PhaseRef, Scalar, Step};
use crate::engine::time::Millis;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::collections::VecDeque;

/// One run's traffic.
pub struct Generator<'s> {
    spec: &'s Spec,
    draw: Draw,
    healthy: World,
    harms: &'s [Harm],
    /// Slots of the panes from the current one on; the last ones may not be there yet.
    slots: VecDeque<Vec<Item>>,
    pool: Vec<Vec<Item>>,
    /// Next pane, and its first instant (ms after the start).
    now: Millis,
    next_arrival: f64,
    phase: usize,
    phase_end: Millis,
    /// Share of the units of a day, beside that of the phase.
    ramped: f64,
    /// The buckets' shares as designed, and as the flag service has them.
    weights: Vec<f64>,
    biased: Option<Vec<f64>>,
    /// By bucket: new units get the baseline instead.
    stopped: Vec<bool>,
    announce: bool,
    units: u64,
    events: u64,
}

/// Whose an event is.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    pub unit: u32,
    pub bucket: usize,
}

/// Something that happens, within its pane.
#[derive(Clone, Copy)]
struct Item {
    /// ms after the pane's start, and order of drawing among equals.
    offset: u32,
    order: u32,
    unit: u32,
    bucket: u8,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    /// Number of the value of each attribute, a byte each.
    Exposure {
        segments: u64,
    },
    Request {
        latency: f64,
        value: f64,
        error: bool,
        variant: u8,
    },
    Ticket,
    Flag,
    Workflow(Step),
    Metric {
        stream: u8,
        value: f64,
        covariate: f64,
    },
}

/// A unit while its future is drawn.
struct Arrival {
    at: f64,
    unit: u32,
    bucket: u8,
    /// As of [`What::Exposure`].
    segments: u64,
    /// Normal variables of its latencies and of its errors.
    pace: f64,
    luck: f64,
}

impl<'s> Generator<'s> {
    pub fn new(spec: &'s Spec, harms: &'s [Harm], draw: Draw) -> Generator<'s> {
        let mut generator = Generator {
            healthy: spec.healthy(),
            spec,
            draw,
            harms,
            slots: VecDeque::new(),
            pool: Vec::new(),
            now: 0,
            next_arrival: 0.0,
            phase: 0,
            phase_end: 0,
            ramped: 1.0,
            weights: Vec::new(),
            biased: None,
            stopped: vec![false; spec.plan.buckets.len()],
            announce: false,
            units: 0,
            events: 0,
        };
        generator.enter(0);
        generator
    }

    /// Units exposed so far.
    pub fn units(&self) -> u64 {
        self.units
    }

    /// Events made so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Makes the events of the next pane; returns its end in ms after the start, or `None` when the run is over.
    pub fn pane(&mut self, mut sink: impl FnMut(&Event<'_>, Option<Origin>)) -> Option<Millis> {
        if self.now >= self.spec.length {
            return None;
        }
        let end = self.now + self.spec.settings.pane;
        if self.slots.is_empty() {
            self.slots.push_back(Vec::new());
        }
        self.arrivals(end as f64);
        if std::mem::take(&mut self.announce) {
            sink(&self.phase_event(), None);
            self.events += 1;
        }
        let mut slot = self.slots.pop_front().unwrap_or_default();
        slot.sort_unstable_by_key(|item| (item.offset, item.order));
        let at = self.spec.start + self.now;
        self.events += slot.len() as u64;
        let mut digits = [0; 10];
        for item in &slot {
            let origin = Origin { unit: item.unit, bucket: usize::from(item.bucket) };
            sink(&self.event(item, at, decimal(item.unit, &mut digits)), Some(origin));
        }
        slot.clear();
        self.pool.push(slot);
        self.now = end;
        Some(end)
    }

    fn arrivals(&mut self, end: f64) {
        if self.now >= self.phase_end {
            // The process has no memory: with a new phase the wait begins anew.
            self.enter(self.phase + 1);
        }
        while self.next_arrival < end {
            self.arrive(self.next_arrival);
            self.next_arrival += self.wait();
        }
    }

    /// Time to the next arrival, in ms.
    fn wait(&mut self) -> f64 {
        let phase = &self.spec.traffic.phases[self.phase];
        self.draw.exponential() * 86_400_000.0 / (self.spec.traffic.units_per_day * phase.traffic * self.ramped)
    }

    fn enter(&mut self, phase: usize) {
        let phases = &self.spec.traffic.phases;
        let before = std::mem::replace(&mut self.phase, phase.min(phases.len() - 1));
        let planned = &phases[self.phase];
        let goes_on = self.phase + 1 == phases.len();
        self.phase_end = if goes_on { Millis::MAX } else { planned.span.map_or(Millis::MAX, |span| self.now + span) };
        let own: Vec<f64> = self.spec.plan.buckets.iter().map(|b| b.weight).collect();
        let weights = planned.weights.clone().unwrap_or(own);
        self.announce = self.phase != before || weights != self.spec.plan.first_weights();
        self.weights = weights;
        self.next_arrival = self.now as f64 + self.wait();
    }

    fn arrive(&mut self, at: f64) {
        let share = self.draw.uniform();
        let unit = self.units as u32;
        let bucket = self.bucket(unit, share) as u8;
        self.units += 1;
        let mut segments = 0;
        for (i, upto) in self.spec.segments.iter().enumerate() {
            let share = self.draw.uniform();
            let value = upto.iter().position(|u| share < *u).unwrap_or(upto.len().saturating_sub(1));
            segments |= (value as u64) << (8 * i);
        }
        let (pace, luck) = (self.unit_normal(self.spec.traffic.latency.icc), self.unit_normal(self.spec.traffic.errors_icc));
        let arrival = Arrival { at, unit, bucket, segments, pace, luck };
        self.put(&arrival, at, What::Exposure { segments });
        self.requests(&arrival);
        self.others(&arrival);
        for stream in 0..self.spec.streams.len() {
            self.metric(&arrival, stream);
        }
    }

    /// Where the flag service puts a new unit.
    fn bucket(&self, unit: u32, share: f64) -> usize {
        let plan = &self.spec.plan;
        let weights = self.biased.as_ref().unwrap_or(&self.weights);
        let hashed = plan.assignment.as_ref().filter(|_| self.biased.is_none()).and_then(|assignment| {
            let mut digits = [0; 10];
            let user = decimal(unit, &mut digits);
            let place = assignment.place(&self.named(0, user))?;
            (0..weights.len()).find(|bucket| assignment.fits(place, *bucket, weights))
        });
        let drawn = || {
            let upto = weights.iter().scan(0.0, |sum, weight| {
                *sum += weight;
                Some(*sum)
            });
            upto.into_iter().position(|upto| share < upto).unwrap_or(weights.len() - 1)
        };
        let bucket = hashed.unwrap_or_else(drawn);
        if self.stopped[bucket] { plan.baseline() } else { bucket }
    }

    /// Lets the flag service assign by other shares than it should, or by the designed ones again.
    pub fn bias(&mut self, weights: Option<&[f64]>) {
        if self.biased.as_deref() != weights {
            self.biased = weights.map(<[f64]>::to_vec);
        }
    }

    /// Whether new units get the baseline where they would have got `bucket`.
    pub fn stop(&mut self, bucket: usize, stopped: bool) {
        self.stopped[bucket] = stopped;
    }

    /// The ramp moves to a share of the units and of the buckets, though no phase of the traffic says so.
    pub fn ramp(&mut self, traffic: f64, weights: Vec<f64>) {
        (self.weights, self.ramped) = (weights, traffic);
        self.next_arrival = self.now as f64 + self.wait();
    }

    fn unit_normal(&mut self, icc: f64) -> f64 {
        if icc > 0.0 { self.draw.normal() } else { 0.0 }
    }

    fn requests(&mut self, arrival: &Arrival) {
        let count = self.spec.requests.draw(&mut self.draw);
        let mut at = arrival.at;
        for i in 0..count {
            if i > 0 {
                at += self.draw.exponential() * self.spec.traffic.requests.gap_ms;
            }
            if at >= self.spec.length as f64 {
                return;
            }
            let request = self.request(arrival, at);
            self.put(arrival, at, request);
        }
    }

    fn request(&mut self, arrival: &Arrival, at: f64) -> What {
        let spec = self.spec;
        let growth = self.growth(at);
        let (factor, shift, timeouts, mut errors) = {
            let world = self.world(arrival, at);
            (world.latency_factor, world.latency_shift, world.timeouts, world.errors)
        };
        let (mut factor, mut value, mut number) = (factor * growth, 0.0, u8::MAX);
        if !spec.variants.is_empty() {
            let mut share = self.draw.uniform();
            for (i, variant) in spec.variants.iter().enumerate() {
                share -= variant.share;
                if share >= 0.0 {
                    continue;
                }
                number = i as u8;
                let level = self.world(arrival, at).levels[variant.metric];
                match variant.is {
                    VariantOf::Latency => factor *= level,
                    VariantOf::Errors => errors = level,
                    VariantOf::Values => {
                        let model = spec.traffic.metrics.values().nth(variant.metric).map_or(Model::Count, |m| m.model);
                        value = match model {
                            Model::Rate { .. } => f64::from(u8::from(self.draw.chance(level * growth))),
                            model => sample::value(model, &mut self.draw).0 * level * growth,
                        };
                    }
                }
                break;
            }
        }
        let latency = if self.draw.chance(timeouts) {
            spec.traffic.timeout_ms
        } else {
            sample::latency(&spec.traffic.latency, arrival.pace, &mut self.draw) * factor + shift
        };
        let errors = errors * growth;
        let icc = spec.traffic.errors_icc;
        let error = if icc > 0.0 { normal_cdf(-mixed(icc, arrival.luck, &mut self.draw)) < errors } else { self.draw.chance(errors) };
        What::Request { latency: latency.max(0.0), value, error, variant: number }
    }

    fn others(&mut self, arrival: &Arrival) {
        let at = arrival.at;
        let growth = self.growth(at);
        let (tickets, flags, abandoned) = {
            let world = self.world(arrival, at);
            (world.tickets * growth, world.flags, world.abandoned * growth)
        };
        for (count, what) in [(self.draw.poisson(tickets), What::Ticket), (self.draw.poisson(flags), What::Flag)] {
            for _ in 0..count {
                let at = at + self.draw.exponential() * 60_000.0;
                self.put(arrival, at, what);
            }
        }
        let workflows = &self.spec.traffic.workflows;
        if self.draw.chance(workflows.share) {
            let lost = self.draw.chance(abandoned);
            let explicit = lost && self.draw.chance(workflows.explicit);
            let ends = at + self.draw.exponential() * workflows.completes_ms;
            self.put(arrival, at, What::Workflow(Step::Started));
            if !lost || explicit {
                self.put(arrival, ends, What::Workflow(if lost { Step::Abandoned } else { Step::Completed }));
            }
        }
    }

    fn metric(&mut self, arrival: &Arrival, index: usize) {
        let spec = self.spec;
        let stream = &spec.streams[index];
        let level = |g: &Generator<'_>, at: f64| g.world(arrival, at).levels[stream.metric] * g.growth(at);
        let count = match stream.model {
            _ if stream.of_units => 1,
            Model::Count => {
                let mean = level(self, arrival.at);
                self.draw.poisson(mean)
            }
            _ => self.draw.poisson(stream.per_unit),
        };
        for _ in 0..count {
            let at = arrival.at + self.draw.exponential() * stream.delay_ms;
            let level = level(self, at);
            let (value, covariate) = match stream.model {
                Model::Rate { .. } => (f64::from(u8::from(self.draw.chance(level))), None),
                Model::Count => (1.0, None),
                model => {
                    let (value, covariate) = sample::value(model, &mut self.draw);
                    (value * level, covariate)
                }
            };
            // A unit without a hit is known by its exposure.
            if value != 0.0 || !stream.of_units || covariate.is_some() {
                self.put(arrival, at, What::Metric { stream: index as u8, value, covariate: covariate.unwrap_or(f64::NAN) });
            }
        }
    }

    fn world(&self, arrival: &Arrival, at: f64) -> Cow<'_, World> {
        let meant = |harm: &&Harm| {
            let inside = harm.segment.is_none_or(|(attribute, value)| (arrival.segments >> (8 * attribute)) as usize & 0xff == value);
            harm.bucket == usize::from(arrival.bucket) && at >= harm.onset as f64 && at < harm.until as f64 && inside
        };
        let mut worlds = self.harms.iter().filter(meant).map(|harm| &harm.world);
        let first = worlds.next().unwrap_or(&self.healthy);
        worlds.fold(Cow::Borrowed(first), |world, more| Cow::Owned(world.and(more, &self.healthy)))
    }

    /// Common growth of all buckets at a time.
    fn growth(&self, at: f64) -> f64 {
        1.0 + self.spec.traffic.drift * at / self.spec.length as f64
    }

    fn put(&mut self, arrival: &Arrival, at: f64, what: What) {
        if at >= self.spec.length as f64 {
            return;
        }
        let pane = self.spec.settings.pane;
        let since = at as Millis - self.now;
        let slot = (since / pane) as usize;
        while self.slots.len() <= slot {
            self.slots.push_back(self.pool.pop().unwrap_or_default());
        }
        let items = &mut self.slots[slot];
        let offset = (since % pane) as u32;
        items.push(Item { offset, order: items.len() as u32, unit: arrival.unit, bucket: arrival.bucket, what });
    }

    fn phase_event(&self) -> Event<'_> {
        let plan = &self.spec.plan;
        let planned = &self.spec.traffic.phases[self.phase];
        let weight = |i: usize| planned.weights.as_ref().map_or(plan.buckets[i].weight, |w| w[i]);
        let weights = plan.buckets.iter().enumerate().map(|(i, b)| (Cow::Borrowed(b.name.as_str()), weight(i))).collect();
        let kind = Kind::Phase { phase: PhaseRef::Index(self.phase as u32), weights };
        Event { experiment: Some(Cow::Borrowed(&plan.experiment)), kind, ..blank(self.spec.start + self.now) }
    }

    fn event<'a>(&'a self, item: &Item, pane: Millis, user: &'a str) -> Event<'a> {
        let mut event = self.named(pane + Millis::from(item.offset), user);
        match item.what {
            What::Exposure { segments } => {
                event.experiment = Some(Cow::Borrowed(&self.spec.plan.experiment));
                event.bucket = Some(Cow::Borrowed(&self.spec.plan.buckets[usize::from(item.bucket)].name));
                for (i, (name, values)) in self.spec.traffic.segments.iter().enumerate() {
                    if let Some((value, _)) = values.get((segments >> (8 * i)) as usize & 0xff) {
                        event.attributes.push((Cow::Borrowed(name), Cow::Borrowed(value)));
                    }
                }
            }
            What::Request { latency, value, error, variant } => {
                event.kind = Kind::Request { latency_ms: Some(latency), error };
                if let Some(variant) = self.spec.variants.get(usize::from(variant)) {
                    event.fields = borrowed(&variant.fields);
                    event.fields.extend(variant.values.iter().map(|f| (*f, Scalar::Number(value))));
                }
            }
            What::Ticket => event.kind = Kind::Ticket,
            What::Flag => event.kind = Kind::ComplianceFlag { flag: Cow::Borrowed("simulated") },
            What::Workflow(step) => {
                let (workflow, id) = (Cow::Borrowed(self.spec.workflow.as_str()), Cow::Borrowed(user));
                event.kind = Kind::Workflow { step, workflow, workflow_id: id };
            }
            What::Metric { stream, value, covariate } => self.fill(&mut event, usize::from(stream), value, covariate),
        }
        self.complete(&mut event);
        event
    }

    /// Adds what the check of missing fields looks for: a healthy producer writes it.
    fn complete(&self, event: &mut Event<'_>) {
        let Some((wanted, _)) = self.spec.plan.missing() else { return };
        for field in wanted.iter().filter(|f| f.source.event == event.kind.name()) {
            let own = matches!(field.pointer.as_str(), "/value" | "/covariate");
            if own || event.fields.iter().any(|(known, _)| *known == field.field) {
                continue;
            }
            let value = match (field.pointer.as_str(), &event.kind) {
                ("/latency_ms", Kind::Request { latency_ms: Some(ms), .. }) => Scalar::Number(*ms),
                ("/error", Kind::Request { error, .. }) => Scalar::Bool(*error),
                _ => Scalar::Text(Cow::Borrowed("simulated")),
            };
            event.fields.push((field.field, value));
        }
    }

    /// An event of a unit. Where tenants alone are assigned, each has one.
    fn named<'a>(&self, ts: Millis, user: &'a str) -> Event<'a> {
        let mut event = blank(ts);
        let alone = self.spec.plan.assignment.as_ref().is_some_and(|a| a.unit == [UnitField::Tenant]);
        event.tenant_id = Some(Cow::Borrowed(if alone { user } else { "t" }));
        event.user_id = Some(Cow::Borrowed(user));
        event
    }

    fn fill<'a>(&'a self, event: &mut Event<'a>, stream: usize, value: f64, covariate: f64) {
        let stream = &self.spec.streams[stream];
        event.fields = borrowed(&stream.fields);
        event.fields.extend(stream.values.iter().map(|f| (*f, Scalar::Number(value))));
        if !covariate.is_nan() {
            event.fields.extend(stream.covariates.iter().map(|f| (*f, Scalar::Number(covariate))));
        }
        event.kind = match &stream.event {
            StreamEvent::Outcome => {
                let covariate = Some(covariate).filter(|c| !c.is_nan());
                Kind::Outcome { metric: Cow::Borrowed(&stream.name), value, covariate }
            }
            StreamEvent::Ticket => Kind::Ticket,
            StreamEvent::Flag => Kind::ComplianceFlag { flag: Cow::Borrowed("simulated") },
            StreamEvent::Other(name) => Kind::Other { name: Cow::Borrowed(name) },
        };
    }
}

fn blank<'a>(ts: Millis) -> Event<'a> {
    Event {
        ts,
        id: None,
        tenant_id: None,
        user_id: None,
        experiment: None,
        bucket: None,
        attributes: Vec::new(),
        kind: Kind::Exposure,
        fields: SmallVec::new(),
    }
}

fn borrowed<'a>(fields: &'a [(u16, Scalar<'static>)]) -> SmallVec<[(u16, Scalar<'a>); 2]> {
    let scalar = |s: &'a Scalar<'static>| match s {
        Scalar::Bool(flag) => Scalar::Bool(*flag),
        Scalar::Number(n) => Scalar::Number(*n),
        Scalar::Text(text) => Scalar::Text(Cow::Borrowed(text)),
    };
    fields.iter().map(|(field, value)| (*field, scalar(value))).collect()
}

/// The number in decimal digits, without an allocation.
fn decimal(mut n: u32, digits: &mut [u8; 10]) -> &str {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    std::str::from_utf8(&digits[at..]).unwrap_or("0")
}

#[cfg(test)]
mod tests;
