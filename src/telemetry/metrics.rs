//! The registry: one small table of numbers per metric of [`names`](super::names), read by scrapes and by OTLP.

use super::names::{self, BOUNDS, Kind, Metric};
use crate::clock;
use crate::engine::time::Millis;
use crate::live::View;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

/// Series of one metric at most; what comes later is counted under `other` in every label, and as dropped.
pub const MAX_SERIES: usize = 2_000;
/// The same of a gauge whose series come from a view, and so from the rule files: traffic cannot add to them.
pub const MAX_ROWS: usize = 20_000;

type Series = BTreeMap<Vec<String>, Sample>;

/// A handle; cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Default)]
struct Inner {
    table: Mutex<BTreeMap<&'static str, Series>>,
    /// Who else gets the observations of a histogram.
    mirrors: RwLock<BTreeMap<&'static str, Mirror>>,
    /// The newest view, until it is in the table.
    newest: Mutex<Option<Arc<View>>>,
}

/// Takes the values of the labels and the seconds observed.
pub type Mirror = Box<dyn Fn(&[String], f64) + Send + Sync>;

#[derive(Clone, Debug)]
enum Sample {
    Number(f64),
    Histogram(Box<Histogram>),
}

/// Its rows: one for each bound, and one beyond the last.
#[derive(Clone, Debug, Default)]
struct Histogram {
    counts: [u64; BOUNDS.len() + 1],
    sum: f64,
    exemplars: [Option<Exemplar>; BOUNDS.len() + 1],
}

/// The last observation of a row that a trace explains.
#[derive(Clone, Debug)]
struct Exemplar {
    trace: String,
    seconds: f64,
    at: Millis,
}

/// How [`Metrics::text`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    OpenMetrics,
    /// Prometheus text 0.0.4.
    Prometheus,
}

impl Format {
    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

impl Default for Metrics {
    /// All metrics; those without labels, and those of [`names::KNOWN`], start at 0.
    fn default() -> Metrics {
        let metrics = Metrics(Arc::default());
        {
            let mut table = metrics.table();
            for metric in names::ALL {
                let series = table.entry(metric.name).or_default();
                if metric.labels.is_empty() {
                    series.insert(Vec::new(), Sample::new(metric.kind));
                }
            }
        }
        for (metric, values) in names::KNOWN {
            metrics.begin(metric, values);
        }
        metrics.set(&names::BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1.0);
        metrics
    }
}

impl Metrics {
    /// Lets the series of all combinations of these values begin, at 0: one list for each label.
    pub fn begin(&self, metric: &'static Metric, values: &[&[&str]]) {
        let mut all: Vec<Vec<&str>> = vec![Vec::new()];
        for list in values {
            all = all.iter().flat_map(|row| list.iter().map(|value| [row.as_slice(), &[*value]].concat())).collect();
        }
        for labels in all {
            self.with(metric, &labels, |_| {});
        }
    }

    /// Adds to a counter or gauge. `labels` are the values of `metric.labels`, in order.
    pub fn add(&self, metric: &'static Metric, labels: &[&str], n: f64) {
        self.with(metric, labels, |sample| {
            if let Sample::Number(number) = sample {
                *number += n;
            }
        });
    }

    /// Sets a gauge; or a counter that is kept elsewhere, which never goes down.
    pub fn set(&self, metric: &'static Metric, labels: &[&str], value: f64) {
        self.with(metric, labels, |sample| {
            if let Sample::Number(number) = sample {
                *number = if metric.kind == Kind::Counter { number.max(value) } else { value };
            }
        });
    }

    /// Adds an observation, in seconds, to a histogram.
    pub fn observe(&self, metric: &'static Metric, labels: &[&str], seconds: f64) {
        self.observe_traced(metric, labels, seconds, None);
    }

    /// [`Metrics::observe`], with the id of the trace in which it happened: OpenMetrics shows it as an exemplar.
    pub fn observe_traced(&self, metric: &'static Metric, labels: &[&str], seconds: f64, trace: Option<&str>) {
        self.with(metric, labels, |sample| {
            if let Sample::Histogram(histogram) = sample {
                let row = BOUNDS.partition_point(|bound| *bound < seconds);
                histogram.counts[row] += 1;
                histogram.sum += seconds;
                if let Some(trace) = trace {
                    histogram.exemplars[row] = Some(Exemplar { trace: trace.to_owned(), seconds, at: clock::now() });
                }
            }
        });
        if let Some(mirror) = self.0.mirrors.read().unwrap_or_else(|e| e.into_inner()).get(metric.name) {
            mirror(&labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>(), seconds);
        }
    }

    /// From now on `mirror` gets every observation of a histogram too.
    pub fn mirror(&self, metric: &'static Metric, mirror: Mirror) {
        self.0.mirrors.write().unwrap_or_else(|e| e.into_inner()).insert(metric.name, mirror);
    }

