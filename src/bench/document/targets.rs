//! The targets of the design, each with what was measured of it and the peer of the same run.

use super::super::report::{Limit, Report, Row, Suite};
use super::super::table::{Table, digits, percent};
use super::{NOT_MEASURED, measured, median, peers, size};

/// Whose targets they are.
const MODEL: &str = "starcoder2-15b";

/// What was found of one target.
struct Found {
    measured: String,
    peer: String,
}

/// The targets that were measured, each with its measurement, and then those that were not.
pub(super) struct Targets {
    /// Work, target, what was measured, the peer.
    pub measured: Table,
    /// Work and target.
    pub not_measured: Table,
}

/// All targets, from the result of a GPU and that of a CPU.
pub(super) fn all(gpu: Option<&Report>, cpu: Option<&Report>) -> Targets {
    let mut targets = Targets {
        measured: Table::new(&["work", "target", "measured", "peer in the same run"]),
        not_measured: Table::new(&["work", "target"]),
    };
    let decode = |report: &Report, batch, depth| tokens(report, "tg", batch, depth, Some(Limit::Bytes));
    let big = |depth| move |report: &Report, batch| tokens(report, "tg", batch, depth, None);
    let big = big(1024);
    type Look<'a> = &'a dyn Fn(&Report) -> Option<Found>;
    let of_gpu: [(&str, &str, Look<'_>); 11] = [
        ("decode, batch 1", "≥ 92 % of the read bandwidth", &|report| decode(report, 1, 0)),
        ("decode, batch 64, 1k context", "≥ 85 % of the limit kernel by kernel", &|report| big(report, 64)),
        ("decode, batch 256, 1k context", "≥ 85 % of the limit kernel by kernel", &|report| big(report, 256)),
        ("GEMM, M ≥ 2048", "≥ 1.0 x cuBLASLt", &|report| {
            against(report, |row| product(row) && rows_of(row) >= 2048, "torch cublas")
        }),
        ("GEMM, M = 16 … 128", "≥ 80 % of the read bandwidth", &products_of_few_rows),
        ("causal attention prefill, d = 128, 8k", "≥ 1.0 x the best of SDPA, ≥ 600 TFLOP/s", &|report| {
            against(report, |row| prefill_attention(row, false), "torch sdpa")
        }),
        ("the same with the 4096 window", "≥ 1.0 x FlexAttention", &|report| {
            against(report, |row| prefill_attention(row, true), "torch flex")
        }),
        ("prefill end to end, 4k prompt", "≥ 75 % of the GEMM rate", &|report| {
            tokens(report, "pp4096", 1, 0, Some(Limit::Flops))
        }),
        ("load 32 GB from page cache", "the link's rate", &|report| {
            let row = start(report, "upload")?;
            Some(Found { measured: rate(row), peer: row.of_limit.map_or("-".to_owned(), of_link) })
        }),
        ("first token after start", "< 3 s", &|report| {
            let seconds = start(report, "first token")?.times?.seconds();
            Some(Found { measured: format!("{} s", digits(seconds)), peer: "-".to_owned() })
        }),
        ("GPU idle between decode steps", "< 2 %", &|report| {
            let idle = measured(report).into_iter().find_map(|row| row.values.get("gpu_idle").copied())?;
            Some(Found { measured: percent(idle), peer: "-".to_owned() })
        }),
    ];
    let of_cpu: [(&str, &str, Look<'_>); 1] =
        [("CPU decode", "≥ 80 % of the read bandwidth, no slower than llama.cpp", &|report| {
            let rows = measured(report);
            let ours = rows.iter().find(|row| is_ours(row) && row.name.starts_with("tg") && has_batch(row, 1))?;
            Some(of_tokens(report, &rows, ours, Some(Limit::Bytes)))
        })];
    let all = of_gpu.into_iter().map(|row| (row, gpu)).chain(of_cpu.into_iter().map(|row| (row, cpu)));
    for ((work, target, look), report) in all {
        match report.and_then(look) {
            Some(Found { measured, peer }) => targets.measured.row([work, target, &measured, &peer]),
            None => targets.not_measured.row([work, target]),
        }
    }
    targets
}

fn is_ours(row: &Row) -> bool {
    row.by == "rigel"
}

fn has_batch(row: &Row, batch: u64) -> bool {
    row.suite == Suite::Model && size(row, "batch").unwrap_or(1) == batch
}

fn rows_of(row: &Row) -> u64 {
    size(row, "rows").unwrap_or(0)
}

/// A product of this model with a weight matrix.
fn product(row: &Row) -> bool {
    row.model.as_deref() == Some(MODEL)
        && row.suite == Suite::Kernels
        && (row.name.starts_with("gemm ") || row.name.starts_with("gemv "))
}

fn prefill_attention(row: &Row, window: bool) -> bool {
    let windowed = size(row, "window").is_some_and(|window| window < 8192);
    row.suite == Suite::Kernels
        && row.name.starts_with("attention_prefill")
        && row.model.as_deref().is_none_or(|model| model == MODEL)
        && size(row, "length") == Some(8192)
        && windowed == window
}

fn start<'a>(report: &'a Report, name: &str) -> Option<&'a Row> {
    measured(report).into_iter().find(|row| row.suite == Suite::Start && is_ours(row) && row.name == name)
}

fn rate(row: &Row) -> String {
    row.bytes_per_second().map_or("-".to_owned(), |rate| format!("{} GB/s", digits(rate / 1e9)))
}

fn of_link(share: f64) -> String {
    format!("{} of the link", percent(share))
}

/// A test of the model in llama-bench's words at a batch size and a depth: tokens a second, and the share of one
/// ceiling, or of the row's own limit.
fn tokens(report: &Report, test: &str, batch: u64, depth: u64, ceiling: Option<Limit>) -> Option<Found> {
    let rows = measured(report);
    let at = |row: &&&Row| match row.name.split_once(" @ d") {
        Some((_, at)) => at.parse() == Ok(depth),
        None => depth == 0,
    };
    let is_test = |row: &&&Row| {
        let name = row.name.split(" @ ").next().unwrap_or_default();
        let named = name == test || (test == "tg" && name.starts_with("tg"));
        named && row.model.as_deref() == Some(MODEL)
    };
    let ours = rows.iter().find(|row| is_ours(row) && has_batch(row, batch) && is_test(row) && at(row))?;
    Some(of_tokens(report, &rows, ours, ceiling))
}

fn of_tokens(report: &Report, rows: &[&Row], ours: &Row, ceiling: Option<Limit>) -> Found {
    let ceilings = report.ceilings();
    let share = match ceiling {
        None => ours.of_limit,
        Some(Limit::Bytes) => ours.bytes_per_second().zip(ceilings.bytes).map(|(rate, ceiling)| rate / ceiling),
        Some(Limit::Flops) => ours.flops_per_second().zip(ceilings.flops).map(|(rate, ceiling)| rate / ceiling),
    };
    let rate = |row: &Row| row.tokens_per_second().map_or("-".to_owned(), |rate| format!("{} tok/s", digits(rate)));
    let share = share.map_or(String::new(), |share| format!("{}, ", percent(share)));
    let peer = |peer: &&Row| format!("{} {}", peer.by, rate(peer));
    Found {
        measured: format!("{share}{}", rate(ours)),
        peer: peers(rows, ours).first().map_or(NOT_MEASURED.to_owned(), peer),
    }
}

/// How many times as fast as the best peer whose name begins with `by` we are: the least and the most of all rows.
fn against(report: &Report, takes: impl Fn(&Row) -> bool, by: &str) -> Option<Found> {
    let rows = measured(report);
    let ours: Vec<&&Row> = rows.iter().filter(|row| is_ours(row) && takes(row)).collect();
    let rates: Vec<f64> = ours.iter().filter_map(|row| row.flops_per_second()).map(|rate| rate / 1e12).collect();
    if ours.is_empty() {
        return None;
    }
    let mut ratios = Vec::new();
    let mut theirs = Vec::new();
    for row in ours {
        if let Some(peer) = peers(&rows, row).into_iter().find(|peer| peer.by.starts_with(by)) {
            ratios.push(median(peer) / median(row));
            theirs.extend(peer.flops_per_second().map(|rate| rate / 1e12));
        }
    }
    let ratio = if ratios.is_empty() { String::new() } else { format!("{} x, ", range(&ratios)) };
    Some(Found {
        measured: format!("{ratio}{} TFLOP/s", range(&rates)),
        peer: if theirs.is_empty() { NOT_MEASURED.to_owned() } else { format!("{} TFLOP/s", range(&theirs)) },
    })
}

fn products_of_few_rows(report: &Report) -> Option<Found> {
    let ceiling = report.ceilings().bytes?;
    let rows = measured(report);
    let takes = |row: &&&Row| product(row) && (16..=128).contains(&rows_of(row));
    let share = |row: &&Row| row.bytes_per_second().map(|rate| rate / ceiling);
    let shares = |ours: bool| -> Vec<f64> {
        rows.iter().filter(takes).filter(|row| is_ours(row) == ours).filter_map(share).collect()
    };
    let (ours, theirs) = (shares(true), shares(false));
    let text = |shares: &[f64]| match shares.is_empty() {
        true => NOT_MEASURED.to_owned(),
        false => format!("{} %", range(&shares.iter().map(|share| share * 100.0).collect::<Vec<_>>())),
    };
    (!ours.is_empty()).then(|| Found { measured: text(&ours), peer: text(&theirs) })
}

/// `0.91 to 1.12`, or one number where there is one.
fn range(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    match (digits(least), digits(most)) {
        (least, most) if least == most => least,
        _ if values.is_empty() => "-".to_owned(),
        (least, most) => format!("{least} to {most}"),
    }
}
