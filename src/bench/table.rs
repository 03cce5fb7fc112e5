//! Tables as text: Markdown whose columns also line up in a terminal.

use std::fmt;

use super::plot::escaped;

/// Rows of cells under a head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Column {
    name: String,
    align: Align,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}

impl Table {
    /// An empty one. Columns whose name begins with `>` hold numbers, at the right.
    pub fn new(columns: &[&str]) -> Table {
        let column = |name: &&str| match name.strip_prefix('>') {
            Some(name) => Column { name: name.to_owned(), align: Align::Right },
            None => Column { name: (*name).to_owned(), align: Align::Left },
        };
        Table { columns: columns.iter().map(column).collect(), rows: Vec::new() }
    }

    /// Adds a row: a cell for each column, the rest empty.
    pub fn row<C: Into<String>>(&mut self, cells: impl IntoIterator<Item = C>) {
        // A bar would end the cell, and a line break the row.
        let cell = |cell: C| cell.into().replace('|', "\\|").replace('\n', " ");
        let mut cells: Vec<String> = cells.into_iter().map(cell).collect();
        cells.resize(self.columns.len(), String::new());
        self.rows.push(cells);
    }

    /// Whether it has no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Head and rows as HTML's `tr`, without the `table` around them.
    pub fn to_html(&self) -> String {
        let line = |cells: &mut dyn Iterator<Item = &str>, element: &str| {
            let cell = |cell: &str| format!("<{element}>{}</{element}>", escaped(&cell.replace("\\|", "|")));
            format!("<tr>{}</tr>\n", cells.map(cell).collect::<String>())
        };
        let head = line(&mut self.columns.iter().map(|column| column.name.as_str()), "th");
        let rows = self.rows.iter().map(|row| line(&mut row.iter().map(String::as_str), "td"));
        rows.fold(head, |html, row| html + &row)
    }

    /// The widest cell of each column, in characters.
    fn widths(&self) -> Vec<usize> {
        let width = |(index, column): (usize, &Column)| {
            let cells = self.rows.iter().map(|row| row[index].chars().count());
            cells.chain([column.name.chars().count(), 3]).max().unwrap_or(0)
        };
        self.columns.iter().enumerate().map(width).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        let mut line = |cells: &mut dyn Iterator<Item = &str>| {
            for ((cell, column), width) in cells.zip(&self.columns).zip(&widths) {
                match column.align {
                    Align::Left => write!(f, "| {cell:<width$} ")?,
                    Align::Right => write!(f, "| {cell:>width$} ")?,
                }
            }
            writeln!(f, "|")
        };
        line(&mut self.columns.iter().map(|column| column.name.as_str()))?;
        let rule = |(column, width): (&Column, &usize)| match column.align {
            Align::Left => "-".repeat(*width),
            Align::Right => "-".repeat(width - 1) + ":",
        };
        let rules: Vec<String> = self.columns.iter().zip(&widths).map(rule).collect();
        line(&mut rules.iter().map(String::as_str))?;
        self.rows.iter().try_for_each(|row| line(&mut row.iter().map(String::as_str)))
    }
}

/// Three digits: `1.23`, `12.3`, `123`, `1234`.
pub fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

/// `93 %`; `0.4 %` where it is little.
pub fn percent(share: f64) -> String {
    let decimals = if share.abs() < 0.1 { 1 } else { 0 };
    format!("{:.decimals$} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["kernel", ">µs"]);
        table.row(["gemv", "1.23"]);
        table.row(["a|b"]);
        let expected = "\
| kernel |   µs |
| ------ | ---: |
| gemv   | 1.23 |
| a\\|b   |      |
";
        assert_eq!(table.to_string(), expected);
        let html = "<tr><th>kernel</th><th>µs</th></tr>\n<tr><td>gemv</td><td>1.23</td></tr>\n";
        assert_eq!(table.to_html(), html.to_owned() + "<tr><td>a|b</td><td></td></tr>\n");
    }

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!(
            [0.0, 1.234, 9.999, 12.34, 123.4, 1234.5].map(digits),
            ["0.00", "1.23", "10.0", "12.3", "123", "1234"]
        );
        assert_eq!([0.934, 0.004, 1.2].map(percent), ["93 %", "0.4 %", "120 %"]);
    }
}