    /// Drops a series, such as that of a revoked partition.
    pub fn forget(&self, metric: &'static Metric, labels: &[&str]) {
        if let Some(series) = self.table().get_mut(metric.name) {
            series.retain(|values, _| values != labels);
        }
    }

    /// Keeps the newest view; [`Metrics::refresh`] takes over what it tells. Cheap: the judge calls it with every view.
    pub fn view(&self, view: Arc<View>) {
        *self.newest() = Some(view);
    }

    /// Takes over what the newest view tells. To be called before the numbers are read.
    pub fn refresh(&self) {
        let newest = self.newest().take();
        if let Some(view) = newest {
            self.tell(&view);
        }
    }

    /// Replaces all series of a gauge; those for which there is no room count as dropped.
    pub(super) fn replace(&self, metric: &'static Metric, rows: impl Iterator<Item = (Vec<String>, f64)>) {
        let mut rows = rows.map(|(labels, value)| (labels, Sample::Number(value)));
        let kept = rows.by_ref().take(MAX_ROWS).collect();
        let beyond = rows.count();
        self.table().insert(metric.name, kept);
        if beyond > 0 {
            self.add(&names::DROPPED, &["metric_series"], beyond as f64);
        }
    }

    /// Current numbers of a counter or gauge, with the values of its labels.
    pub fn numbers(&self, metric: &Metric) -> Vec<(Vec<String>, f64)> {
        let table = self.table();
        let rows = table.get(metric.name).into_iter().flatten();
        rows.filter_map(|(labels, sample)| match sample {
            Sample::Number(n) => Some((labels.clone(), *n)),
            Sample::Histogram(_) => None,
        })
        .collect()
    }

    /// What a scrape gets.
    pub fn text(&self, format: Format) -> String {
        let mut out = String::with_capacity(16 << 10);
        let table = self.table();
        for metric in names::ALL {
            if let Some(series) = table.get(metric.name) {
                // Writing to a string cannot fail.
                let _ = write_family(&mut out, metric, series, format);
            }
        }
        if format == Format::OpenMetrics {
            out.push_str("# EOF\n");
        }
        out
    }

    fn with(&self, metric: &'static Metric, labels: &[&str], change: impl FnOnce(&mut Sample)) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        let mut table = self.table();
        let series = table.entry(metric.name).or_default();
        let mut values: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        let overflow = series.len() >= MAX_SERIES && !series.contains_key(&values);
        if overflow {
            values = vec!["other".to_owned(); labels.len()];
        }
        change(series.entry(values).or_insert_with(|| Sample::new(metric.kind)));
        if overflow {
            let dropped = table.entry(names::DROPPED.name).or_default();
            if let Sample::Number(n) = dropped.entry(vec!["metric_series".to_owned()]).or_insert(Sample::Number(0.0)) {
                *n += 1.0;
            }
        }
    }

