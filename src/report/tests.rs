use super::*;

fn line(name: &str, shift: f64) -> Line {
    let point = |i: i32| {
        let x = 1_764_666_000_000.0 + 20_000.0 * f64::from(i);
        let y = (i != 9).then(|| shift + 0.05 * (f64::from(i) / 3.0).sin());
        let width = 0.9 / f64::from(i + 1);
        Point { x, y, band: y.filter(|_| i > 1).map(|y| [y - width, y + width]) }
    };
    Line { name: name.into(), points: (0..30).map(point).collect() }
}

fn mark(i: i32, kind: MarkKind, label: &str) -> Mark {
    Mark { x: 1_764_666_000_000.0 + 20_000.0 * f64::from(i), kind, label: label.into() }
}

fn lines() -> Lines {
    Lines {
        alt: "latency p95 of treatment against control".into(),
        axis: Axis::Time,
        unit: Unit::Change,
        lines: vec![line("treatment", 0.12), line("express", -0.02)],
        margin: Some((0.1, "margin +10%".into())),
        zero: true,
        marks: vec![
            mark(2, MarkKind::Phase, "25%"),
            mark(12, MarkKind::Fault, "treatment slows by half, injected by the demonstration"),
            mark(13, MarkKind::Note, "note"),
            mark(27, MarkKind::Decision, "rollback of treatment"),
        ],
    }
}

fn forest() -> Forest {
    let row = |label: &str, estimate, interval, note: &str| Row { label: label.into(), estimate, interval, note: note.into() };
    Forest {
        alt: "latency p95 by segment".into(),
        unit: Unit::Change,
        margin: Some((0.1, "+10%".into())),
        rows: vec![
            row("region=eu", Some(0.02), Some([-0.01, 0.05]), "9,000 units"),
            row("region=uk", Some(0.14), Some([0.08, 0.2]), "breach"),
            row("region=other", Some(0.3), Some([-9.0, 12.0]), ""),
            row("device=watch", None, None, "3 units"),
        ],
    }
}

fn bars() -> Bars {
    let bar = |share: f64| Bar { share: Some(share), text: format!("{:.0}%", 100.0 * share) };
    Bars {
        alt: "funnel".into(),
        series: vec!["treatment".into(), "control".into()],
        groups: vec![
            ("started".into(), vec![bar(1.0), bar(1.0)]),
            ("completed".into(), vec![bar(0.4), Bar { share: None, text: "none".into() }]),
        ],
    }
}

fn histogram(edge: impl Fn(i32) -> f64) -> Histogram {
    let bin = |i: i32| Bin {
        from: edge(i),
        to: edge(i + 1),
        counts: [(400.0 * (-f64::from((i - 8).pow(2)) / 20.0).exp()) as u64, (300.0 * (-f64::from((i - 11).pow(2)) / 30.0).exp()) as u64],
    };
    Histogram {
        alt: "latency of both buckets".into(),
        unit: Unit::Of("ms".into()),
        names: ["control".into(), "treatment".into()],
        bins: (1..24).map(bin).collect(),
        lines: vec![(250.0, "p95".into())],
    }
}

fn page() -> Page {
    let mut page = Page::new("Readout of <new>", "as of 2026-12-02 & later");
    page.callout(Html::verdict("roll back").then(": latency \"p95\" rose"));
    page.heading("Charts").figure("Lift", &lines().svg()).figure("Segments", &forest().svg());
    page.figure("Funnel", &bars().svg())
        .figure("Values", &histogram(|i| 20.0 * f64::from(i)).svg())
        .figure("Wide", &histogram(|i| 2_f64.powi(i - 3)).svg());
    page.subheading("A table").table(&["what", "#units"], [vec!["<b>".into(), "1,024".into()]]);
    page.paragraph(Html::linked("see https://wiki.example/a?b=1&c=2, or javascript:alert(1)"))
        .list([Html::blank("to fill in"), Html::code("a<b")]);
    page
}

