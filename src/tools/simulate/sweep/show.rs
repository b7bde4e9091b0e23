//! A sweep as people read it: tables and bars for a terminal, a page with charts.

use super::{Point, Swept, time};
use crate::report::{Bar, Bars, Forest, Html, Page, Row, Unit};
use crate::tools::simulate::report::{count, days, duration, per_mille, share, significant, table};
use crate::tools::simulate::study::Detection;
use std::fmt::Write as _;

/// Letters of the longest bar.
const BAR: f64 = 32.0;

impl Swept {
    /// Tables for people.
    pub fn human(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ =
            self.head(&mut out).and_then(|()| self.rows(&mut out)).and_then(|()| self.bars(&mut out)).and_then(|()| self.advice(&mut out));
        out
    }

    fn head(&self, out: &mut String) -> std::fmt::Result {
        let combinations = match &self.axes[..] {
            [axis] => format!("{} values of {axis}", self.points.len()),
            axes => format!("{} combinations of {}", self.points.len(), axes.join(" and ")),
        };
        writeln!(
            out,
            "{}, revision {}: {combinations}, runs of {} each, seed {}",
            self.experiment,
            self.revision,
            days(self.days),
            self.seed
        )?;
        let healthy = self.points.first().and_then(|p| p.healthy.as_ref());
        let clean = healthy.map(|h| {
            format!("{} healthy runs ({} units, {} events each)", count(h.runs as f64), count(h.units_per_run), count(h.events_per_run))
        });
        let harmed = self
            .points
            .first()
            .and_then(|p| p.detections.first())
            .map(|d| format!("{} of each effect in `{}`", d.detected.runs, self.bucket));
        let parts: Vec<String> = clean.into_iter().chain(harmed).collect();
        writeln!(
            out,
            "  {}, the same for all{}",
            parts.join(" and "),
            if self.same_traffic() { "" } else { " that have the same traffic" }
        )?;
        if self.scale < 1.0 {
            writeln!(out, "  one unit of {} was simulated: with all of them detection is sooner", significant(1.0 / self.scale))?;
        }
        Ok(())
    }

    fn same_traffic(&self) -> bool {
        self.points.iter().all(|p| p.traffic == self.points[0].traffic)
    }

    fn rows(&self, out: &mut String) -> std::fmt::Result {
        let mut head: Vec<String> = self.axes.clone();
        head[0] = format!("  {}", head[0]);
        if self.points.iter().any(|p| p.healthy.is_some()) {
            head.extend(["alarms per 1,000".to_owned(), "95% interval".to_owned()]);
        }
        for effect in &self.effects {
            head.extend([format!("{effect} found"), "median".to_owned(), "p90".to_owned(), "units".to_owned()]);
        }
        let row = |(index, point): (usize, &Point)| {
            let mut row = point.settings.clone();
            row[0] = format!("{} {}", if self.recommended == Some(index) { "*" } else { " " }, row[0]);
            if let Some(healthy) = &point.healthy {
                let [low, high] = healthy.family.interval;
                row.extend([per_mille(healthy.family.share), format!("{} .. {}", per_mille(low), per_mille(high))]);
            }
            row.extend(point.detections.iter().flat_map(found));
            row
        };
        let rows: Vec<Vec<String>> = self.points.iter().enumerate().map(row).collect();
        writeln!(out)?;
        let complete = rows.iter().all(|row| row.len() == head.len());
        let head: Vec<&str> = head.iter().map(String::as_str).collect();
        if complete { table(out, &head, &rows) } else { writeln!(out, "  nothing was finished") }
    }

    /// A bar for each combination: the time by which half of the runs have found every effect.
    fn bars(&self, out: &mut String) -> std::fmt::Result {
        let times: Vec<Option<f64>> = self.points.iter().map(|p| time(p, self.power)).collect();
        let Some(most) = times.iter().flatten().copied().reduce(f64::max) else { return Ok(()) };
        writeln!(out, "\nTime until half of the runs have found {}", self.effects.join(" and "))?;
        let labels: Vec<String> = self.points.iter().map(|p| p.settings.join(", ")).collect();
        let width = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
        for (index, (label, ms)) in labels.iter().zip(&times).enumerate() {
            let mark = if self.recommended == Some(index) { "*" } else { " " };
            let bar = match ms {
                Some(ms) => format!("{} {}", "\u{2588}".repeat(((ms / most * BAR).round() as usize).max(1)), duration(*ms)),
                None => format!("missed by more than {:.0}% of the runs", (1.0 - self.power) * 100.0),
            };
            writeln!(out, "  {mark} {label:<width$}  {bar}")?;
        }
        Ok(())
    }

