//! Runs over a backend that only keeps books, so that a million lines take a minute and every answer is known.

#[path = "../../../tests/common/ledger.rs"]
mod books;

use std::fs::File;
use std::io::{BufRead, Read, Write};
use std::path::Path;
use std::time::Instant;

use rigel::backend::BackendError;
use rigel::checkpoint::ModelSource;
use rigel::engine::{Engine, EngineOptions, Failure};
use serde_json::{Value, json};

use super::errors::errors_path;
use super::*;

const PROMPT: usize = 4;

/// A prompt of ids that the line's number is written in.
fn prompt(line: u32) -> Vec<u32> {
    let base = books::VOCAB as u32 - 1;
    (0..PROMPT as u32).map(|digit| line / base.pow(digit) % base).collect()
}

fn engine(change: impl FnOnce(&mut books::Ledger)) -> Engine {
    let mut ledger = books::Ledger::new(None, 16, 512).with_pages(512);
    ledger.max_logits_rows = 128;
    change(&mut ledger);
    ledger.engine_with(EngineOptions::default())
}

/// An input of so many lines, and a run over it.
struct Work {
    dir: tempfile::TempDir,
    in_flight: usize,
    order: Order,
    failed: Failed,
}

impl Work {
    fn new(lines: u32) -> Work {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("in.jsonl")).unwrap();
        let mut file = std::io::BufWriter::new(file);
        for line in 1..=lines {
            let ids = prompt(line);
            // The tokens are named in the log-probabilities; there is no text without a tokenizer.
            writeln!(file, r#"{{"id":"request-{line}","prompt":{ids:?},"max_tokens":2,"logprobs":0}}"#).unwrap();
        }
        file.flush().unwrap();
        Work { dir, in_flight: 64, order: Order::AsDone, failed: Failed::Keep }
    }

    fn input(&self) -> PathBuf {
        self.dir.path().join("in.jsonl")
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("out.jsonl")
    }

    fn errors(&self) -> PathBuf {
        errors_path(&self.output())
    }

    fn outputs(&self, failed: Failed) -> (Outputs, InputFile, Scanned) {
        let mut input = InputFile::open(&self.input()).unwrap();
        let scanned = scan(&mut input, &IdFields::default(), Shard::WHOLE).unwrap();
        let run =
            RunEntry { seed: 0, shard: "1/1".into(), context: None, id_field: None, ordered: false, logprobs: None };
        let model = ModelEntry { name: "books".into(), digest: "books".into() };
        let manifest = Manifest::new(model, scanned.entry.clone(), run, &options());
        (Outputs::open(&self.output(), &manifest, &mut input, Shard::WHOLE, failed).unwrap(), input, scanned)
    }

    /// Begins or goes on, as the command does. A signal comes when so many lines were read.
    fn run(&self, engine: &Engine, stop_after: Option<u64>) -> (Sink, Result<(), CliError>) {
        let (outputs, input, scanned) = self.outputs(self.failed);
        let mut ledger = scanned.into_ledger();
        let failures = outputs.enter(&mut ledger).unwrap();
        let progress = Progress::new(ledger.count(), ledger.total(), Show::Nothing);
        let mut sink = Sink::new(outputs, ledger, failures, progress, self.order);
        let served = ServedModel::new(engine, &ModelSource::nano(), "books");
        let ids = IdFields::default();
        let answering = Answering { served: &served, plain: &plain(), openai: &Defaults::openai(), ids: &ids, seed: 0 };
        let stop = OnceLock::new();
        let lines = CountedLines { reader: BufReader::new(&input), stop_after, stop: &stop };
        let in_flight = NonZeroUsize::new(self.in_flight).unwrap();
        sink.begin_retry().unwrap();
        let result = run::run(engine, &answering, &input, Lines::new(lines), &mut sink, in_flight, &stop);
        (sink, result)
    }
}

fn options() -> GenerationOptions {
    GenerationOptions {
        max_new_tokens: None,
        stop: Vec::new(),
        stop_token_ids: Vec::new(),
        ignore_eos: false,
        sampling: Default::default(),
    }
}

fn plain() -> Defaults {
    Defaults { sampling: Default::default(), ..Defaults::openai() }
}

