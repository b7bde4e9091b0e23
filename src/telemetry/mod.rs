//! What the daemon says about itself: logs to standard error, metrics by the registry, traces and metrics over OTLP.

pub mod metrics;
pub mod names;
mod otlp;
mod view;

pub use metrics::{Format, Metrics};

use crate::clock;
use crate::config::{LogFormat, Telemetry as Settings};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::{FilterExt, dynamic_filter_fn, filter_fn};
use tracing_subscriber::fmt::{FormatFields, format};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// A complaint of the exporter is logged at most this often, in ms: an unreachable collector is one line a minute.
const COMPLAINT_EVERY: i64 = 60_000;
/// What a flush at the end may take.
const FLUSH: Duration = Duration::from_secs(3);

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("log level: {0}")]
    Level(#[from] tracing_subscriber::filter::ParseError),
    #[error("OTLP exporter: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    #[error("a log subscriber is already installed")]
    Installed(#[from] tracing_subscriber::util::TryInitError),
}

/// Telemetry, set up for the process.
pub struct Telemetry;

/// Keeps exporters alive; [`Guard::shutdown`] flushes them.
#[must_use = "dropping it stops the exporters"]
pub struct Guard {
    pub metrics: Metrics,
    tracer: Option<SdkTracerProvider>,
    meter: Option<SdkMeterProvider>,
}

impl Telemetry {
    /// Installs the log subscriber and starts the exporters that are configured. To be called once, outside of async code.
    ///
    /// # Errors
    /// When the level is malformed, an exporter cannot be built, or a subscriber is already there.
    pub fn init(settings: &Settings) -> Result<Guard, TelemetryError> {
        let metrics = Metrics::default();
        let endpoint = settings.otlp.endpoint.as_deref();
        if endpoint.is_some() {
            // TLS needs one process-wide provider; an error only says that somebody has installed it already.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let tracer = endpoint.filter(|_| settings.otlp.traces).map(|url| otlp::tracer(url, &settings.otlp)).transpose()?;
        let meter = endpoint.filter(|_| settings.otlp.metrics).map(|url| otlp::meter(url, &settings.otlp, &metrics)).transpose()?;
        let terminal = std::io::stderr().is_terminal();
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(terminal);
        let human = settings.log.format == LogFormat::Human || settings.log.format == LogFormat::Auto && terminal;
        let lines =
            if human { lines.fmt_fields(one_line()).boxed() } else { lines.json().flatten_event(true).with_span_list(false).boxed() };
        let filter = EnvFilter::try_new(&settings.log.level)?.and(seldom_complaints());
        let traces = tracer.as_ref().map(|provider| {
            // Only our own spans: those of the exporter's client would trace themselves.
            let ours = filter_fn(|metadata| metadata.is_span() && metadata.target().starts_with("guardraild"));
            tracing_opentelemetry::layer().with_tracer(otlp::named(provider)).with_filter(ours)
        });
        tracing_subscriber::registry().with(lines.with_filter(filter)).with(traces).try_init()?;
        Ok(Guard { metrics, tracer, meter })
    }
}

impl Guard {
    /// Sends what is left, within a few seconds, whether or not the collector answers. Blocks.
    pub fn shutdown(self) {
        if let Some(Err(error)) = self.tracer.map(|tracer| tracer.shutdown_with_timeout(FLUSH)) {
            tracing::warn!(%error, "the last spans were not sent");
        }
        if let Some(Err(error)) = self.meter.map(|meter| meter.shutdown_with_timeout(FLUSH)) {
            tracing::warn!(%error, "the last metrics were not sent");
        }
    }
}

/// Fields of an event for people: whatever a record or a request put into them, they stay within one line and command no terminal.
fn one_line() -> impl for<'w> FormatFields<'w> + Send + Sync + 'static {
    let fields = format::debug_fn(|writer, field, value| {
        let text = match field.name() {
            "message" => format!("{value:?}"),
            name => format!("{name}={value:?}"),
        };
        text.chars().try_for_each(|c| if c.is_control() { write!(writer, "{}", c.escape_default()) } else { writer.write_char(c) })
    });
    fields.delimited(" ")
}

/// Passes the exporter's own events at most once per [`COMPLAINT_EVERY`], and everything else.
fn seldom_complaints<S: tracing::Subscriber>() -> impl tracing_subscriber::layer::Filter<S> {
    let next = AtomicI64::new(i64::MIN);
    dynamic_filter_fn(move |metadata, _| {
        if !metadata.target().starts_with("opentelemetry") {
            return true;
        }
        let now = clock::now();
        let due = next.load(Ordering::Relaxed);
        now >= due && next.compare_exchange(due, now + COMPLAINT_EVERY, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    })
}

/// The W3C `traceparent` of a span, to be stored with what it caused; `None` where the span is not traced.
pub fn traceparent(span: &Span) -> Option<String> {
    let context = span.context();
    let span = context.span();
    let id = span.span_context();
    id.is_valid().then(|| format!("00-{}-{}-{:02x}", id.trace_id(), id.span_id(), id.trace_flags()))
}

/// The id of the trace that a `traceparent` belongs to; `None` if that is malformed.
pub fn trace_id(traceparent: &str) -> Option<String> {
    parse(traceparent).map(|context| context.trace_id().to_string())
}

/// Notes the trace of a span in its field `trace_id`, which must be there: so each line of the log within it carries the id.
/// Not before [`set_parent`].
pub fn name_trace(span: &Span) {
    if let Some(id) = traceparent(span).and_then(|it| trace_id(&it)) {
        span.record("trace_id", id);
    }
}

/// Makes `span` a child of the span with this `traceparent`; one that is malformed is ignored. To be called before the span is entered.
pub fn set_parent(span: &Span, traceparent: &str) {
    if let Some(parent) = parse(traceparent) {
        let context = opentelemetry::Context::new().with_remote_span_context(parent);
        // Fails where nothing is traced, or the span has begun: it is then a trace of its own.
        let _ = span.set_parent(context);
    }
}

fn parse(traceparent: &str) -> Option<SpanContext> {
    let mut parts = traceparent.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, len: usize| text.len() == len && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !(hex(version, 2) && version != "ff" && hex(trace, 32) && hex(span, 16) && hex(flags, 2)) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
    let context = SpanContext::new(TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?, flags, true, TraceState::default());
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_taken_only_if_it_is_well_formed() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(trace_id(good).as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        assert!(parse(good).unwrap().is_sampled());
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-ü-00f067aa0ba902b7-01",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn what_a_record_says_stays_in_its_line() {
        let (lines, seen) = crossbeam_channel::unbounded();
        struct Sink(crossbeam_channel::Sender<Vec<u8>>);
        impl std::io::Write for Sink {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                let _ = self.0.send(bytes.to_vec());
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let layer = tracing_subscriber::fmt::layer().with_ansi(true).fmt_fields(one_line()).with_writer(move || Sink(lines.clone()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let hostile = "x\n2026-01-01 ERROR forged\r\u{1b}[2J\u{9b}31m";
            tracing::info!(text = hostile, shown = %hostile, "said {hostile}");
        });
        let text: Vec<u8> = seen.try_iter().flatten().collect();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains("\u{1b}[2J") && !text.contains(['\r', '\u{9b}']), "{text:?}");
        assert!(text.contains("said x\\n2026") && text.contains("shown=x\\n2026"), "{text}");
    }

    #[test]
    fn a_span_that_nobody_traces_has_no_traceparent() {
        assert_eq!(traceparent(&tracing::info_span!("untraced")), None);
    }
}