    fn newest(&self) -> MutexGuard<'_, Option<Arc<View>>> {
        self.0.newest.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<&'static str, Series>> {
        self.0.table.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Sample {
    fn new(kind: Kind) -> Sample {
        match kind {
            Kind::Counter | Kind::Gauge => Sample::Number(0.0),
            Kind::Histogram => Sample::Histogram(Box::default()),
        }
    }
}

fn write_family(out: &mut String, metric: &Metric, series: &Series, format: Format) -> std::fmt::Result {
    // OpenMetrics names a counter's family without the suffix of its sample.
    let family = match format {
        Format::OpenMetrics => metric.name.trim_end_matches("_total"),
        Format::Prometheus => metric.name,
    };
    writeln!(out, "# HELP {family} {}\n# TYPE {family} {}", metric.help, metric.kind.name())?;
    for (values, sample) in series {
        match sample {
            Sample::Number(number) => {
                out.push_str(metric.name);
                labels(out, metric, values, None)?;
                writeln!(out, " {number}")?;
            }
            Sample::Histogram(histogram) => {
                let mut total = 0;
                for (i, n) in histogram.counts.iter().enumerate() {
                    total += n;
                    let bound = BOUNDS.get(i).map_or("+Inf".to_owned(), |b| format!("{b:?}"));
                    write!(out, "{family}_bucket")?;
                    labels(out, metric, values, Some(&bound))?;
                    write!(out, " {total}")?;
                    if let Some(Exemplar { trace, seconds, at }) = histogram.exemplars[i].as_ref().filter(|_| format == Format::OpenMetrics)
                    {
                        write!(out, " # {{trace_id=\"{trace}\"}} {seconds} {}", *at as f64 / 1_000.0)?;
                    }
                    out.push('\n');
                }
                for (suffix, number) in [("sum", histogram.sum), ("count", total as f64)] {
                    write!(out, "{family}_{suffix}")?;
                    labels(out, metric, values, None)?;
                    writeln!(out, " {number}")?;
                }
            }
        }
    }
    Ok(())
}

fn labels(out: &mut String, metric: &Metric, values: &[String], bound: Option<&str>) -> std::fmt::Result {
    let named = metric.labels.iter().copied().zip(values.iter().map(String::as_str));
    let mut open = '{';
    for (name, value) in named.chain(bound.map(|bound| ("le", bound))) {
        write!(out, "{open}{name}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))?;
        open = ',';
    }
    if open == ',' {
        out.push('}');
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    fn sample() -> Metrics {
        let metrics = Metrics::default();
        metrics.view(Arc::default());
        metrics.refresh();
        metrics.add(&names::DECISIONS, &["rollback"], 2.0);
        metrics.set(&names::ENDPOINT_DISABLED, &["quote\" back\\ line\n"], 1.0);
        for seconds in [0.0005, 0.001, 0.3, 99.0] {
            metrics.observe(&names::STORE_COMMIT, &[], seconds);
        }
        metrics
    }

    #[test]
    fn both_formats_carry_the_same_numbers() {
        let metrics = sample();
        let (open, text) = (metrics.text(Format::OpenMetrics), metrics.text(Format::Prometheus));
        for text in [&open, &text] {
            assert!(text.contains("guardraild_decisions_total{action=\"rollback\"} 2\n"));
            assert!(text.contains("guardraild_endpoint_disabled{endpoint=\"quote\\\" back\\\\ line\\n\"} 1\n"));
            assert!(text.contains("guardraild_store_commit_seconds_bucket{le=\"0.001\"} 2\n"));
            assert!(text.contains("guardraild_store_commit_seconds_bucket{le=\"+Inf\"} 4\nguardraild_store_commit_seconds_sum 99.3015\n"));
            assert!(text.contains("guardraild_store_commit_seconds_count 4\n"));
        }
        assert!(text.contains("guardraild_decisions_total{action=\"kill\"} 0\n"), "there before the first one");
        assert!(open.contains("# TYPE guardraild_decisions counter\n") && open.ends_with("# EOF\n"));
        assert!(text.contains("# TYPE guardraild_decisions_total counter\n") && !text.contains("# EOF"));
    }

    #[test]
    fn openmetrics_names_the_last_trace_of_each_row() {
        let metrics = Metrics::default();
        let [old, new] = ["0af7651916cd43dd8448eb211c80319c", "4bf92f3577b34da6a3ce929d0e0e4736"];
        for (seconds, trace) in [(0.2, Some(old)), (0.21, Some(new)), (0.22, None), (7.0, None)] {
            metrics.observe_traced(&names::DECISION_DELAY, &[], seconds, trace);
        }
        let open = metrics.text(Format::OpenMetrics);
        let row = open.lines().find(|line| line.contains("delay_seconds_bucket{le=\"0.25\"}")).unwrap();
        assert!(row.contains(&format!("}} 3 # {{trace_id=\"{new}\"}} 0.21 1")), "{row}");
        assert_eq!(open.matches("trace_id").count(), 1);
        assert!(!metrics.text(Format::Prometheus).contains("trace_id"), "the older format has no exemplars");
    }

    #[test]
    fn counters_that_are_kept_elsewhere_never_go_down() {
        let metrics = Metrics::default();
        metrics.set(&names::RECORDS, &["accepted", ""], 10.0);
        metrics.set(&names::RECORDS, &["accepted", ""], 7.0);
        assert_eq!(metrics.numbers(&names::RECORDS), [(vec!["accepted".to_owned(), String::new()], 10.0)]);
    }

    #[test]
    fn series_are_bounded_and_the_overflow_is_counted() {
        let metrics = Metrics::default();
        metrics.replace(&names::EXPERIMENT_GO, (0..MAX_ROWS + 5).map(|i| (vec![i.to_string()], 1.0)));
        assert_eq!(metrics.numbers(&names::EXPERIMENT_GO).len(), MAX_ROWS);
        assert_eq!(metrics.numbers(&names::DROPPED), [(vec!["metric_series".to_owned()], 5.0)]);
        for i in 0..MAX_SERIES + 5 {
            metrics.add(&names::KAFKA_ERRORS, &[&i.to_string()], 1.0);
        }
        let numbers = metrics.numbers(&names::KAFKA_ERRORS);
        assert_eq!(numbers.len(), MAX_SERIES + 1);
        assert!(numbers.contains(&(vec!["other".to_owned()], 5.0)));
        assert!(metrics.numbers(&names::DROPPED).iter().any(|(labels, _)| labels == &["metric_series"]));
        metrics.forget(&names::KAFKA_ERRORS, &["3"]);
        assert_eq!(metrics.numbers(&names::KAFKA_ERRORS).len(), MAX_SERIES);
    }

    #[test]
    fn promtool_has_nothing_to_say() {
        let child =
            Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let Ok(mut child) = child else {
            eprintln!("promtool is not installed: not checked");
            return;
        };
        child.stdin.take().unwrap().write_all(sample().text(Format::Prometheus).as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}
