//! The one schema of results: what is measured here, what peers measure (`tools/peers`), and what `tools/gpu-check`
//! collects.
//!
//! A report is one JSON object. Rows of two reports are about the same thing where their [`Row::key`] is equal; their
//! [`Row::by`] says who did it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::times::Times;

/// The schema's name, in every report.
pub const SCHEMA: &str = "rigel-bench-1";

/// A run ends invalid where its ceilings are below this share of what the device is known for: it was not the device's
/// own speed that was measured.
pub const MIN_SHARE_OF_KNOWN: f64 = 0.85;

/// All that one run measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// When it began, RFC 3339 in UTC.
    pub date: String,
    /// The commit that the program was built from, with `-dirty` behind it where files were changed; `unknown` where
    /// the build could not tell.
    pub commit: String,
    /// The command line.
    pub command: String,
    /// What it ran on.
    pub device: DeviceRecord,
    /// The limits measured in this run, by whoever measured one.
    #[serde(default)]
    pub ceilings: Vec<Ceiling>,
    /// Why its figures are not to be quoted; nothing where they may be.
    #[serde(default)]
    pub invalid: Vec<String>,
    /// The figures, in the order in which they were measured.
    #[serde(default)]
    pub rows: Vec<Row>,
}

/// A device, as far as results depend on it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// `cuda` or `cpu`.
    pub kind: String,
    /// Such as `NVIDIA H200`, or the processor's name.
    pub name: String,
    /// The CUDA version that the driver supports, such as `13.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Such as `9.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_capability: Option<String>,
    /// SMs of a GPU, threads of a CPU.
    pub units: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of the last cache, 0 where unknown.
    #[serde(default)]
    pub cache_bytes: u64,
}

/// Which of a device's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Bytes of memory a second.
    Bytes,
    /// Floating-point operations a second.
    Flops,
}

/// A limit that the run measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    /// Which.
    pub limit: Limit,
    /// Who measured it: `rigel`, `torch`.
    pub by: String,
    /// Bytes or floating-point operations a second.
    pub per_second: f64,
    /// How, in words: `read of 4 GiB`, `bf16 8192 x 8192 x 8192`.
    pub how: String,
}

/// Which table a row belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Suite {
    /// One kernel.
    Kernels,
    /// Tokens a second of a whole model.
    Model,
    /// From the start of the process to the first token.
    Start,
    /// The kernels of one step.
    Profile,
    /// Agreement with a reference: parity with transformers, log-probabilities.
    Parity,
    /// Tests, passed or failed.
    Tests,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its table.
    pub suite: Suite,
    /// What was measured: a kernel and its part in the model (`gemm up_proj`), a test in llama-bench's words (`pp512`,
    /// `tg128 @ d4096`), a phase.
    pub name: String,
    /// Who did it: `rigel`, or a peer (`torch cublas`, `torch sdpa flash`, `transformers`, `llama.cpp`).
    pub by: String,
    /// The model whose shapes it has, where it has a model's: `starcoder2-15b`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The sizes that tell it from rows of the same name: `rows`, `columns`, `depth`, `batch`, `context`, `window` …
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shape: BTreeMap<String, serde_json::Value>,
    /// How it was done, where that is not part of what was done: `128x256 tiles, 4 stages`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// How long it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<Times>,
    /// Bytes that it must move, 0 where nobody counts them.
    #[serde(default)]
    pub bytes: u64,
    /// Floating-point operations that it must do, 0 where nobody counts them.
    #[serde(default)]
    pub flops: u64,
    /// Tokens that it took or made, 0 where there are none.
    #[serde(default)]
    pub tokens: u64,
    /// The time that the run's ceilings allow, in microseconds, as a share of the time it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of_limit: Option<f64>,
    /// Which ceiling that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    /// Figures that are no times, such as a mean error, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, f64>,
    /// What a reader must know of it: `clocks moved by 7 %`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<String>,
    /// Why there is no figure: a peer that is missing, a shape that does not fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

