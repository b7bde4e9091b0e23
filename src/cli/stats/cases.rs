//! The tests by name. Each is a function from its fields to its results.

mod arms;
mod classic;
mod quantiles;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

type Out = Result<Value, String>;

pub fn evaluate(test: &str, input: &Value) -> Out {
    match test {
        "rate" => with(input, arms::rate),
        "rate_drop" => with(input, arms::rate_drop),
        "detector_rate" => with(input, arms::detector_rate),
        "detector_rate_drop" => with(input, arms::detector_rate_drop),
        "rate_bounds" => with(input, arms::rate_bounds),
        "threshold" => with(input, arms::threshold),
        "threshold_lower" => with(input, arms::threshold_lower),
        "label_rate" => with(input, arms::label_rate),
        "schedule" => with(input, arms::schedule),
        "counts" => with(input, arms::counts),
        "counts_incremental" => with(input, arms::counts_incremental),
        "mean" => with(input, arms::mean),
        "relative_lift" => with(input, arms::relative_lift),
        "srm" => with(input, arms::srm),
        "poisson" => with(input, arms::poisson),
        "poisson_lower" => with(input, arms::poisson_lower),
        "kth_event" => with(input, arms::kth_event),
        "multiple" => with(input, arms::multiple),
        "gatekeeping" => with(input, arms::gatekeeping),
        "exceedance" => with(input, quantiles::exceedance),
        "bucket" => with(input, quantiles::bin),
        "margin" => with(input, quantiles::margin),
        "quantile_absolute" => with(input, quantiles::quantile_absolute),
        "quantile_relative" => with(input, quantiles::quantile_relative),
        "quantile_cs" => with(input, quantiles::quantile_cs),
        "detector_label_rate" => with(input, quantiles::detector_label_rate),
        "detector_quantile_relative" => with(input, quantiles::detector_quantile_relative),
        "design_effect" => with(input, quantiles::batches),
        "ladder" => with(input, quantiles::ladder),
        "posterior_rate" => with(input, classic::posterior_rate),
        "posterior_mean" => with(input, classic::posterior_mean),
        "posterior_quantile" => with(input, classic::posterior_quantile),
        "fixed_rate" => with(input, classic::fixed_rate),
        "fixed_mean" => with(input, classic::fixed_mean),
        "fixed_quantile" => with(input, classic::fixed_quantile),
        _ => Err(format!("unknown test `{test}`")),
    }
}

fn with<T: DeserializeOwned>(input: &Value, case: fn(T) -> Out) -> Out {
    case(T::deserialize(input).map_err(|e| format!("bad `in`: {e}"))?)
}

fn number(value: f64) -> Value {
    if value == f64::INFINITY {
        json!("inf")
    } else if value == f64::NEG_INFINITY {
        json!("-inf")
    } else {
        json!(value)
    }
}
