//! The result of a simulation, and how people read it.

use super::size::SampleSize;
use super::study::{CONFIDENCE, Delay, Detectable, Detection, Healthy, Named, Share};
use super::traffic::{Shape, Spread, Traffic};
use crate::report::thousands;
use serde::Serialize;
use std::fmt::Write as _;

/// Serialises as `simulate --output json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub experiment: String,
    pub revision: u32,
    pub seed: u64,
    pub alpha: f64,
    /// Of one run.
    pub days: f64,
    pub pane_ms: i64,
    /// Share of the described units that was simulated.
    pub scale: f64,
    /// Affected by the effects.
    pub bucket: String,
    /// When effects begin, ms after the start.
    pub onset_ms: i64,
    pub traffic: Traffic,
    /// Of every interval in here: exact, and of the Monte-Carlo error alone.
    pub confidence: f64,
    pub healthy: Option<Healthy>,
    pub detections: Vec<Detection>,
    pub detectable: Vec<Detectable>,
    pub sample_size: Option<SampleSize>,
    /// It was stopped before all runs were done.
    pub interrupted: bool,
    /// What a reader must know to understand the figures.
    pub notes: Vec<String>,
}

impl Report {
    /// Tables for people.
    pub fn human(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.head(&mut out).and_then(|()| self.alarms(&mut out)).and_then(|()| self.delays(&mut out));
        let _ = self.smallest(&mut out).and_then(|()| self.size(&mut out)).and_then(|()| self.tail(&mut out));
        out
    }