    fn advice(&self, out: &mut String) -> std::fmt::Result {
        if self.interrupted {
            writeln!(out, "\nInterrupted: the tables hold the runs that were done.")?;
        }
        let mut reasons = self.reasons.iter();
        if let Some(first) = reasons.next() {
            writeln!(out, "\nTake {first}")?;
        }
        reasons.try_for_each(|reason| writeln!(out, "  {reason}"))?;
        writeln!(out, "\nIntervals are exact 95% intervals of the Monte-Carlo error: what the real figure may be, given so few runs.")
    }

    /// A page with a picture.
    pub fn page(&self) -> String {
        let under = format!(
            "{} revision {}, runs of {}, seed {}; guardraild {}",
            self.experiment,
            self.revision,
            days(self.days),
            self.seed,
            env!("CARGO_PKG_VERSION")
        );
        let mut page = Page::new(&format!("Sweep of {}", self.axes.join(" and ")), under);
        let mut reasons = self.reasons.iter();
        if let Some(first) = reasons.next() {
            page.callout(Html::strong("Take ").then(first.as_str()));
        }
        page.list(reasons.map(|reason| Html::from(reason.as_str())));
        let labels: Vec<String> = self
            .points
            .iter()
            .enumerate()
            .map(|(i, p)| format!("{}{}", if self.recommended == Some(i) { "\u{2192} " } else { "" }, p.settings.join(", ")))
            .collect();
        self.times(&mut page, &labels);
        self.alarms(&mut page, &labels);
        page.heading("Figures");
        let mut head: Vec<String> = self.axes.clone();
        head.extend(["#alarms per 1,000".to_owned(), "#95% interval".to_owned()]);
        self.effects
            .iter()
            .for_each(|effect| head.extend([format!("#{effect} found"), "#median".to_owned(), "#p90".to_owned(), "#units".to_owned()]));
        let row = |point: &Point| {
            let family = point.healthy.as_ref().map(|healthy| healthy.family);
            let interval = family.map_or("-".to_owned(), |f| format!("{} .. {}", per_mille(f.interval[0]), per_mille(f.interval[1])));
            let clean = [family.map_or("-".to_owned(), |f| per_mille(f.share)), interval];
            point.settings.iter().cloned().chain(clean).chain(point.detections.iter().flat_map(found)).map(Html::from).collect()
        };
        page.table(&head.iter().map(String::as_str).collect::<Vec<_>>(), self.points.iter().map(row));
        page.paragraph(
            "All combinations with the same traffic have seen the same runs. Intervals are exact 95% intervals of the Monte-Carlo error.",
        );
        page.finish()
    }

    fn times(&self, page: &mut Page, labels: &[String]) {
        let all = || self.points.iter().flat_map(|p| &p.detections).filter_map(|d| d.delay_ms.median);
        let Some(most) = all().reduce(f64::max) else { return };
        let bar = |d: &Detection| Bar {
            share: d.delay_ms.median.map(|ms| ms / most),
            text: d.delay_ms.median.map_or_else(|| format!("{} found", share(&d.detected)), duration),
        };
        let groups = labels.iter().zip(&self.points).map(|(label, p)| (label.clone(), p.detections.iter().map(bar).collect()));
        let bars = Bars { alt: "median time to detect, by combination".into(), series: self.effects.clone(), groups: groups.collect() };
        page.figure("Time until half of the runs have found an effect", &bars.svg());
    }

    fn alarms(&self, page: &mut Page, labels: &[String]) {
        let rows = labels.iter().zip(&self.points).filter_map(|(label, p)| {
            let family = p.healthy.as_ref()?.family;
            let note = format!("{} of {} runs", family.hits, family.runs);
            Some(Row { label: label.clone(), estimate: Some(family.share), interval: Some(family.interval), note })
        });
        let rows: Vec<Row> = rows.collect();
        if !rows.is_empty() {
            let margin = Some((self.alpha, format!("alpha {}", self.alpha)));
            let forest = Forest { alt: "share of healthy runs with a false alarm, by combination".into(), unit: Unit::Share, margin, rows };
            page.figure("Healthy runs with a false alarm, with exact 95% intervals", &forest.svg());
        }
    }
}

/// Share, median, 90th percentile and units of a detection.
fn found(d: &Detection) -> [String; 4] {
    let time = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), duration);
    [share(&d.detected), time(d.delay_ms.median), time(d.delay_ms.p90), d.units.median.map_or_else(|| "-".to_owned(), count)]
}
