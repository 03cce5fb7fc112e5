//! Where what came of the lines goes: records into the files, in the order of the input where that is asked for, and
//! counts to the bar.

use std::collections::BTreeMap;

use rigel::openai::{ResponseBody, Usage};

use super::super::error::CliError;
use super::append::{AppendFile, line_of};
use super::errors::ErrorsFile;
use super::failures::Failures;
use super::job::LineError;
use super::ledger::Ledger;
use super::outputs::{Outputs, Retry};
use super::progress::Progress;
use super::record::{LineName, Record};

/// The order of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Lines come as they are done.
    AsDone,
    /// In the order of the input: an answer waits until all earlier lines have theirs.
    AsRead,
}

/// Where records go.
pub struct Sink {
    output: AppendFile,
    errors: ErrorsFile,
    retry: Option<Retry>,
    ledger: Ledger,
    failures: Failures,
    pub progress: Progress,
    /// With [`Order::AsRead`]: the lines that were read and are not recorded, by number, with the answers that wait.
    window: Option<BTreeMap<u32, Option<Answer>>>,
    waiting: usize,
}

/// An answer held back until all earlier lines have theirs. If the process is killed, the answer is lost and the next
/// run computes the line again.
struct Answer {
    custom_id: String,
    line: Vec<u8>,
    usage: Usage,
}

impl Sink {
    pub fn new(outputs: Outputs, ledger: Ledger, failures: Failures, progress: Progress, order: Order) -> Sink {
        let Outputs { output, errors, retry } = outputs;
        let window = (order == Order::AsRead).then(BTreeMap::new);
        Sink { output, errors, retry, ledger, failures, progress, window, waiting: 0 }
    }

    /// Drops the errors of lines that are run again. To be called once nothing but the lines is left to do, and before
    /// the first of them.
    pub fn begin_retry(&mut self) -> Result<(), CliError> {
        self.retry.take().map_or(Ok(()), |retry| retry.begin(&mut self.errors))
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The failures of this run and of earlier ones.
    pub fn failures(&self) -> &Failures {
        &self.failures
    }

    pub fn errors_path(&self) -> &std::path::Path {
        self.errors.path()
    }

    pub fn is_batch_invariant(&self) -> bool {
        self.window.is_some()
    }

    /// Answers held back until all earlier lines have theirs.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// A line was read and will be answered or fail.
    pub fn begin(&mut self, number: u32) {
        if let Some(window) = &mut self.window {
            window.insert(number, None);
        }
    }

    /// A line was answered.
    pub fn answered(&mut self, name: &LineName, body: &ResponseBody, plain: bool) -> Result<(), CliError> {
        let LineName { custom_id, number, .. } = name;
        let record = Record::answered(custom_id, body, plain);
        let line =
            line_of(&record).map_err(|source| CliError::Write { path: self.output.path().to_owned(), source })?;
        let answer = Answer { custom_id: custom_id.clone(), line, usage: body.usage() };
        match &mut self.window {
            None => self.write(answer),
            Some(window) => {
                window.insert(*number, Some(answer));
                self.waiting += 1;
                self.release()
            }
        }
    }

    /// A line failed. Errors are in no order, so they wait for nothing.
    pub fn failed(&mut self, name: &LineName, error: &LineError) -> Result<(), CliError> {
        self.errors.append(&Record::failed(name, error))?;
        self.record(&name.custom_id)?;
        self.failures.add(&error.code, name.number, &error.message);
        self.progress.failed();
        if let Some(window) = &mut self.window {
            window.remove(&name.number);
        }
        self.release()
    }

    /// Waits until the disk has every record.
    pub fn sync(&mut self) -> Result<(), CliError> {
        self.output.sync()?;
        self.errors.sync()
    }

    /// Writes the answers that wait for nothing any more.
    fn release(&mut self) -> Result<(), CliError> {
        while let Some(first) = self.window.as_mut().and_then(BTreeMap::first_entry) {
            if first.get().is_none() {
                break;
            }
            if let Some(answer) = first.remove() {
                self.waiting -= 1;
                self.write(answer)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, answer: Answer) -> Result<(), CliError> {
        let Answer { custom_id, line, usage } = answer;
        self.output.append_line(&line)?;
        self.record(&custom_id)?;
        self.progress.answered(usage);
        Ok(())
    }

    fn record(&mut self, custom_id: &str) -> Result<(), CliError> {
        // Each line is read once, so this cannot fail.
        let recorded = self.ledger.record(custom_id).map(drop);
        recorded.map_err(|error| CliError::Failed(format!("custom_id {custom_id:?} {error}")))
    }
}
