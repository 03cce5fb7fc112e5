//! Kernels and models as tables, peers beside us.

use super::super::report::{Limit, Row, Suite};
use super::super::table::{Table, digits, percent};
use super::{Source, measured, median, origin, peers};

/// Ceilings, kernels and models of one result.
pub(super) fn all(source: &Source) -> String {
    let mut text = format!("\n### {}\n\n{}\n", source.report.device.name, origin(source));
    let rows = measured(&source.report);
    let ours =
        |suite| -> Vec<&Row> { rows.iter().filter(|row| row.suite == suite && row.by == "rigel").copied().collect() };
    text += &section("Ceilings", &ceilings(source));
    let models = ours(Suite::Model);
    text += &section("Models", &model_table(&rows, &models));
    let kernels = ours(Suite::Kernels);
    // All sizes of all models would be a page of its own: the largest model's, which the targets are about.
    if let Some(model) = largest(&kernels) {
        let of_model: Vec<&Row> = kernels.iter().filter(|row| row.model.as_deref() == Some(model)).copied().collect();
        text += &section(&format!("Kernels at the shapes of {model}"), &kernel_table(&rows, &of_model));
    }
    text
}

/// Of the models that rows name, the one whose name ends in the largest number of parameters.
pub(super) fn largest<'a>(rows: &[&'a Row]) -> Option<&'a str> {
    let size = |name: &str| {
        let digits = name.rsplit('-').next().unwrap_or_default().trim_end_matches(['b', 'B']);
        digits.parse::<u32>().unwrap_or(0)
    };
    rows.iter().filter_map(|row| row.model.as_deref()).max_by_key(|name| size(name))
}

fn section(title: &str, table: &Table) -> String {
    if table.is_empty() { String::new() } else { format!("\n#### {title}\n\n{table}") }
}

fn ceilings(source: &Source) -> Table {
    let mut table = Table::new(&["limit", "by", ">measured", "how"]);
    for ceiling in &source.report.ceilings {
        let (limit, unit) = match ceiling.limit {
            Limit::Bytes => ("bytes", "TB/s"),
            Limit::Flops => ("FLOPs", "TFLOP/s"),
        };
        let measured = format!("{} {unit}", digits(ceiling.per_second / 1e12));
        table.row([limit.to_owned(), ceiling.by.clone(), measured, ceiling.how.clone()]);
    }
    table
}

/// `+3 %` as `1.03 x torch cublas` for the fastest peer.
fn beside(rows: &[&Row], ours: &Row) -> String {
    let ratio = |peer: &&Row| format!("{} x {}", digits(median(peer) / median(ours)), peer.by);
    peers(rows, ours).first().map_or("-".to_owned(), ratio)
}

fn of_limit(row: &Row) -> String {
    row.of_limit.map_or("-".to_owned(), percent)
}

fn model_table(rows: &[&Row], ours: &[&Row]) -> Table {
    let mut table = Table::new(&["test", "model", "sizes", ">tok/s", ">spread", ">of the limit", "beside", "marks"]);
    for row in ours {
        let rate = row.tokens_per_second().map_or("-".to_owned(), digits);
        let spread = row.times.map_or("-".to_owned(), |times| percent(times.spread()));
        let model = row.model.clone().unwrap_or_default();
        let (test, marks) = (row.name.clone(), row.marks.join("; "));
        table.row([test, model, row.sizes(), rate, spread, of_limit(row), beside(rows, row), marks]);
    }
    table
}

fn kernel_table(rows: &[&Row], ours: &[&Row]) -> Table {
    let columns = ["kernel", "sizes", ">µs", ">spread", ">GB/s", ">TFLOP/s", ">of the limit", "beside", "marks"];
    let mut table = Table::new(&columns);
    for row in ours {
        let rate = |rate: Option<f64>, scale: f64| rate.map_or("-".to_owned(), |rate| digits(rate / scale));
        table.row([
            row.name.clone(),
            row.sizes(),
            digits(median(row)),
            row.times.map_or("-".to_owned(), |times| percent(times.spread())),
            rate(row.bytes_per_second(), 1e9),
            rate(row.flops_per_second(), 1e12),
            of_limit(row),
            beside(rows, row),
            row.marks.join("; "),
        ]);
    }
    table
}