    fn head(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "{}, revision {}: runs of {} each, seed {}", self.experiment, self.revision, days(self.days), self.seed)?;
        let t = &self.traffic;
        let spread = match t.requests.distribution {
            Spread::Fixed => "each".to_owned(),
            Spread::Geometric => "geometric".to_owned(),
            Spread::Pareto { tail, max } => format!("Pareto {tail}, at most {max}"),
        };
        let thinned = if self.scale < 1.0 { format!(", thinned to {}", percent(self.scale)) } else { String::new() };
        writeln!(out, "  traffic   {} units a day{thinned}, {} requests per unit ({spread})", count(t.units_per_day), t.requests.per_unit)?;
        let latency = match t.latency.shape {
            Shape::LogNormal(s) => format!("log-normal, p50 {} ms, p95 {} ms", round(s.p50), round(s.p95)),
            Shape::Bimodal { fast, slow, slow_share } => {
                format!("bimodal, {} around {} ms and the rest around {} ms", percent(slow_share), round(slow.p50), round(fast.p50))
            }
            Shape::Pareto { min, tail } => format!("Pareto {tail} from {} ms", round(min)),
            Shape::Normal { mean, sd } => format!("normal, mean {} ms, standard deviation {} ms", round(mean), round(sd)),
            Shape::Exponential { mean } => format!("exponential, mean {} ms", round(mean)),
            Shape::Constant { value } => format!("always {} ms", round(value)),
        };
        writeln!(out, "            latency {latency}, ICC {}; errors {}", t.latency.icc, percent(t.errors))?;
        if t.phases.len() > 1 {
            let phase = |p: &super::traffic::Phase| {
                let weights = p.weights.as_ref().map(|w| w.iter().map(|w| percent(*w)).collect::<Vec<_>>().join("/"));
                let what = weights.unwrap_or_else(|| format!("{} of the units", percent(p.traffic)));
                p.span.map_or_else(|| format!("then {what}"), |span| format!("{what} for {}", duration(span as f64)))
            };
            writeln!(out, "            {}", t.phases.iter().map(phase).collect::<Vec<_>>().join(", "))?;
        }
        if t.drift != 0.0 {
            writeln!(out, "            rates and times drift by {} in all buckets", percent(t.drift))?;
        }
        if !t.assumed.is_empty() {
            writeln!(out, "  assumed   {}: say otherwise with --traffic", t.assumed.join(", "))?;
        }
        Ok(())
    }

    fn alarms(&self, out: &mut String) -> std::fmt::Result {
        let Some(healthy) = &self.healthy else { return Ok(()) };
        writeln!(
            out,
            "\nFalse alarms in {} healthy runs ({} units, {} events each); alpha {} allows {} per 1,000 in all",
            count(healthy.runs as f64),
            count(healthy.units_per_run),
            count(healthy.events_per_run),
            self.alpha,
            round(self.alpha * 1e3)
        )?;
        let row = |name: &str, s: &Share| {
            let [low, high] = s.interval;
            vec![name.to_owned(), s.hits.to_string(), per_mille(s.share), format!("{} .. {}", per_mille(low), per_mille(high))]
        };
        let mut rows: Vec<Vec<String>> = healthy.guardrails.iter().map(|n| row(&n.name, &n.share)).collect();
        rows.push(row("any guardrail", &healthy.family));
        let quality: Vec<&Named> = healthy.quality.iter().filter(|n| n.share.hits > 0).collect();
        rows.extend(quality.iter().map(|n| row(&format!("check {}", n.name), &n.share)));
        let head = ["guardrail", "alarms", "per 1,000", &format!("{} interval", percent(CONFIDENCE))];
        table(out, &head, &rows)
    }

    fn delays(&self, out: &mut String) -> std::fmt::Result {
        if self.detections.is_empty() {
            return Ok(());
        }
        let from =
            if self.onset_ms == 0 { "the first moment".to_owned() } else { format!("{} after the start", duration(self.onset_ms as f64)) };
        writeln!(out, "\nTime and units to detect an effect in `{}` from {from} on", self.bucket)?;
        let rows: Vec<Vec<String>> = self.detections.iter().map(detection_row).collect();
        table(out, &["effect", "detected", "median time", "p90", "median units", "p90"], &rows)
    }

    fn smallest(&self, out: &mut String) -> std::fmt::Result {
        if self.detectable.is_empty() {
            return Ok(());
        }
        let power = self.detectable[0].power;
        writeln!(out, "\nSmallest effect that {} of the runs detect within {}", percent(power), days(self.days))?;
        let row = |d: &Detectable| {
            let share = d.found.as_ref().map_or(String::new(), |f| share(&f.detected));
            vec![if d.found.is_some() { d.text.clone() } else { format!("{} {}", d.metric, d.text) }, share]
        };
        table(out, &["effect", "detected"], &self.detectable.iter().map(row).collect::<Vec<_>>())
    }

    fn size(&self, out: &mut String) -> std::fmt::Result {
        let Some(size) = &self.sample_size else { return Ok(()) };
        writeln!(
            out,
            "\nSample size (runbook 2): {}, baseline {} (standard deviation {}), MDE {} relative, power {}, alpha {} two-sided",
            size.metric,
            significant(size.baseline),
            significant(size.deviation),
            percent(size.mde),
            percent(size.power),
            size.alpha
        )?;
        let names: Vec<String> = size.all.buckets.iter().map(|(name, _)| name.clone()).collect();
        let mut head = vec!["units", "share"];
        head.extend(names.iter().map(String::as_str));
        head.extend(["total", "time"]);
        let mut rows = Vec::new();
        for stratum in std::iter::once(&size.all).chain(&size.strata) {
            let name = if stratum.segment.is_empty() { "fixed horizon" } else { &stratum.segment };
            let mut row = vec![name.to_owned(), percent(stratum.share)];
            row.extend(stratum.buckets.iter().map(|(_, n)| count(*n)));
            row.extend([count(stratum.total), days(stratum.days)]);
            rows.push(row);
        }
        table(out, &head, &rows)?;
        match (&size.sequential, &size.sequential_missing) {
            (Some(d), _) => {
                let units =
                    |n: Option<f64>| n.map_or_else(|| "later than the runs last".to_owned(), |u| format!("after {} units", count(u)));
                let (half, most) = (units(d.units.median), units(d.units.p90));
                writeln!(out, "  sequential (simulated): half of {} runs find {} {half}, 90% of them {most}", d.detected.runs, d.text)
            }
            (None, Some(why)) => writeln!(out, "  sequential: {why}"),
            (None, None) => Ok(()),
        }
    }

    fn tail(&self, out: &mut String) -> std::fmt::Result {
        if self.interrupted {
            writeln!(out, "\nInterrupted: the tables hold the runs that were done.")?;
        }
        writeln!(
            out,
            "\nIntervals are exact {} intervals of the Monte-Carlo error: what the real figure may be, given so few runs.",
            percent(CONFIDENCE)
        )?;
        self.notes.iter().try_for_each(|note| writeln!(out, "note: {note}"))
    }
}

