use super::*;
use crate::engine::plan::{Catalog, FieldTable, Settings};
use proptest::prelude::*;
use std::io::Write;

const T0: Millis = 1_764_666_000_000;

fn line(ts: Millis) -> String {
    format!(r#"{{"event":"ticket","ts":{ts},"tenant_id":"t","user_id":"u"}}"#)
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn count(paths: &[PathBuf], limits: Limits) -> io::Result<Counts> {
    let mut decoder = Decoder::new(&FieldTable::default(), limits);
    let mut aggregator = Aggregator::new(0, Arc::new(Catalog::default()), Settings::default());
    let (mut last, total) = (0, paths.iter().map(|p| std::fs::metadata(p).unwrap().len()).sum());
    let source = FileSource::open(paths, None, limits)?;
    let counts = pump(source, &mut decoder, &mut aggregator, drop, |read, of| {
        assert!(read >= last && of == Some(total));
        last = read;
    })?;
    assert_eq!(last, total);
    Ok(counts)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    e.write_all(bytes).unwrap();
    e.finish().unwrap()
}

/// Order of arrival at the aggregator, as `pump` merges the files.
fn merged(paths: &[PathBuf]) -> Vec<String> {
    let mut source = FileSource::open(paths, None, Limits::default()).unwrap();
    let mut decoder = Decoder::new(&FieldTable::default(), Limits::default());
    let mut merge = Merge::start(&mut source.files, &mut decoder).unwrap();
    let (mut out, mut line) = (Vec::new(), Vec::new());
    while merge.next(&mut source.files, &mut decoder, &mut line).unwrap() {
        out.push(String::from_utf8(line.clone()).unwrap());
    }
    out
}

#[test]
fn every_line_is_one_record_however_it_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("{}\n\r\n\n  \n{}\r\nnot json\n{}", line(T0), line(T0 + 1), line(T0 + 2));
    let mut frames = zstd::encode_all(text.as_bytes(), 1).unwrap();
    frames.extend(zstd::encode_all(&b"\n{}\n"[..], 1).unwrap());
    let members = [gzip(text.as_bytes()), gzip(b"\n{}\n")].concat();
    for (name, bytes, records) in [("a.ndjson", text.as_bytes(), 4), ("a.gz", &members, 5), ("a.zst", &frames, 5), ("empty", b"", 0)] {
        let counts = count(&[write(dir.path(), name, bytes)], Limits::default()).unwrap();
        assert_eq!(counts.records(), records, "{name}");
        assert_eq!(counts.rejected.get(Reject::NotJson), records.min(1), "{name}");
    }
}

#[test]
fn a_line_without_end_is_refused_and_not_held() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { max_record_bytes: 100, ..Limits::default() };
    let fit = |n: usize| line(T0).replace("\"u\"", &format!("\"{}\"", "u".repeat(n + 1 - line(T0).len())));
    assert_eq!(fit(100).len(), 100);
    let text = format!("{}\n{}\r\n{}\n{}\n{}\n", fit(100), fit(100), fit(101), fit(102), "x".repeat(1_000_000)) + &line(T0);
    let path = write(dir.path(), "long", text.as_bytes());
    let mut source = FileSource::open(std::slice::from_ref(&path), None, limits).unwrap();
    let mut longest = 0;
    while source.files[0].advance().unwrap() {
        longest = longest.max(source.files[0].line.len());
    }
    assert_eq!(longest, 102);
    let counts = count(&[path], limits).unwrap();
    assert_eq!((counts.records(), counts.rejected.get(Reject::TooLarge)), (6, 3));
}

#[test]
fn a_broken_file_is_an_error_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = gzip(line(T0).repeat(1000).as_bytes());
    bytes.truncate(bytes.len() - 9);
    let error = count(&[write(dir.path(), "cut.gz", &bytes)], Limits::default()).unwrap_err();
    assert!(error.to_string().contains("cut.gz"), "{error}");
    assert!(FileSource::open(&[dir.path().join("none")], None, Limits::default()).err().unwrap().to_string().contains("none"));
    assert!(FileSource::open(&[dir.path().to_owned()], None, Limits::default()).is_err());
}

#[test]
fn files_are_merged_by_time_and_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name, times: &[Millis]| write(dir.path(), name, times.iter().map(|t| line(*t) + "\n").collect::<String>().as_bytes());
    let a = file("a", &[T0 + 1, T0 + 5, T0 + 3, T0 + 9]);
    let b = file("b", &[T0, T0 + 4, T0 + 6]);
    let empty = file("c", &[]);
    let expected: Vec<String> = [0, 1, 4, 5, 3, 6, 9].iter().map(|t| line(T0 + t)).collect();
    assert_eq!(merged(&[a, empty, b]), expected);
    assert_eq!(merged(&[]), Vec::<String>::new());
}

