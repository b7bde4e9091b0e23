use super::*;
use crate::engine::outcome::Counts;
use crate::engine::plan::{Catalog, Settings};
use std::io::Write;
use std::path::Path;

const T0: Millis = 1_764_666_000_000;

fn line(ts: Millis) -> String {
    format!(r#"{{"event":"ticket","ts":{ts},"tenant_id":"t","user_id":"u"}}"#)
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn recording(files: &[PathBuf], limits: Limits) -> Recording<'_> {
    Recording { files, source: None, limits }
}

/// Books files into an aggregator, `pause` being asked as [`Feed::pump`] asks.
fn pump(
    recording: &Recording<'_>,
    from: (&mut Aggregator, Option<&Position>),
    pause: impl FnMut(&Feed, &mut Aggregator) -> io::Result<bool>,
) -> io::Result<()> {
    let (mut feeds, progress) = recording.open(&[(&FieldTable::default(), from.1)])?;
    let whole = feeds.remove(0).pump(from.0, drop, pause)?;
    let stored = recording.files.iter().map(|p| std::fs::metadata(p).unwrap().len()).sum();
    assert_eq!(progress.total, Some(stored));
    assert!(!whole || progress.read() == stored, "{} of {stored}", progress.read());
    Ok(())
}

fn aggregator() -> Aggregator {
    Aggregator::new(0, Arc::new(Catalog::default()), Settings::default())
}

fn count(files: &[PathBuf], limits: Limits) -> io::Result<Counts> {
    let mut aggregator = aggregator();
    pump(&recording(files, limits), (&mut aggregator, None), |_, _| Ok(true))?;
    Ok(aggregator.counts().clone())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    e.write_all(bytes).unwrap();
    e.finish().unwrap()
}

/// Order in which the files' events are taken.
fn merged(files: &[PathBuf]) -> Vec<Millis> {
    let mut feed = recording(files, Limits::default()).open(&[(&FieldTable::default(), None)]).unwrap().0.remove(0);
    let mut out = Vec::new();
    feed.files.iter_mut().for_each(|stream| stream.fill(0).unwrap());
    while let Some(file) = feed.first() {
        out.push(feed.files[file].head(0).unwrap());
        feed.files[file].take(1);
        feed.files[file].fill(0).unwrap();
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
    let mut longest = 0;
    let lines = recording(std::slice::from_ref(&path), limits).each(|line| {
        longest = longest.max(line.len());
        Ok(())
    });
    lines.unwrap();
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
    assert!(count(&[dir.path().join("none")], Limits::default()).unwrap_err().to_string().contains("none"));
    assert!(count(&[dir.path().to_owned()], Limits::default()).is_err());
}

#[test]
fn files_are_merged_by_time_and_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name, times: &[Millis]| write(dir.path(), name, times.iter().map(|t| line(*t) + "\n").collect::<String>().as_bytes());
    let a = file("a", &[T0 + 1, T0 + 5, T0 + 3, T0 + 9]);
    let b = file("b", &[T0, T0 + 4, T0 + 6]);
    let empty = file("c", &[]);
    assert_eq!(merged(&[a, empty, b]), [0, 1, 4, 5, 3, 6, 9].map(|t| T0 + t));
    assert_eq!(merged(&[]), [0; 0]);
}

/// Files of many blocks each, of which one is compressed: lines of all lengths, refused ones, and ends of lines of both kinds.
fn many_blocks(dir: &Path) -> Vec<PathBuf> {
    let text = |file: Millis| {
        let mut text = String::new();
        for i in 0..30_000 {
            let end = if i % 7 == 0 { "\r\n" } else { "\n" };
            let shown = if i % 11 == 0 {
                "not json".to_owned()
            } else {
                line(T0 + i * 20 + file * 5).replace("\"u\"", &format!("\"u{}\"", "x".repeat(i as usize % 40)))
            };
            text += &(shown + end);
        }
        text
    };
    vec![write(dir, "a", text(0).as_bytes()), write(dir, "b.zst", &zstd::encode_all(text(1).as_bytes(), 1).unwrap())]
}

#[test]
fn a_feed_goes_on_from_any_of_its_positions() {
    let dir = tempfile::tempdir().unwrap();
    let files = many_blocks(dir.path());
    let recording = recording(&files, Limits::default());
    let whole = count(&files, Limits::default()).unwrap();
    assert_eq!(whole.records(), 60_000);
    for stop in [1, 2, 30, 31, 90] {
        let (mut aggregator, mut n, mut position) = (aggregator(), 0, None);
        pump(&recording, (&mut aggregator, None), |feed, _| {
            n += 1;
            position = feed.position();
            Ok(n < stop || position.is_none())
        })
        .unwrap();
        let halfway = aggregator.counts().records();
        assert!(position.is_some() && halfway > 0 && halfway < 60_000);
        pump(&recording, (&mut aggregator, position.as_ref()), |_, _| Ok(true)).unwrap();
        assert_eq!(*aggregator.counts(), whole, "after {halfway} records");
    }
}

#[test]
fn consumers_that_stand_at_different_places_each_hear_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let files = many_blocks(dir.path());
    let recording = recording(&files, Limits::default());
    let halfway = |stop| {
        let (mut aggregator, mut n, mut position) = (aggregator(), 0, None);
        pump(&recording, (&mut aggregator, None), |feed, _| {
            n += 1;
            position = feed.position();
            Ok(n < stop || position.is_none())
        })
        .unwrap();
        (aggregator, position)
    };
    let (early, late, fields) = (halfway(3), halfway(80), FieldTable::default());
    let consumers = [(&fields, late.1.as_ref()), (&fields, early.1.as_ref()), (&fields, None)];
    let feeds = recording.open(&consumers).unwrap().0;
    let threads = feeds.into_iter().zip([late.0, early.0, aggregator()]).map(|(feed, mut aggregator)| {
        std::thread::spawn(move || {
            feed.pump(&mut aggregator, drop, |_, _| io::Result::Ok(true)).unwrap();
            aggregator.counts().records()
        })
    });
    let counted: Vec<u64> = threads.collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(counted, [60_000; 3]);
}

#[test]
fn a_long_line_is_cut_the_same_wherever_blocks_end() {
    let text = format!("{}\r\n{}\n\n \n{}", "a".repeat(50), "b".repeat(9), "c".repeat(30));
    let whole: Vec<&[u8]> = lines(text.as_bytes(), 10).collect();
    assert_eq!(whole.iter().map(|line| line.len()).collect::<Vec<_>>(), [12, 9, 12]);
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "x", text.as_bytes());
    for size in 1..=text.len() {
        let mut blocks = Blocks::open(&path, 0, (size, 10), &Arc::default()).unwrap().0;
        let mut found = Vec::new();
        while let Some(raw) = blocks.next().unwrap() {
            assert!(text.as_bytes()[raw.at as usize..].starts_with(&raw.text[..raw.text.len().min(12)]), "{size}: {}", raw.at);
            found.extend(lines(&raw.text, 10).map(<[u8]>::to_vec));
        }
        assert_eq!(found, whole, "read {size} bytes at once");
    }
}