impl Row {
    /// A row without figures, by Rigel.
    pub fn new(suite: Suite, name: impl Into<String>) -> Row {
        Row {
            suite,
            name: name.into(),
            by: "rigel".to_owned(),
            model: None,
            shape: BTreeMap::new(),
            path: None,
            times: None,
            bytes: 0,
            flops: 0,
            tokens: 0,
            of_limit: None,
            limit: None,
            values: BTreeMap::new(),
            marks: Vec::new(),
            missing: None,
        }
    }

    /// With one size more.
    pub fn size(mut self, name: &str, value: impl Into<serde_json::Value>) -> Row {
        self.shape.insert(name.to_owned(), value.into());
        self
    }

    /// What two rows have in common that measure the same thing.
    pub fn key(&self) -> (Suite, &str, Option<&str>, String) {
        (self.suite, &self.name, self.model.as_deref(), self.sizes())
    }

    /// `rows 16, columns 6144`
    pub fn sizes(&self) -> String {
        let size = |(name, value): (&String, &serde_json::Value)| match value {
            serde_json::Value::String(text) => format!("{name} {text}"),
            other => format!("{name} {other}"),
        };
        self.shape.iter().map(size).collect::<Vec<_>>().join(", ")
    }

    /// Bytes a second that it moved.
    pub fn bytes_per_second(&self) -> Option<f64> {
        self.per_second(self.bytes)
    }

    /// Floating-point operations a second that it did.
    pub fn flops_per_second(&self) -> Option<f64> {
        self.per_second(self.flops)
    }

    /// Tokens a second.
    pub fn tokens_per_second(&self) -> Option<f64> {
        self.per_second(self.tokens)
    }

    fn per_second(&self, count: u64) -> Option<f64> {
        let times = self.times.filter(|times| times.median_us > 0.0)?;
        (count > 0).then(|| count as f64 / times.seconds())
    }
}

/// The limits that shares are of: for each, the largest that anybody measured in the run.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Ceilings {
    /// Bytes a second.
    pub bytes: Option<f64>,
    /// Floating-point operations a second.
    pub flops: Option<f64>,
}

impl Ceilings {
    /// Of those a run measured.
    pub fn of(measured: &[Ceiling]) -> Ceilings {
        let largest = |limit| {
            let of_limit = measured.iter().filter(|ceiling| ceiling.limit == limit);
            of_limit.map(|ceiling| ceiling.per_second).max_by(f64::total_cmp)
        };
        Ceilings { bytes: largest(Limit::Bytes), flops: largest(Limit::Flops) }
    }

    /// The least time, in microseconds, of work that moves `bytes` and does `flops`, and which limit sets it; none
    /// where no ceiling that it needs is known.
    pub fn min_us(&self, bytes: u64, flops: u64) -> Option<(f64, Limit)> {
        let time = |count: u64, ceiling: Option<f64>, limit| {
            ceiling.filter(|_| count > 0).map(|ceiling| (count as f64 / ceiling * 1e6, limit))
        };
        let both = [time(bytes, self.bytes, Limit::Bytes), time(flops, self.flops, Limit::Flops)];
        both.into_iter().flatten().max_by(|a, b| a.0.total_cmp(&b.0))
    }

    /// Fills in a row's share of its limit.
    pub fn judge(&self, row: &mut Row) {
        let Some(times) = row.times.filter(|times| times.median_us > 0.0) else { return };
        if let Some((least, limit)) = self.min_us(row.bytes, row.flops) {
            (row.of_limit, row.limit) = (Some(least / times.median_us), Some(limit));
        }
    }
}

/// What a device is known to reach, by the beginning of its name: bytes and FLOPs a second of bf16 (reference: a
/// device-to-device copy, and a cuBLAS product of 8192³ on random data).
const KNOWN: [(&str, f64, f64); 3] = [
    ("NVIDIA H200", 4.2e12, 750e12),
    ("NVIDIA H100 80GB HBM3", 3.0e12, 750e12),
    ("NVIDIA A100-SXM4-80GB", 1.7e12, 260e12),
];

