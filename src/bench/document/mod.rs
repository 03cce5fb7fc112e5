//! The measured part of docs/performance.md: tables and plots made of committed results alone, between two markers.
//! What stands outside of them is written by hand and stays.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod` | which results, and the page around the tables |
//! | `targets` | the design's targets, each with what was measured of it |
//! | `tables` | kernels and models, beside their peers |
//! | `plots` | roofline, tokens a second by batch, ours beside peers |

mod plots;
mod tables;
mod targets;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::report::{Report, ReportError, Row};

/// Begins the measured part.
pub const BEGIN: &str = "<!-- rigel bench report: from here on this is generated; do not edit -->";
/// Ends it.
pub const END: &str = "<!-- rigel bench report: end -->";
/// What stands in a cell that nobody has measured.
pub const NOT_MEASURED: &str = "not yet measured";
/// The page in the folder of documents.
pub const PAGE: &str = "performance.md";
/// The plots beside it: present where there is something to draw.
pub const PLOTS: [&str; 3] = ["performance-roofline.svg", "performance-tokens.svg", "performance-peers.svg"];

/// A result, and the file that it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// The file's path as the page shall name it.
    pub file: String,
    /// What it holds.
    pub report: Report,
}

/// Why the page cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// A result.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// A file that cannot be read or written.
    #[error("{file}: {source}")]
    File {
        /// Its path.
        file: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The page has no place for it.
    #[error(
        "{file}: expected the line `{BEGIN}` and after it `{END}`, once each; add them where the tables shall stand"
    )]
    Markers {
        /// Its path.
        file: String,
    },
}

impl Source {
    /// Reads a result.
    ///
    /// # Errors
    /// As for [`Report::read`].
    pub fn read(path: &Path) -> Result<Source, ReportError> {
        // As it is typed in the repository, on every system.
        let file = path.display().to_string().replace('\\', "/");
        Ok(Source { file, report: Report::read(path)? })
    }
}

/// The newest result of each kind of device among the `.json` files of a folder, GPUs first; none where there is no
/// such folder.
///
/// # Errors
/// A file that is no result, a folder that cannot be read.
pub fn newest(folder: &Path) -> Result<Vec<Source>, DocumentError> {
    let wrong = |source| DocumentError::File { file: folder.display().to_string(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(wrong(error)),
    };
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(wrong)?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    let sources: Vec<Source> = paths.iter().map(|path| Source::read(path)).collect::<Result<_, _>>()?;
    let newest = |kind: &str| {
        let of_kind = sources.iter().filter(|source| source.report.device.kind == kind);
        // RFC 3339 in UTC: later dates are larger strings.
        of_kind.max_by(|a, b| a.report.date.cmp(&b.report.date)).cloned()
    };
    Ok(["cuda", "cpu"].into_iter().filter_map(newest).collect())
}

/// The measured part and its plots.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Markdown, without the markers.
    pub text: String,
    /// For each of [`PLOTS`] the picture, where there is something to draw.
    pub plots: [Option<String>; 3],
}

impl Document {
    /// Of the results of a GPU and of a CPU, as far as there are any.
    pub fn of(sources: &[Source]) -> Document {
        let of_kind = |kind: &str| sources.iter().find(|source| source.report.device.kind == kind);
        let (gpu, cpu) = (of_kind("cuda"), of_kind("cpu"));
        let mut text = String::from("## Measured\n\n");
        text += "Made by `rigel bench report` from the newest results in `benches/results`.\n\n";
        text += "### Targets\n\nOf StarCoder2-15B in bf16 on one H200, and of any bf16 model on a CPU.\n\n";
        // What is known comes first; what is not is a click away.
        let kinds = [("GPU", gpu), ("CPU", cpu)];
        for (name, source) in kinds.into_iter().filter_map(|(name, source)| Some((name, source?))) {
            text += &format!("{name}: {}\n\n", origin(source));
        }
        let reports = [gpu, cpu].map(|source| source.map(|source| &source.report));
        let targets = targets::all(reports[0], reports[1]);
        if !targets.measured.is_empty() {
            text += &format!("{}\n", targets.measured);
        }
        for (name, _) in kinds.into_iter().filter(|(_, source)| source.is_none()) {
            text += &format!("{name}: {NOT_MEASURED}\n\n");
        }
        if !targets.not_measured.is_empty() {
            let summary = format!("Targets {NOT_MEASURED}");
            text += &format!("<details>\n<summary>{summary}</summary>\n\n{}\n</details>\n", targets.not_measured);
        }
        let plots = gpu.or(cpu).map_or([None, None, None], |source| plots::all(&source.report));
        let titles = ["Kernels under their ceilings", "Tokens a second by batch", "Times as fast as peers"];
        for ((file, title), plot) in PLOTS.iter().zip(titles).zip(&plots) {
            if plot.is_some() {
                text += &format!("\n![{title}]({file})\n");
            }
        }
        for source in [gpu, cpu].into_iter().flatten() {
            text += &tables::all(source);
        }
        Document { text, plots }
    }

