//! The data behind a readout, as files that other programs read, or as one archive of them.

use super::Dossier;
use super::outcome::rows;
use crate::engine::decision::Timestamp;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;
use std::io;

/// Name and content of each file.
pub fn files(dossier: &Dossier) -> Vec<(&'static str, String)> {
    let mut files = vec![
        ("README.md", about(dossier)),
        ("readout.md", super::markdown(dossier)),
        ("readout.html", super::html(dossier)),
        ("log.ndjson", lines(&dossier.log)),
        ("log.csv", log(dossier)),
        ("decisions.ndjson", lines(&dossier.decisions)),
        ("guardrails_over_time.csv", guardrails_over_time(dossier)),
        ("buckets_over_time.csv", buckets_over_time(dossier)),
        ("histograms.csv", histograms(dossier)),
    ];
    if let Some(state) = &dossier.state {
        files.push(("experiment.json", format!("{state:#}\n")));
        files.push(("guardrails.csv", guardrails(state)));
        files.push(("phases.csv", phases(state)));
    }
    if !dossier.rule.is_empty() {
        files.push(("rule.yaml", dossier.rule.clone()));
    }
    files
}

/// The files in a folder of the experiment's name, as a compressed tar archive: the same dossier makes the same bytes.
///
/// # Errors
/// None that are known: everything is in memory.
pub fn archive(dossier: &Dossier) -> io::Result<Vec<u8>> {
    let (folder, at) = (folder(&dossier.experiment), u64::try_from(dossier.at / 1_000).unwrap_or(0));
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for (name, content) in files(dossier) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(at);
        tar.append_data(&mut header, format!("{folder}/{name}"), content.as_bytes())?;
    }
    tar.into_inner()?.finish()
}

/// A name for files of the experiment that every file system and header takes.
pub fn folder(experiment: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '_' };
    format!("{}-readout", experiment.chars().map(plain).collect::<String>())
}

fn about(dossier: &Dossier) -> String {
    format!(
        "# Data of `{}`, as of {}\n\n\
         | file | holds |\n| --- | --- |\n\
         | `readout.md`, `readout.html` | the readout: sections 7 to 9 of the runbook |\n\
         | `experiment.json` | the state, as `GET /api/v1/experiments/ID` gives it |\n\
         | `guardrails.csv` | each guardrail, bucket and segment at the end: values, interval, verdict, e-value |\n\
         | `guardrails_over_time.csv`, `buckets_over_time.csv` | the same as it went; points are fewer the older they are |\n\
         | `histograms.csv` | counts of the values between `from` and `to`, of what has a distribution, as the readout draws them |\n\
         | `phases.csv` | metrics of each phase and bucket, and of the whole life (phase is empty) |\n\
         | `log.csv`, `log.ndjson` | the execution log |\n\
         | `decisions.ndjson` | each decision with its evidence (`guardraild audit` recomputes it) and its deliveries |\n\
         | `rule.yaml` | the rule file that was in force |\n\n\
         Shares and relative changes are fractions: 0.05 is 5%. Times are RFC 3339 in UTC. NDJSON is one JSON object a line. For Parquet:\n\
         `duckdb -c \"COPY (FROM 'guardrails_over_time.csv') TO 'guardrails.parquet'\"`.\n\n\
         No file holds a user's data; texts of the log are what people wrote. In the daemon's database all of this is kept for\n\
         `store.retention` after the last that was heard of the experiment, once its rule file has gone. Who may export: whoever may read the API\n\
         (`http.tokens`), or the daemon's files. Keep and delete this copy as your own rules say.\n",
        dossier.experiment,
        Timestamp(dossier.at / 1_000 * 1_000)
    )
}

fn lines(values: &[Value]) -> String {
    values.iter().map(|value| format!("{value}\n")).collect()
}

/// RFC 4180, but for line ends.
fn csv(head: &str, rows: impl Iterator<Item = Vec<String>>) -> String {
    let row = |row: Vec<String>| format!("{}\n", row.iter().map(|field| quoted(field)).collect::<Vec<_>>().join(","));
    format!("{head}\n{}", rows.map(row).collect::<String>())
}

/// A field that a spreadsheet would take for a formula is made a text.
fn quoted(text: &str) -> String {
    let text = if text.starts_with(['=', '+', '@']) { format!("'{text}") } else { text.to_owned() };
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text,
    }
}

/// A value as a field: null is empty.
fn field(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or(String::new(), |v| v.to_string())
}