impl Report {
    /// An empty one, begun now by this process.
    pub fn begin(device: DeviceRecord) -> Report {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = jiff::Timestamp::from_second(now.as_secs() as i64).unwrap_or_default();
        let command: Vec<String> = std::env::args().collect();
        Report {
            schema: SCHEMA.to_owned(),
            date: now.to_string(),
            commit: commit().to_owned(),
            command: command_line(&command),
            device,
            ceilings: Vec::new(),
            invalid: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// The limits that shares are of.
    pub fn ceilings(&self) -> Ceilings {
        Ceilings::of(&self.ceilings)
    }

    /// Marks the run invalid where a ceiling is too far below what the device is known for, or was not measured. FLOPs
    /// are looked at where a peer measured them, too: that our own product is slower says nothing of the device.
    pub fn check_ceilings(&mut self) {
        let Some((_, bytes, flops)) = KNOWN.iter().find(|(name, ..)| self.device.name.starts_with(name)) else {
            return;
        };
        let found = self.ceilings();
        let limits = [("TB/s", 1e12, *bytes, found.bytes), ("TFLOP/s", 1e12, *flops, found.flops)];
        let by_peer = |ceiling: &Ceiling| ceiling.limit == Limit::Flops && ceiling.by != "rigel";
        let peers = self.ceilings.iter().any(by_peer);
        for (unit, scale, known, found) in limits.into_iter().take(if peers { 2 } else { 1 }) {
            let found = found.unwrap_or(0.0);
            if found < MIN_SHARE_OF_KNOWN * known {
                let (found, known) = (found / scale, known / scale);
                let name = &self.device.name;
                self.invalid.push(format!("the ceiling was {found:.2} {unit}; the {name} is known for {known:.2}"));
            }
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// A file that cannot be read, is not a report, or is one of another schema.
    pub fn read(path: &Path) -> Result<Report, ReportError> {
        let file = path.display().to_string();
        let text = fs::read(path).map_err(|source| ReportError::Read { file: file.clone(), source })?;
        let report: Report =
            serde_json::from_slice(&text).map_err(|source| ReportError::Json { file: file.clone(), source })?;
        if report.schema != SCHEMA {
            return Err(ReportError::Schema { file, found: report.schema });
        }
        Ok(report)
    }

    /// Writes it whole: a reader finds this one or the one before, never half of one.
    ///
    /// # Errors
    /// That of the file system.
    pub fn write(&self, path: &Path) -> Result<(), ReportError> {
        let wrong = |source| ReportError::Write { file: path.display().to_string(), source };
        // Plain numbers, strings, lists and maps with string keys.
        let text = serde_json::to_string_pretty(self).map_err(|error| wrong(error.into()))?;
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".unfinished");
        let unfinished = PathBuf::from(unfinished);
        fs::write(&unfinished, text + "\n").and_then(|()| fs::rename(&unfinished, path)).map_err(wrong)
    }
}

/// Why a report cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// It cannot be read.
    #[error("{file}: {source}")]
    Read {
        /// Its path.
        file: String,
        /// The system's answer.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("{file}: {source}")]
    Write {
        /// Its path.
        file: String,
        /// The system's answer.
        source: io::Error,
    },
    /// It is no report.
    #[error("{file}: not a report of rigel bench: {source}")]
    Json {
        /// Its path.
        file: String,
        /// What is wrong and where.
        source: serde_json::Error,
    },
    /// It is one that another version wrote.
    #[error("{file}: its schema is {found:?}, expected {SCHEMA:?}; measure again with this version")]
    Schema {
        /// Its path.
        file: String,
        /// The schema it names.
        found: String,
    },
}

/// The commit that this program was built from, with `-dirty` behind it where files were changed; `unknown` where the
/// build could not tell, as that of a checkout without optimisation.
pub fn commit() -> &'static str {
    option_env!("RIGEL_COMMIT").filter(|commit| !commit.is_empty()).unwrap_or("unknown")
}

/// As one would type it, the program by its name alone.
fn command_line(arguments: &[String]) -> String {
    let mut words: Vec<String> = arguments.iter().map(|word| quoted(word)).collect();
    if let Some(program) = words.first_mut() {
        let name = Path::new(program.as_str()).file_name().map(|name| name.to_string_lossy().into_owned());
        *program = name.unwrap_or_default();
    }
    words.join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:@+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h200() -> DeviceRecord {
        DeviceRecord { kind: "cuda".to_owned(), name: "NVIDIA H200".to_owned(), ..DeviceRecord::default() }
    }

    fn ceiling(limit: Limit, by: &str, per_second: f64) -> Ceiling {
        Ceiling { limit, by: by.to_owned(), per_second, how: String::new() }
    }

    fn times(median_us: f64) -> Option<Times> {
        Times::of(vec![median_us])
    }

    #[test]
    fn a_row_is_judged_by_the_limit_that_takes_longer() {
        let ceilings = Ceilings { bytes: Some(4e12), flops: Some(800e12) };
        let mut row = Row { bytes: 4_000_000, flops: 1, times: times(2.0), ..Row::new(Suite::Kernels, "norm") };
        ceilings.judge(&mut row);
        assert_eq!((row.of_limit, row.limit), (Some(0.5), Some(Limit::Bytes)));
        let mut row = Row { bytes: 1, flops: 800_000_000, times: times(4.0), ..Row::new(Suite::Kernels, "gemm") };
        ceilings.judge(&mut row);
        assert_eq!((row.of_limit, row.limit), (Some(0.25), Some(Limit::Flops)));
        let mut row = Row { bytes: 8, times: times(4.0), ..Row::new(Suite::Kernels, "norm") };
        Ceilings::default().judge(&mut row);
        assert_eq!(row.of_limit, None);
    }

    #[test]
    fn the_larger_ceiling_counts_and_low_ones_make_a_run_invalid() {
        let mut report = Report::begin(h200());
        report.ceilings = vec![ceiling(Limit::Bytes, "rigel", 3.9e12), ceiling(Limit::Bytes, "torch", 4.3e12)];
        report.ceilings.push(ceiling(Limit::Flops, "rigel", 500e12));
        report.check_ceilings();
        assert!(report.invalid.is_empty(), "our own product alone is no measure of the card");
        report.ceilings.push(ceiling(Limit::Flops, "torch", 600e12));
        assert_eq!(report.ceilings().bytes, Some(4.3e12));
        report.check_ceilings();
        assert_eq!(report.invalid.len(), 1, "{:?}", report.invalid);
        assert!(report.invalid[0].contains("600.00 TFLOP/s") && report.invalid[0].contains("750.00"));
        report.invalid.clear();
        report.ceilings.push(ceiling(Limit::Flops, "torch", 780e12));
        report.check_ceilings();
        assert!(report.invalid.is_empty());
        // Nothing is known of it.
        let mut unknown = Report::begin(DeviceRecord::default());
        unknown.check_ceilings();
        assert!(unknown.invalid.is_empty());
    }

    #[test]
    fn a_report_comes_back_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.json");
        let mut report = Report::begin(h200());
        let row = Row { times: times(12.5), tokens: 512, ..Row::new(Suite::Model, "pp512") };
        report.rows.push(row.size("batch", 1).size("dtype", "bf16"));
        report.write(&path).unwrap();
        assert_eq!(Report::read(&path).unwrap(), report);
        assert_eq!(report.rows[0].sizes(), "batch 1, dtype bf16");
        assert_eq!(report.rows[0].tokens_per_second(), Some(512.0 / 12.5e-6));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no unfinished file is left");

        fs::write(&path, "{\"schema\": 3}").unwrap();
        assert!(Report::read(&path).unwrap_err().to_string().contains("not a report"));
        let text = serde_json::to_string(&Report { schema: "rigel-bench-0".to_owned(), ..report }).unwrap();
        fs::write(&path, text).unwrap();
        assert!(Report::read(&path).unwrap_err().to_string().contains("measure again"));
    }

    #[test]
    fn command_lines_can_be_typed_again() {
        let words = ["/some/where/rigel", "bench", "kernels", "gemv mlp", "--json", "it's"].map(str::to_owned);
        assert_eq!(command_line(&words), r"rigel bench kernels 'gemv mlp' --json 'it'\''s'");
    }
}