fn detection_row(d: &Detection) -> Vec<String> {
    let time = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), duration);
    let units = |n: Option<f64>| n.map_or_else(|| "-".to_owned(), count);
    let with = |delay: &Delay, show: &dyn Fn(Option<f64>) -> String| {
        let [low, high] = delay.median_interval;
        if low.is_none() {
            return "-".to_owned();
        }
        format!("{} ({} .. {})", show(delay.median), show(low), show(high))
    };
    vec![d.text.clone(), share(&d.detected), with(&d.delay_ms, &time), time(d.delay_ms.p90), with(&d.units, &units), units(d.units.p90)]
}

/// Columns wide enough for their contents; the first to the left, the others to the right.
pub(super) fn table(out: &mut String, head: &[&str], rows: &[Vec<String>]) -> std::fmt::Result {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let head: Vec<String> = head.iter().map(|&h| h.to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let cell =
            |(i, text): (usize, &String)| if i == 0 { format!("{text:<w$}", w = widths[0]) } else { format!("{text:>w$}", w = widths[i]) };
        let line: Vec<String> = row.iter().enumerate().map(cell).collect();
        writeln!(out, "  {}", line.join("   ").trim_end())?;
    }
    Ok(())
}

pub(super) fn share(s: &Share) -> String {
    let whole = |v: f64| format!("{:.0}", v * 100.0);
    format!("{}% ({} .. {})", whole(s.share), whole(s.interval[0]), whole(s.interval[1]))
}

pub(super) fn per_mille(share: f64) -> String {
    format!("{:.1}", share * 1e3)
}

fn percent(share: f64) -> String {
    format!("{}%", round(share * 100.0))
}

pub(super) fn days(days: f64) -> String {
    duration(days * 86_400_000.0)
}

/// At most four decimals, none that are zero.
fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// Four digits that count.
pub(super) fn significant(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let digits = (3 - value.abs().log10().floor() as i32).clamp(0, 9) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A whole number with separators between thousands.
pub fn count(value: f64) -> String {
    thousands(value.round() as u64)
}

/// A span of ms in the unit that people would choose.
pub fn duration(ms: f64) -> String {
    let (value, unit) = match ms {
        ms if ms < 1e3 => (ms, "ms"),
        ms if ms < 120e3 => (ms / 1e3, "s"),
        ms if ms < 7_200e3 => (ms / 60e3, "min"),
        ms if ms < 172_800e3 => (ms / 3_600e3, "h"),
        ms => (ms / 86_400e3, "d"),
    };
    format!("{} {unit}", significant_three(value))
}

fn significant_three(value: f64) -> String {
    let text = if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") };
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_read_them() {
        assert_eq!((count(1_234_567.4), count(999.0), count(0.0)), ("1,234,567".into(), "999".into(), "0".into()));
        assert_eq!((duration(250.0), duration(90_000.0), duration(3_600_000.0)), ("250 ms".into(), "90 s".into(), "60 min".into()));
        assert_eq!((duration(14.0 * 86_400e3), duration(5.2 * 3_600e3)), ("14 d".into(), "5.2 h".into()));
        assert_eq!((significant(0.3), significant(0.045_678), significant(12_345.6)), ("0.3".into(), "0.04568".into(), "12346".into()));
    }
}
