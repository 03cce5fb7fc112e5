//! The place that is to be filled: in a file, or between two.

use clap::Args;

use crate::cli::error::CliError;
use crate::cli::input::{STDIN, origin, read_text};

/// Where the gap is.
#[derive(Debug, Args)]
#[command(next_help_heading = "Gap")]
pub struct GapArgs {
    /// Code before the gap; - is stdin
    #[arg(long, value_name = "FILE", requires = "suffix_file", conflicts_with_all = ["file", "at"])]
    prefix_file: Option<String>,
    /// Code after the gap; - is stdin
    #[arg(long, value_name = "FILE", requires = "prefix_file", conflicts_with_all = ["file", "at"])]
    suffix_file: Option<String>,
    /// File, line and column of the gap in one, as compilers and editors write a place
    #[arg(long, value_name = "FILE:LINE:COLUMN", conflicts_with = "file")]
    at: Option<String>,
    /// File with the gap; - is stdin
    #[arg(long, value_name = "FILE", requires = "line", requires = "column")]
    file: Option<String>,
    /// Line of the gap, counted from 1
    #[arg(long, value_name = "L", requires = "file", allow_negative_numbers = true)]
    line: Option<usize>,
    /// Column of the gap in characters, counted from 1: the gap is before that character, and one past the last is
    /// the line's end
    #[arg(long, value_name = "C", requires = "file", allow_negative_numbers = true)]
    column: Option<usize>,
}

/// Where the gap is.
#[derive(Debug, PartialEq, Eq)]
pub enum Gap {
    /// At a line and a column of a file, both counted from 1.
    At { file: String, line: usize, column: usize },
    /// Between two files.
    Between { prefix: String, suffix: String },
}

impl Gap {
    pub fn new(args: GapArgs) -> Result<Gap, CliError> {
        match args {
            GapArgs { at: Some(at), .. } => place(&at),
            GapArgs { file: Some(file), line: Some(line), column: Some(column), .. } => {
                Ok(Gap::At { file, line, column })
            }
            GapArgs { prefix_file: Some(prefix), suffix_file: Some(suffix), .. } => {
                if prefix == STDIN && suffix == STDIN {
                    return Err(CliError::Usage(
                        "--prefix-file and --suffix-file are both -; stdin is read once".into(),
                    ));
                }
                Ok(Gap::Between { prefix, suffix })
            }
            _ => Err(CliError::Usage(
                "no gap; give --at FILE:LINE:COLUMN, or --file, --line and --column, or --prefix-file and --suffix-file"
                    .into(),
            )),
        }
    }

    /// The file that the gap is in.
    pub fn file(&self) -> Option<&str> {
        match self {
            Gap::At { file, .. } => Some(file),
            Gap::Between { .. } => None,
        }
    }

    /// The code before and after the gap.
    pub fn read(&self) -> Result<(String, String), CliError> {
        match self {
            Gap::Between { prefix, suffix } => Ok((read_text(prefix)?, read_text(suffix)?)),
            Gap::At { file, line, column } => {
                let mut prefix = read_text(file)?;
                let at = offset(&prefix, *line, *column).map_err(|error| error.at(origin(file)))?;
                let suffix = prefix.split_off(at);
                Ok((prefix, suffix))
            }
        }
    }
}

/// `FILE:LINE:COLUMN`, whatever colons are in the file's name.
fn place(at: &str) -> Result<Gap, CliError> {
    let mut parts = at.rsplitn(3, ':');
    let number = |part: Option<&str>| part.and_then(|part| part.parse().ok());
    let (column, line) = (number(parts.next()), number(parts.next()));
    match (parts.next().filter(|file| !file.is_empty()), line, column) {
        (Some(file), Some(line), Some(column)) => Ok(Gap::At { file: file.to_owned(), line, column }),
        _ => Err(CliError::Usage(format!("--at is {at:?}; expected FILE:LINE:COLUMN, such as src/sort.py:12:5"))),
    }
}

/// The byte offset of a line and a column, both counted from 1, the column in characters. A line ends before its
/// `\n` or `\r\n`.
fn offset(text: &str, line: usize, column: usize) -> Result<usize, CliError> {
    let lines = text.split('\n').count();
    let content = line.checked_sub(1).and_then(|index| text.split('\n').nth(index));
    let Some(content) = content else {
        return Err(CliError::Usage(format!("line is {line}; expected 1 to {lines}, the lines of the file")));
    };
    // Both are parts of `text`.
    let start = content.as_ptr() as usize - text.as_ptr() as usize;
    let content = content.strip_suffix('\r').unwrap_or(content);
    let end = content.chars().count() + 1;
    let starts = content.char_indices().map(|(index, _)| index).chain([content.len()]);
    match column.checked_sub(1).and_then(|index| starts.into_iter().nth(index)) {
        Some(index) => Ok(start + index),
        None => Err(CliError::Usage(format!("column is {column}; expected 1 to {end}, the end of line {line}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters() {
        let text = "añb\n\r\nxy";
        let split = |line, column| {
            let at = offset(text, line, column).unwrap();
            (&text[..at], &text[at..])
        };
        assert_eq!(split(1, 1), ("", text));
        assert_eq!(split(1, 3), ("añ", "b\n\r\nxy"));
        assert_eq!(split(1, 4), ("añb", "\n\r\nxy"));
        assert_eq!(split(2, 1), ("añb\n", "\r\nxy"));
        assert_eq!(split(3, 3), (text, ""));
    }

    #[test]
    fn a_last_line_break_opens_a_line() {
        assert_eq!(offset("a\n", 2, 1).unwrap(), 2);
        assert_eq!(offset("", 1, 1).unwrap(), 0);
    }

    #[test]
    fn places_outside_the_file_are_named() {
        let error = |text, line, column| offset(text, line, column).unwrap_err().to_string();
        assert_eq!(error("a\nb", 3, 1), "line is 3; expected 1 to 2, the lines of the file");
        assert_eq!(error("a\nb", 0, 1), "line is 0; expected 1 to 2, the lines of the file");
        assert_eq!(error("añ\r\nb", 1, 4), "column is 4; expected 1 to 3, the end of line 1");
        assert_eq!(error("a", 1, 0), "column is 0; expected 1 to 2, the end of line 1");
    }

    #[test]
    fn a_place_is_file_line_and_column() {
        let at = |file: &str, line, column| Gap::At { file: file.to_owned(), line, column };
        assert_eq!(place("a.py:3:12").unwrap(), at("a.py", 3, 12));
        assert_eq!(place("C:\\x y.py:3:1").unwrap(), at("C:\\x y.py", 3, 1));
        assert_eq!(place("-:1:1").unwrap(), at("-", 1, 1));
        for wrong in ["", "a.py", "a.py:3", ":3:4", "a.py:x:4", "a.py:3:", "a.py:3:-1"] {
            let message = place(wrong).unwrap_err().to_string();
            assert!(message.contains("expected FILE:LINE:COLUMN"), "{message}");
        }
    }
}