/// An input that a signal comes from once so many lines were read.
struct CountedLines<'a> {
    reader: BufReader<&'a InputFile>,
    stop_after: Option<u64>,
    stop: &'a OnceLock<Signal>,
}

impl Read for CountedLines<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.reader.read(buffer)
    }
}

impl BufRead for CountedLines<'_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        self.reader.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        let lines = self.reader.buffer()[..count].iter().filter(|byte| **byte == b'\n').count() as u64;
        if let Some(left) = &mut self.stop_after {
            *left = left.saturating_sub(lines);
            if *left == 0 {
                let _ = self.stop.set(Signal::Interrupt);
            }
        }
        self.reader.consume(count);
    }
}

/// Checks every answer, and that each line has one. The lines as they are in the output.
fn check(output: &Path, lines: u32) -> Vec<u32> {
    let (mut seen, mut numbers) = (vec![false; lines as usize + 1], Vec::new());
    let mut reader = Lines::new(BufReader::new(File::open(output).unwrap()));
    while let Some((_, line)) = reader.next().unwrap() {
        let super::super::lines::Line::Bytes(bytes) = line else { panic!("too long") };
        let record: Value = serde_json::from_slice(bytes).unwrap();
        let line: u32 = record["custom_id"].as_str().unwrap().strip_prefix("request-").unwrap().parse().unwrap();
        assert!(!std::mem::replace(&mut seen[line as usize], true), "line {line} twice");
        numbers.push(line);
        let names: Vec<String> =
            books::expected(&prompt(line), 2, None).iter().map(|id| format!("token_id:{id}")).collect();
        assert_eq!(record["response"]["body"]["choices"][0]["logprobs"]["tokens"], json!(names), "line {line}");
    }
    assert!(seen[1..].iter().all(|seen| *seen));
    numbers
}

#[test]
fn every_line_is_answered_over_three_runs() {
    for order in [Order::AsDone, Order::AsRead] {
        let work = Work { order, ..Work::new(3000) };
        let engine = engine(|_| {});
        // What was read and not begun is left to the next run.
        for (stop_after, at_least, at_most) in [(Some(700), 572, 700), (Some(1900), 1772, 1900), (None, 3000, 3000)] {
            let (sink, result) = work.run(&engine, stop_after);
            result.unwrap();
            let count = sink.ledger().count();
            assert!((at_least..=at_most).contains(&count), "{count} lines after a stop at {stop_after:?}");
        }
        let numbers = check(&work.output(), 3000);
        assert!(order == Order::AsDone || numbers.is_sorted());
        assert!(!work.errors().exists());
    }
}

/// Nothing of them reaches the engine, so the reading itself has to notice the signal.
#[test]
fn a_signal_ends_the_reading_of_lines_that_fail() {
    for order in [Order::AsDone, Order::AsRead] {
        let work = Work { order, ..Work::new(0) };
        std::fs::write(work.input(), "{\"prompt\":5}\n".repeat(200)).unwrap();
        let engine = engine(|_| {});
        let (sink, result) = work.run(&engine, Some(50));
        result.unwrap();
        assert_eq!((sink.ledger().count(), sink.failures().count()), (50, 50));
        let stopped = verdict(&sink, &InputFile::open(&work.input()).unwrap(), Some(Signal::Interrupt)).unwrap_err();
        let expected = "stopped by SIGINT after 50 of 200 lines; the same command goes on from there";
        assert_eq!(stopped.to_string(), expected);
        drop(sink);
        // Lines that are recorded already are passed over, and a signal meanwhile is noticed, too.
        let (sink, result) = work.run(&engine, Some(20));
        result.unwrap();
        assert_eq!(sink.ledger().count(), 50);
        drop(sink);
        let (sink, result) = work.run(&engine, None);
        result.unwrap();
        assert!(sink.ledger().is_complete());
        assert_eq!(sink.failures().count(), 200);
        assert_eq!(std::fs::read_to_string(work.errors()).unwrap().lines().count(), 200);
    }
}