fn log(dossier: &Dossier) -> String {
    let row = |entry: &Value| {
        let links: Vec<&str> = rows(entry, "links").filter_map(Value::as_str).collect();
        vec![
            field(&entry["at"]),
            field(&entry["kind"]),
            field(&entry["author"]),
            field(&entry["text"]),
            field(&entry["decision"]),
            links.join(" "),
        ]
    };
    csv("at,kind,author,text,decision,links", dossier.log.iter().map(row))
}

fn guardrails(state: &Value) -> String {
    const FIELDS: [&str; 12] = [
        "verdict",
        "unit",
        "baseline_value",
        "bucket_value",
        "change",
        "limit",
        "n",
        "baseline_n",
        "log_e_value",
        "log_threshold",
        "decision",
        "reason",
    ];
    let row = |guardrail: &Value, of: &Value| {
        let mut row = vec![field(&guardrail["guardrail"]), field(&guardrail["bucket"]), field(&of["segment"])];
        row.extend([field(&of["interval"][0]), field(&of["interval"][1])]);
        row.extend(FIELDS.map(|name| field(if name == "unit" || name == "limit" { &guardrail[name] } else { &of[name] })));
        row
    };
    let of = |g: &Value| std::iter::once(row(g, g)).chain(rows(g, "segments").map(|s| row(g, s))).collect::<Vec<_>>();
    csv(&format!("guardrail,bucket,segment,low,high,{}", FIELDS.join(",")), rows(state, "guardrails").flat_map(of))
}

fn guardrails_over_time(dossier: &Dossier) -> String {
    let of = |(at, kept): &(i64, crate::live::Kept)| {
        let row = |g: &crate::live::KeptSample| {
            let s = &g.sample;
            let verdict = field(&serde_json::to_value(s.verdict).unwrap_or_default());
            let mut row = vec![Timestamp(*at).to_string(), kept.revision.to_string(), g.guardrail.clone(), g.bucket.clone(), verdict];
            row.extend([s.baseline_value, s.bucket_value, s.interval.map(|i| i[0]), s.interval.map(|i| i[1])].map(number));
            row.extend([s.n.to_string(), number(s.log_e_value), number(s.log_threshold)]);
            row
        };
        kept.guardrails.iter().map(row).collect::<Vec<_>>()
    };
    let head = "at,revision,guardrail,bucket,verdict,baseline_value,bucket_value,low,high,n,log_e_value,log_threshold";
    csv(head, dossier.points.iter().flat_map(of))
}

fn buckets_over_time(dossier: &Dossier) -> String {
    let of = |(at, kept): &(i64, crate::live::Kept)| {
        let row = |b: &crate::live::KeptBucket| {
            vec![Timestamp(*at).to_string(), b.bucket.clone(), b.exposed_units.to_string(), b.exposure_rate.to_string()]
        };
        kept.buckets.iter().map(row).collect::<Vec<_>>()
    };
    csv("at,bucket,exposed_units,exposures_per_second", dossier.points.iter().flat_map(of))
}

fn histograms(dossier: &Dossier) -> String {
    let of = |histogram: &Value| {
        let row = |bin: &Value| {
            let of = ["guardrail", "bucket", "of"].map(|name| field(&histogram[name]));
            of.into_iter().chain(["from", "to", "baseline", "bucket"].map(|name| field(&bin[name]))).collect()
        };
        rows(histogram, "bins").map(row).collect::<Vec<_>>()
    };
    csv("guardrail,bucket,of,from,to,baseline_count,bucket_count", dossier.histograms.iter().flat_map(of))
}

fn phases(state: &Value) -> String {
    let moment = |value: &Value| value.as_i64().map_or(String::new(), |at| Timestamp(at).to_string());
    let of = |phase: &Value| {
        let row = |b: &Value, m: &Value| {
            let mut row =
                vec![field(&phase["phase"]), field(&phase["name"]), moment(&phase["since"]), moment(&phase["until"]), field(&b["bucket"])];
            row.extend(["weight", "exposed_units", "exposures", "events"].map(|name| field(&b[name])));
            row.extend(["metric", "unit", "n", "value"].map(|name| field(&m[name])));
            row
        };
        rows(phase, "buckets").flat_map(|b| rows(b, "metrics").map(move |m| row(b, m))).collect::<Vec<_>>()
    };
    let all = rows(state, "phases").chain([&state["whole_life"]]);
    csv("phase,name,since,until,bucket,weight,exposed_units,exposures,events,metric,unit,n,value", all.flat_map(of))
}