#[test]
fn a_page_looks_as_it_did() {
    let (path, text) = (std::path::Path::new("tests/report/page.html"), page().finish());
    if std::env::var_os("GUARDRAILD_UPDATE").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    let differs = kept.lines().zip(text.lines()).find(|(a, b)| a != b);
    assert!(kept == text, "{} differs, first in {differs:?}; GUARDRAILD_UPDATE=1 writes it anew", path.display());
}

#[test]
fn a_page_asks_nobody_and_runs_nothing() {
    let text = page().finish();
    for loads in ["<script", "<img", "<link", "<iframe", "url(", "@import", " src=", " onload", "href=\"javascript"] {
        assert!(!text.contains(loads), "{loads}");
    }
    assert!(!text.contains("<new>") && text.contains("Readout of &lt;new&gt;"), "{text}");
    assert!(text.contains("<a href=\"https://wiki.example/a?b=1&amp;c=2\" rel=\"noopener noreferrer\">"), "{text}");
}

#[test]
fn every_element_that_is_opened_is_closed() {
    let text = page().finish();
    let body = &text[text.find("<body>").unwrap()..];
    let mut open = Vec::new();
    for tag in body.split('<').skip(1).map(|rest| &rest[..rest.find('>').unwrap()]) {
        match tag.strip_prefix('/') {
            Some("html") => {}
            Some(name) => assert_eq!(open.pop(), Some(name), "</{name}>"),
            None if tag.ends_with('/') => {}
            None => open.push(tag.split_whitespace().next().unwrap()),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn charts_stay_whole_whatever_they_are_given() {
    let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, 1e300, -1e300];
    for value in odd {
        let points = vec![Point { x: value, y: Some(value), band: Some([value, -value]) }, Point { x: 0.0, y: None, band: None }];
        let chart = Lines { lines: vec![Line { name: "x".into(), points }], marks: vec![mark(0, MarkKind::Note, "\u{1b}[31m")], ..lines() };
        let shown = chart.svg().to_string();
        assert!(!shown.contains('\u{1b}'), "{shown}");
        let bin = Bin { from: value, to: value, counts: [1, 0] };
        let _ = Histogram { bins: vec![bin], lines: vec![(value, "v".into())], ..histogram(f64::from) }.svg();
        let row = Row { label: String::new(), estimate: Some(value), interval: Some([value, value]), note: String::new() };
        let _ = Forest { rows: vec![row], margin: Some((value, String::new())), ..forest() }.svg();
    }
    let _ = Lines { lines: Vec::new(), marks: Vec::new(), ..lines() }.svg();
    let _ = Bars { series: Vec::new(), groups: Vec::new(), ..bars() }.svg();
}

#[test]
fn numbers_are_written_as_people_read_them() {
    let shown = |unit: Unit, value| unit.show(value);
    assert_eq!(shown(Unit::Change, 0.2333), "+23.3%");
    assert_eq!(shown(Unit::Points, -0.00512), "-0.51pp");
    assert_eq!(shown(Unit::Of("ms".into()), 1_234_567.0), "1,234,567 ms");
    assert_eq!(shown(Unit::Of(String::new()), 0.0), "0");
    assert_eq!(shown(Unit::Share, 0.00012), "0.012%");
    assert_eq!(shown(Unit::By("ms".into()), 20.0), "+20 ms");
}

#[test]
fn instants_on_the_axis_are_round() {
    let labels = |low: f64, high: f64| scale::times(low, high, 6).into_iter().map(|(_, label)| label).collect::<Vec<_>>();
    let noon = 1_764_676_800_000.0;
    assert_eq!(labels(noon, noon + 60_000.0), ["12:00:00", "12:00:10", "12:00:20", "12:00:30", "12:00:40", "12:00:50", "12:01:00"]);
    assert_eq!(labels(noon + 1.0, noon + 5.0 * 3_600_000.0), ["13:00", "14:00", "15:00", "16:00", "17:00"]);
    assert!(labels(noon, noon + 400.0 * 86_400_000.0).len() <= 7);
    assert!(labels(f64::NAN, f64::INFINITY).len() <= 7);
}
