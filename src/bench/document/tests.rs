use super::super::report::{Ceiling, DeviceRecord, Limit, Suite};
use super::super::times::Times;
use super::*;

/// A row that took so long.
fn row(suite: Suite, name: &str, by: &str, us: f64) -> Row {
    let model = Some("starcoder2-15b".to_owned());
    Row { by: by.to_owned(), times: Times::of(vec![us]), model, ..Row::new(suite, name) }
}

/// A made-up GPU of 4 TB/s and 800 TFLOP/s.
fn gpu() -> Source {
    let device = DeviceRecord { kind: "cuda".to_owned(), name: "a card".to_owned(), ..DeviceRecord::default() };
    let mut report = Report::begin(device);
    report.date = "2030-01-02T03:04:05Z".to_owned();
    report.command = "rigel bench all".to_owned();
    let ceiling = |limit, per_second| Ceiling { limit, by: "rigel".to_owned(), per_second, how: "read".to_owned() };
    report.ceilings = vec![ceiling(Limit::Bytes, 4e12), ceiling(Limit::Flops, 8e14)];
    let ceilings = report.ceilings();
    let mut add = |mut row: Row| {
        ceilings.judge(&mut row);
        report.rows.push(row);
    };
    // 32 GB in 10 ms, twice: the last counts. 100 tokens a second.
    for us in [2e4, 1e4] {
        add(Row { bytes: 32_000_000_000, tokens: 1, ..row(Suite::Model, "tg128", "rigel", us) }.size("batch", 1));
    }
    add(Row { bytes: 32_000_000_000, tokens: 8, ..row(Suite::Model, "tg128", "rigel", 1.6e4) }.size("batch", 8));
    add(Row { tokens: 1, ..row(Suite::Model, "tg128", "transformers", 5e4) }.size("batch", 1));
    add(Row { flops: 5_400_000_000_000, tokens: 4096, ..row(Suite::Model, "pp4096", "rigel", 9e3) }.size("batch", 1));
    let gemm = |by, rows: u64, us| {
        let work = Row { bytes: 100 << 20, flops: 600_000_000_000, ..row(Suite::Kernels, "gemm up_proj", by, us) };
        work.size("rows", rows).size("columns", 24_576)
    };
    for (by, rows, us) in
        [("rigel", 2048, 1e3), ("torch cublas", 2048, 9e2), ("rigel", 8192, 1e3), ("torch cublas", 8192, 1.2e3)]
    {
        add(gemm(by, rows, us));
    }
    add(Row { missing: Some("no memory".to_owned()), times: None, ..gemm("torch cublas", 16, 1.0) });
    Source { file: "benches/results/a-card.json".to_owned(), report }
}

/// The cells of the target table's line that begins with this work.
fn target<'a>(text: &'a str, work: &str) -> Vec<&'a str> {
    let line = text.lines().find(|line| line.starts_with(&format!("| {work} "))).unwrap_or_else(|| panic!("{work}"));
    line.trim_matches('|').split('|').map(str::trim).collect()
}

/// What a reader sees on demand: the targets that nobody has measured.
fn folded(text: &str) -> &str {
    let (_, rest) = text.split_once("<details>\n<summary>Targets not yet measured</summary>\n\n").unwrap();
    rest.split_once("\n</details>").unwrap().0
}

#[test]
fn with_no_result_everything_says_so() {
    let document = Document::of(&[]);
    assert_eq!(document.plots, [None, None, None]);
    let folded = folded(&document.text);
    assert_eq!(folded.lines().filter(|line| line.contains(" ≥ ") || line.contains(" < ")).count(), 11, "{folded}");
    assert!(!document.text.contains("peer in the same run"), "{}", document.text);
    assert!(document.text.contains("GPU: not yet measured") && document.text.contains("CPU: not yet measured"));
}

