//! Sources for layouts that products write, as anybody could write them: YAML in the shape of a rule file's `sources`.

/// Name and definition. `tests/presets` holds a record of each, and the events that it stands for.
pub const PRESETS: &[(&str, &str)] = &[
    ("cloudevents", include_str!("presets/cloudevents.yaml")),
    ("growthbook", include_str!("presets/growthbook.yaml")),
    ("launchdarkly", include_str!("presets/launchdarkly.yaml")),
    ("opentelemetry", include_str!("presets/opentelemetry.yaml")),
    ("segment", include_str!("presets/segment.yaml")),
];

/// The names, in the order of [`PRESETS`].
pub const NAMES: &[&str] = &["cloudevents", "growthbook", "launchdarkly", "opentelemetry", "segment"];
