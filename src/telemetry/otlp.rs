//! OTLP over HTTP: exporters on threads of their own, with bounded queues, so that no collector can hold the daemon up.

use super::metrics::{MAX_ROWS, Metrics};
use super::names::{self, BOUNDS, Kind, Metric};
use crate::config::Otlp;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Meter, MeterProvider};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{ExporterBuildError, MetricExporter, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{Instrument, InstrumentKind, PeriodicReader, SdkMeterProvider, Stream};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use secrecy::ExposeSecret;
use std::time::Duration;

const NAME: &str = "guardraild";
/// One export may take this long.
const TIMEOUT: Duration = Duration::from_secs(5);

pub fn tracer(endpoint: &str, otlp: &Otlp) -> Result<SdkTracerProvider, ExporterBuildError> {
    let url = format!("{endpoint}/v1/traces");
    let exporter = SpanExporter::builder().with_http().with_endpoint(url).with_timeout(TIMEOUT).with_headers(headers(otlp)).build()?;
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build())
}

pub fn named(provider: &SdkTracerProvider) -> SdkTracer {
    provider.tracer(NAME)
}

/// A provider that reads `metrics` at every interval; histograms are also observed by it from now on.
pub fn meter(endpoint: &str, otlp: &Otlp, metrics: &Metrics) -> Result<SdkMeterProvider, ExporterBuildError> {
    let url = format!("{endpoint}/v1/metrics");
    let exporter = MetricExporter::builder().with_http().with_endpoint(url).with_timeout(TIMEOUT).with_headers(headers(otlp)).build()?;
    let reader = PeriodicReader::builder(exporter).with_interval(otlp.interval).build();
    // The registry bounds the series already; the exporter would fold those beyond 2,000 into one.
    let all_rows = |instrument: &Instrument| {
        let gauge = instrument.kind() == InstrumentKind::ObservableGauge;
        Stream::builder().with_cardinality_limit(MAX_ROWS).build().ok().filter(|_| gauge)
    };
    let provider = SdkMeterProvider::builder().with_reader(reader).with_resource(resource()).with_view(all_rows).build();
    let meter = provider.meter(NAME);
    for metric in names::ALL {
        bridge(&meter, metric, metrics);
    }
    Ok(provider)
}

fn bridge(meter: &Meter, metric: &'static Metric, metrics: &Metrics) {
    let read = {
        let metrics = metrics.clone();
        move |observer: &dyn AsyncInstrument<f64>| {
            metrics.refresh();
            for (values, number) in metrics.numbers(metric) {
                observer.observe(number, &attributes(metric, &values));
            }
        }
    };
    match metric.kind {
        Kind::Counter => {
            meter.f64_observable_counter(metric.name).with_description(metric.help).with_callback(read).build();
        }
        Kind::Gauge => {
            meter.f64_observable_gauge(metric.name).with_description(metric.help).with_callback(read).build();
        }
        Kind::Histogram => {
            let histogram = meter.f64_histogram(metric.name).with_description(metric.help).with_unit("s");
            let histogram = histogram.with_boundaries(BOUNDS.to_vec()).build();
            metrics.mirror(metric, Box::new(move |values, seconds| histogram.record(seconds, &attributes(metric, values))));
        }
    }
}

fn attributes(metric: &Metric, values: &[String]) -> Vec<KeyValue> {
    metric.labels.iter().zip(values).map(|(name, value)| KeyValue::new(*name, value.clone())).collect()
}

fn resource() -> Resource {
    Resource::builder().with_service_name(NAME).with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build()
}

/// The exporter asks for this type; its order is never seen.
#[allow(clippy::disallowed_types)]
fn headers(otlp: &Otlp) -> std::collections::HashMap<String, String> {
    otlp.headers.iter().map(|(name, value)| (name.clone(), value.expose_secret().to_owned())).collect()
}