    /// Puts it between the markers of the page in `folder`, and its plots beside the page. Plots that there is nothing
    /// to draw of any more are deleted.
    ///
    /// # Errors
    /// A page without markers; the file system's.
    pub fn write(&self, folder: &Path) -> Result<(), DocumentError> {
        let wrong = |path: &Path| {
            let file = path.display().to_string();
            move |source| DocumentError::File { file, source }
        };
        let page = folder.join(PAGE);
        fs::write(&page, self.spliced(folder)?).map_err(wrong(&page))?;
        for (file, plot) in PLOTS.iter().zip(&self.plots) {
            let path = folder.join(file);
            match plot {
                Some(plot) => fs::write(&path, plot).map_err(wrong(&path))?,
                None if path.exists() => fs::remove_file(&path).map_err(wrong(&path))?,
                None => {}
            }
        }
        Ok(())
    }

    /// The files in `folder` that [`Document::write`] would change.
    ///
    /// # Errors
    /// A page that cannot be read or has no markers.
    pub fn stale(&self, folder: &Path) -> Result<Vec<PathBuf>, DocumentError> {
        let page = folder.join(PAGE);
        let mut stale = Vec::new();
        if self.spliced(folder)? != read(&page)? {
            stale.push(page);
        }
        for (file, plot) in PLOTS.iter().zip(&self.plots) {
            let path = folder.join(file);
            if fs::read_to_string(&path).ok() != *plot {
                stale.push(path);
            }
        }
        Ok(stale)
    }

    /// The page with this between its markers.
    fn spliced(&self, folder: &Path) -> Result<String, DocumentError> {
        let path = folder.join(PAGE);
        let page = read(&path)?;
        let markers = || DocumentError::Markers { file: path.display().to_string() };
        let (before, rest) = page.split_once(BEGIN).ok_or_else(markers)?;
        let (between, after) = rest.split_once(END).ok_or_else(markers)?;
        if [before, between, after].iter().any(|part| part.contains(BEGIN) || part.contains(END)) {
            return Err(markers());
        }
        Ok(format!("{before}{BEGIN}\n\n{}\n{END}{after}", self.text))
    }
}

fn read(path: &Path) -> Result<String, DocumentError> {
    fs::read_to_string(path).map_err(|source| DocumentError::File { file: path.display().to_string(), source })
}

/// Where a table's figures come from.
fn origin(source: &Source) -> String {
    let Source { file, report: Report { device, date, commit, command, invalid, .. } } = source;
    let mut line = format!("{}, {date}, commit {commit}, `{command}`, result `{file}`", device.name);
    for why in invalid {
        line += &format!(". **Invalid: {why}**");
    }
    line
}

/// Rows of the report that have a time, the last of those that are there twice.
fn measured(report: &Report) -> Vec<&Row> {
    let timed = report.rows.iter().filter(|row| row.times.is_some());
    let mut rows: Vec<&Row> = Vec::new();
    for row in timed {
        match rows.iter_mut().find(|other| other.by == row.by && other.key() == row.key()) {
            Some(other) => *other = row,
            None => rows.push(row),
        }
    }
    rows
}

/// A size as a number.
fn size(row: &Row, name: &str) -> Option<u64> {
    row.shape.get(name)?.as_u64()
}

/// The peers' rows of the same thing, the fastest first.
fn peers<'a>(rows: &[&'a Row], ours: &Row) -> Vec<&'a Row> {
    let same = rows.iter().filter(|row| row.by != "rigel" && row.key() == ours.key());
    let mut peers: Vec<&Row> = same.copied().collect();
    peers.sort_by(|a, b| median(a).total_cmp(&median(b)));
    peers
}

fn median(row: &Row) -> f64 {
    row.times.map_or(f64::INFINITY, |times| times.median_us)
}

#[cfg(test)]
mod tests;