#[test]
fn targets_have_what_was_measured_and_the_peer() {
    let Document { text, plots } = Document::of(&[gpu()]);
    let decode = target(&text, "decode, batch 1");
    assert_eq!(decode[2..], ["80 %, 100 tok/s", "transformers 20.0 tok/s"]);
    assert_eq!(target(&text, "GEMM, M ≥ 2048")[2..], ["0.90 to 1.20 x, 600 TFLOP/s", "500 to 667 TFLOP/s"]);
    assert_eq!(target(&text, "prefill end to end, 4k prompt")[2], "75 %, 455111 tok/s");
    for work in ["decode, batch 64, 1k context", "CPU decode"] {
        assert_eq!(target(folded(&text), work).len(), 2, "{work}");
    }
    assert!(!folded(&text).contains("GEMM, M ≥ 2048"), "{text}");
    for part in ["a card, 2030-01-02T03:04:05Z", "`rigel bench all`", "`benches/results/a-card.json`", "#### Models"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert!(text.contains("| gemm up_proj | columns 24576, rows 2048 | 1000 |"), "{text}");
    assert!(text.contains("| 0.90 x torch cublas |"), "{text}");
    if let Some(folder) = std::env::var_os("RIGEL_PICTURE") {
        // To be looked at.
        for (file, plot) in PLOTS.iter().zip(&plots) {
            fs::write(Path::new(&folder).with_file_name(file), plot.as_ref().unwrap()).unwrap();
        }
    }
    let [roofline, tokens, peers] = plots.map(Option::unwrap);
    assert!(roofline.contains("gemm up_proj columns 24576, rows 8192: 600 TFLOP/s, 75 % of the limit"), "{roofline}");
    assert!(tokens.contains("transformers, 1 sequence: 20.0 tokens/s") && tokens.contains("the limit of bytes"));
    assert!(tokens.contains("rigel, 8 sequences: 500 tokens/s") && tokens.contains("128 new tokens"), "{tokens}");
    assert!(peers.contains("gemm up_proj, beside torch cublas: 1.05 x, 2 sizes, 0.90 to 1.20"), "{peers}");
    assert!(peers.contains("lines: smallest to largest"));
    assert!([roofline, tokens, peers].iter().all(|plot| !plot.contains("NaN") && !plot.contains("inf")));
}

/// One batch size makes no curve: bars, without what a curve needs.
#[test]
fn one_batch_size_is_drawn_as_bars() {
    let mut source = gpu();
    source.report.rows.retain(|row| row.suite == Suite::Model && size(row, "batch") == Some(1));
    let [roofline, tokens, peers] = Document::of(&[source]).plots;
    let (tokens, peers) = (tokens.unwrap(), peers.unwrap());
    assert_eq!(roofline, None);
    for part in ["starcoder2-15b, 128 new tokens, 1 sequence", "transformers, 1 sequence: 20.0 tokens/s"] {
        assert!(tokens.contains(part), "no {part:?} in {tokens}");
    }
    assert!(tokens.contains(">limit 125<"), "{tokens}");
    for absent in ["circle", "stroke-dasharray", "sequences", "the limit of bytes"] {
        assert!(!tokens.contains(absent), "{absent:?} in {tokens}");
    }
    assert!(peers.contains("128 new tokens, beside transformers: 5.00 x<"), "{peers}");
    assert!(!peers.contains("lines:") && !peers.contains("1 sizes"), "{peers}");
}

#[test]
fn what_stands_outside_the_markers_stays() {
    let docs = tempfile::tempdir().unwrap();
    let page = docs.path().join(PAGE);
    let with = Document::of(&[gpu()]);
    assert!(with.write(docs.path()).unwrap_err().to_string().contains(PAGE));
    fs::write(&page, "by hand\n").unwrap();
    assert!(with.write(docs.path()).unwrap_err().to_string().contains("once each"));
    fs::write(&page, format!("before\n{BEGIN}\nold\n{END}\nafter\n")).unwrap();
    assert_eq!(with.stale(docs.path()).unwrap().len(), 4);
    with.write(docs.path()).unwrap();
    assert!(with.stale(docs.path()).unwrap().is_empty());
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.starts_with(&format!("before\n{BEGIN}\n")) && text.ends_with(&format!("{END}\nafter\n")));
    assert!(!text.contains("old") && PLOTS.iter().all(|plot| docs.path().join(plot).exists()));
    // A result that goes takes its plots with it.
    let without = Document::of(&[]);
    assert_eq!(without.stale(docs.path()).unwrap().len(), 4);
    without.write(docs.path()).unwrap();
    assert!(PLOTS.iter().all(|plot| !docs.path().join(plot).exists()));
    assert!(without.stale(docs.path()).unwrap().is_empty());
}

#[test]
fn the_newest_result_of_each_kind_counts() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(newest(&folder.path().join("none")).unwrap(), []);
    let mut report = gpu().report;
    for (file, date, kind) in [
        ("b", "2030-01-02T03:04:05Z", "cuda"),
        ("a", "2031-01-02T03:04:05Z", "cuda"),
        ("c", "2029-01-02T03:04:05Z", "cpu"),
    ] {
        (report.date, report.device.kind) = (date.to_owned(), kind.to_owned());
        report.write(&folder.path().join(file).with_extension("json")).unwrap();
    }
    fs::write(folder.path().join("notes.txt"), "no result").unwrap();
    let found: Vec<String> = newest(folder.path()).unwrap().into_iter().map(|source| source.report.date).collect();
    assert_eq!(found, ["2031-01-02T03:04:05Z", "2029-01-02T03:04:05Z"]);
    fs::write(folder.path().join("d.json"), "{}").unwrap();
    assert!(newest(folder.path()).unwrap_err().to_string().contains("d.json"));
}

/// Committed results and the committed page agree.
#[test]
fn the_page_is_what_the_results_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = newest(&root.join("benches/results")).unwrap();
    for source in &mut sources {
        let file = Path::new(&source.file).strip_prefix(root).unwrap();
        source.file = file.display().to_string();
    }
    let stale = Document::of(&sources).stale(&root.join("docs")).unwrap();
    assert!(stale.is_empty(), "{stale:?}: run `rigel bench report`");
}