/// Runs event times through the gate: accepted ones, and those of the future.
fn gated(times: &[Millis]) -> (Vec<Millis>, Vec<Millis>) {
    let (mut gate, mut accepted, mut future) = (Gate::default(), Vec::new(), Vec::new());
    let mut out = |bytes: &[u8], fate| {
        let ts = Millis::from_le_bytes(bytes.try_into().unwrap());
        if fate == Fate::Accepted { accepted.push(ts) } else { future.push(ts) }
    };
    for ts in times {
        if gate.passes(*ts) {
            out(&ts.to_le_bytes(), Fate::Accepted);
        } else {
            gate.offer(*ts, &ts.to_le_bytes(), &mut out);
        }
        assert!(gate.held.len() <= CONFIRMED_BY);
    }
    gate.finish(&mut out);
    (accepted, future)
}

#[test]
fn records_of_the_future_are_told_from_a_gap() {
    let day = 24 * JUMP;
    let dense = |from: Millis, n: Millis| (0..n).map(move |i| from + i * 1000);
    let year = T0 + 365 * day;
    let check = |times: Vec<Millis>, future: &[Millis]| {
        let kept: Vec<Millis> = times.iter().copied().filter(|t| !future.contains(t)).collect();
        assert_eq!(gated(&times), (kept, future.to_vec()));
    };
    check(dense(T0, 300).collect(), &[]);
    check(dense(T0, 100).chain(dense(T0 + day, 100)).collect(), &[]);
    check(dense(T0, 3).chain(dense(T0 + day, 3)).collect(), &[]);
    check((0..200).map(|i| T0 + i * 2 * JUMP).collect(), &[]);
    for place in [0, 1, 62, 63, 64, 65, 150, 199] {
        let mut times: Vec<Millis> = dense(T0, 199).collect();
        times.insert(place, year);
        check(times, &[year]);
    }
    // In the very moment of a gap.
    check(dense(T0, 100).chain([year, year + 1]).chain(dense(T0 + day, 100)).collect(), &[year, year + 1]);
    // A straggler from before the gap costs the few records held just then, and no more.
    let (accepted, future) = gated(&dense(T0, 100).chain(dense(T0 + day, 10)).chain([T0]).chain(dense(T0 + day, 100)).collect::<Vec<_>>());
    assert_eq!((accepted.len(), future.len()), (201, 10));
    // A record from long ago says nothing about what is held.
    let (accepted, future) =
        gated(&dense(T0, 100).chain(dense(T0 + day, 10)).chain([T0 - day]).chain(dense(T0 + day, 100)).collect::<Vec<_>>());
    assert_eq!((accepted.len(), future.len()), (211, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing is lost or doubled, and without jumps nothing is refused or moved.
    #[test]
    fn the_gate_lets_each_record_out_once(times in prop::collection::vec((0i64..6, 0i64..60_000), 0..300)) {
        let times: Vec<Millis> = times.iter().map(|(jump, t)| T0 + jump / 5 * 50 * JUMP + t).collect();
        let (accepted, future) = gated(&times);
        let mut all = [accepted, future].concat();
        let mut expected = times.clone();
        all.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(all, expected);
        let calm: Vec<Millis> = times.iter().map(|t| T0 + t % 3_000_000).collect();
        prop_assert_eq!(gated(&calm), (calm.clone(), vec![]));
    }
}

/// Prints records per second: run with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn file_speed() {
    let dir = tempfile::tempdir().unwrap();
    let pad =
        format!(r#","experiment":"new-checkout","bucket":"treatment","latency_ms":12.5,"error":false,"route":"/{}"}}"#, "x".repeat(80));
    let text: String = (0..1_000_000).map(|i| line(T0 + i).replace('}', &pad) + "\n").collect();
    for (name, bytes) in
        [("plain", text.clone().into_bytes()), ("zstd", zstd::encode_all(text.as_bytes(), 3).unwrap()), ("gzip", gzip(text.as_bytes()))]
    {
        let path = write(dir.path(), name, &bytes);
        let start = std::time::Instant::now();
        let counts = count(&[path], Limits::default()).unwrap();
        println!(
            "{name}: {:.2} M records/s of {} bytes",
            counts.records() as f64 / 1e6 / start.elapsed().as_secs_f64(),
            text.len() / 1_000_000
        );
    }
}
