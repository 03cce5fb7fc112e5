//! Two reports side by side: what both measured, as ratios.

use std::collections::BTreeMap;

use super::report::{Report, Row};
use super::table::{Table, digits};

/// A figure of one report and of another.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// Of the first report.
    pub first: &'a Row,
    /// Of the second.
    pub second: &'a Row,
}

impl Pair<'_> {
    /// How many times as fast the second is.
    pub fn speedup(&self) -> Option<f64> {
        let (first, second) = (self.first.times?, self.second.times?);
        (second.median_us > 0.0).then(|| first.median_us / second.median_us)
    }

    /// Whether the two differ by no more than their own spreads.
    pub fn within_spread(&self) -> bool {
        let spread = |row: &Row| row.times.map_or(0.0, |times| times.spread());
        let noise = spread(self.first) + spread(self.second);
        self.speedup().is_some_and(|speedup| (speedup - 1.0).abs() <= noise)
    }
}

/// The rows of the same key by the same hand, in the first report's order; where no two are by the same, those of the
/// same key, such as ours beside a peer's. Of rows that a report has twice, the last counts.
pub fn pairs<'a>(first: &'a Report, second: &'a Report) -> Vec<Pair<'a>> {
    let key = |row: &'a Row| (row.key(), row.by.as_str());
    let of_second: BTreeMap<_, &Row> = second.rows.iter().map(|row| (key(row), row)).collect();
    let of_first: BTreeMap<_, &Row> = first.rows.iter().map(|row| (key(row), row)).collect();
    let is_last = |row: &&'a Row| of_first.get(&key(row)).is_some_and(|last| std::ptr::eq(*last, *row));
    let both = |row: &'a Row| Some(Pair { first: row, second: of_second.get(&key(row))? });
    let same: Vec<Pair<'a>> = first.rows.iter().filter(is_last).filter_map(both).collect();
    if !same.is_empty() {
        return same;
    }
    // Ours and a peer's: whoever did it.
    let others = |row: &'a Row| {
        let of_key = second.rows.iter().filter(move |other| other.key() == row.key());
        of_key.map(move |other| Pair { first: row, second: other })
    };
    first.rows.iter().filter(is_last).flat_map(others).collect()
}

/// Figures of both, and how many times as fast the second is; `~` before a ratio that is within the spreads.
pub fn table(pairs: &[Pair<'_>]) -> Table {
    let mut table = Table::new(&["what", "model", "sizes", "by", ">first, µs", ">second, µs", ">second is"]);
    for pair in pairs {
        let Pair { first, second } = pair;
        let us = |row: &Row| match (row.times, &row.missing) {
            (Some(times), _) => digits(times.median_us),
            (None, Some(why)) => why.clone(),
            (None, None) => "-".to_owned(),
        };
        let tilde = if pair.within_spread() { "~ " } else { "" };
        let ratio = pair.speedup().map_or("-".to_owned(), |ratio| format!("{tilde}{} x", digits(ratio)));
        let model = first.model.clone().unwrap_or_default();
        let by = if first.by == second.by { first.by.clone() } else { format!("{} : {}", first.by, second.by) };
        table.row([first.name.clone(), model, first.sizes(), by, us(first), us(second), ratio]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::report::{DeviceRecord, Suite};
    use super::super::times::Times;
    use super::*;

    fn report(rows: &[(&str, u32, &[f64])]) -> Report {
        let mut report = Report::begin(DeviceRecord::default());
        for (name, rows, samples) in rows {
            let row = Row { times: Times::of(samples.to_vec()), ..Row::new(Suite::Kernels, *name) };
            report.rows.push(row.size("rows", *rows));
        }
        report
    }

    #[test]
    fn rows_meet_by_name_and_sizes() {
        let first = report(&[("gemv", 1, &[99.0]), ("gemv", 1, &[8.0]), ("gemv", 2, &[4.0]), ("norm", 1, &[1.0])]);
        let second = report(&[("norm", 2, &[1.0]), ("gemv", 2, &[4.0, 4.0]), ("gemv", 1, &[2.0])]);
        let pairs = pairs(&first, &second);
        let found: Vec<_> = pairs.iter().map(|pair| (pair.first.sizes(), pair.speedup())).collect();
        assert_eq!(found, [("rows 1".to_owned(), Some(4.0)), ("rows 2".to_owned(), Some(1.0))]);
        // A peer's result beside ours.
        let mut peer = second.clone();
        peer.rows.iter_mut().for_each(|row| row.by = "torch".to_owned());
        let beside = super::pairs(&first, &peer);
        assert_eq!(beside.len(), 2);
        assert!(table(&beside).to_string().contains("| rigel : torch |"));
        let text = table(&pairs).to_string();
        assert!(text.contains(" 4.00 x |") && text.contains("~ 1.00 x"), "{text}");
    }
}