/// A long request holds back those behind it, and only so many of them.
#[test]
fn an_ordered_output_waits_for_its_first_line() {
    let mut work = Work { order: Order::AsRead, in_flight: 8, ..Work::new(100) };
    let text = std::fs::read_to_string(work.input()).unwrap();
    std::fs::write(work.input(), text.replacen("\"max_tokens\":2", "\"max_tokens\":90", 1)).unwrap();
    let engine = engine(|_| {});
    // With the first line in flight no more than seven others are read.
    let (sink, result) = work.run(&engine, Some(9));
    result.unwrap();
    assert!(sink.ledger().count() >= 1 && sink.waiting() == 0, "{}", sink.ledger().count());
    drop(sink);
    work.order = Order::AsRead;
    work.run(&engine, None).1.unwrap();
    let order: Vec<String> = std::fs::read_to_string(work.output())
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["custom_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(order, (1..=100).map(|line| format!("request-{line}")).collect::<Vec<_>>());
}

#[test]
fn a_device_that_is_gone_ends_the_run() {
    let mut work = Work { in_flight: 1, ..Work::new(200) };
    let mut steps = 0;
    let broken = engine(|ledger| {
        ledger.hook = Box::new(move |_| {
            steps += 1;
            if steps <= 20 { Ok(()) } else { Err(BackendError::Unavailable("the device is gone".into())) }
        });
    });
    let (sink, result) = work.run(&broken, None);
    let error = result.unwrap_err();
    assert!(matches!(error, CliError::Failure(Failure::Backend(_))), "{error}");
    // Ten lines of two steps each, then 32 in a row that failed.
    assert_eq!(sink.ledger().count(), 10 + 32);
    assert_eq!((sink.failures().count(), sink.failures().advice()), (32, "--retry-failed does them again"));
    drop(sink);
    // On a good day.
    work.failed = Failed::Retry;
    work.run(&engine(|_| {}), None).1.unwrap();
    check(&work.output(), 200);
}

#[test]
fn an_engine_that_ends_leaves_its_lines_to_the_next_run() {
    let work = Work::new(200);
    let mut steps = 0;
    let broken = engine(|ledger| {
        ledger.hook = Box::new(move |_| {
            steps += 1;
            assert!(steps <= 3, "a bug");
            Ok(())
        });
    });
    let (sink, result) = work.run(&broken, None);
    let error = result.unwrap_err();
    assert!(matches!(error, CliError::Failure(Failure::Panicked { .. } | Failure::EngineStopped)), "{error}");
    assert!(sink.ledger().count() < 200 && sink.failures().count() == 0);
    drop(sink);
    work.run(&engine(|_| {}), None).1.unwrap();
    check(&work.output(), 200);
}

/// Kilobytes.
#[cfg(target_os = "linux")]
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

/// Its outcome is in docs/batch.md. Run it alone: memory is that of the whole process.
#[cfg(target_os = "linux")]
#[test]
#[ignore = "takes a minute and 0.7 GB of disk: cargo test --bin rigel -- --ignored a_million --nocapture"]
fn a_million_lines_take_little_memory() {
    const LINES: u32 = 1_000_000;
    let engine = engine(|_| {});
    let small = Work::new(2_000);
    small.run(&engine, None).1.unwrap();
    let before = peak_memory();
    let work = Work::new(LINES);
    let start = Instant::now();
    let (sink, result) = work.run(&engine, Some(400_000));
    result.unwrap();
    println!("{} lines, {:.1?}, peak {} kB", sink.ledger().count(), start.elapsed(), peak_memory());
    drop(sink);
    let start = Instant::now();
    let (sink, result) = work.run(&engine, None);
    result.unwrap();
    assert!(sink.ledger().is_complete());
    let peak = peak_memory();
    println!("the rest, {:.1?}; peak {before} kB after 2,000 lines, {peak} kB after {LINES}", start.elapsed());
    let bytes = |path: &Path| std::fs::metadata(path).unwrap().len();
    println!("input {} bytes, output {} bytes", bytes(&work.input()), bytes(&work.output()));
    check(&work.output(), LINES);
    // 17 bytes a line, and twice over while the ids are read.
    assert!(peak < before + 50_000, "{before} kB after 2,000 lines, {peak} kB after {LINES}");
}
