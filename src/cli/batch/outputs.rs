//! The files that a run writes, and whether they are its own.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::super::error::CliError;
use super::append::AppendFile;
use super::digest::hex;
use super::errors::{ErrorsFile, errors_path, former_errors_path, output_with_the_same_errors};
use super::failures::Failures;
use super::input::InputFile;
use super::ledger::{Ledger, Shard};
use super::manifest::Manifest;
use super::scan::sum_without;

/// Whether lines that failed are done again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    Keep,
    Retry,
}

/// The output and its errors, for this process alone and for one manifest.
pub struct Outputs {
    pub output: AppendFile,
    pub errors: ErrorsFile,
    /// With [`Failed::Retry`]: what is left to do before the first line is run.
    pub retry: Option<Retry>,
}

/// Lines that failed and are to be run again. Their errors stay until the run begins: they are the only record of what
/// was wrong, and a run whose model does not load corrects nothing.
#[derive(Debug)]
pub struct Retry {
    /// Where the input was corrected: its manifest, and the file for it.
    corrected: Option<(Manifest, PathBuf)>,
}

impl Retry {
    /// Drops the errors.
    pub fn begin(self, errors: &mut ErrorsFile) -> Result<(), CliError> {
        // Before the errors are dropped: they are what tells that the input was corrected.
        if let Some((manifest, path)) = &self.corrected {
            manifest.write(path)?;
        }
        errors.clear()
    }
}

/// Refuses an output that can be no file of its own with others beside it.
pub fn check_output_name(input: &Path, output: &Path) -> Result<(), CliError> {
    let found = output.display();
    if output.as_os_str() == "-" {
        let message = "-: a stopped run goes on from its output, so it must be a file; give the name of one";
        return Err(CliError::Usage(message.into()));
    }
    // `/dev/stdout` may stand for a regular file, but the files beside it would be among the devices.
    if ["/dev", "/dev/fd", "/proc/self/fd"].iter().any(|devices| output.parent() == Some(Path::new(devices))) {
        return Err(CliError::Usage(format!("{found} is not a regular file; give the name of one to write to")));
    }
    if let Some(other) = output_with_the_same_errors(output).filter(|_| !Manifest::path_of(output).exists()) {
        return Err(CliError::Usage(format!(
            "{found} would share {} with {}; give another output file",
            errors_path(output).display(),
            other.display()
        )));
    }
    let written = [output.to_owned(), errors_path(output), former_errors_path(output), Manifest::path_of(output)];
    for written in written {
        // Where one of them is not there, they are not the same.
        let same = matches!((input.canonicalize(), written.canonicalize()), (Ok(a), Ok(b)) if a == b);
        if same {
            return Err(CliError::Usage(format!("{} is the input, too; give another output file", written.display())));
        }
    }
    Ok(())
}

impl Outputs {
    /// Opens the files of an output that is new, or that a run with this manifest, whose shard is `shard`, began. With
    /// [`Failed::Retry`] the errors count no more, and the input may differ in the lines that they are of.
    pub fn open(
        path: &Path,
        manifest: &Manifest,
        input: &mut InputFile,
        shard: Shard,
        failed: Failed,
    ) -> Result<Outputs, CliError> {
        let output = AppendFile::open(path.to_owned())?;
        let errors = ErrorsFile::open(path)?;
        let mut outputs = Outputs { output, errors, retry: None };
        let manifest_path = Manifest::path_of(path);
        let Some(earlier) = Manifest::read(&manifest_path)? else {
            outputs.refuse_foreign(&manifest_path)?;
            manifest.write(&manifest_path)?;
            return Ok(outputs);
        };
        manifest.check_options(&earlier, path)?;
        // Only now: a file that is not ours stays as it is.
        outputs.output.repair()?;
        outputs.errors.repair()?;
        let mut corrected = None;
        if !manifest.has_input_of(&earlier) {
            let refused = manifest.refuse_input(&earlier, path);
            match failed {
                _ if outputs.errors.is_empty() => return Err(refused),
                Failed::Keep => {
                    let hint = "; if lines that failed were corrected, --retry-failed takes them";
                    return Err(CliError::Usage(format!("{refused}{hint}")));
                }
                Failed::Retry => {}
            }
            outputs.check_correction(&earlier, input, shard)?;
            corrected = Some((manifest.clone(), manifest_path));
        } else if manifest.input().digest != earlier.input().digest {
            // Lines of other shards were corrected. The errors hold for the new input as for the old one.
            manifest.write(&manifest_path)?;
        }
        if failed == Failed::Retry {
            outputs.retry = Some(Retry { corrected });
        }
        Ok(outputs)
    }

    /// What is there without a manifest would be taken for lines of this run.
    fn refuse_foreign(&self, manifest_path: &Path) -> Result<(), CliError> {
        let output = (!self.output.is_empty()).then(|| self.output.path());
        let errors = (!self.errors.is_empty()).then(|| self.errors.path());
        match output.or(errors) {
            None => Ok(()),
            Some(foreign) => Err(CliError::Usage(format!(
                "{} is there and {} is not, so it is no output of rigel batch; give another output file",
                foreign.display(),
                manifest_path.display()
            ))),
        }
    }

    /// Checks that only failed lines of the shard differ from the input of `earlier`.
    fn check_correction(&self, earlier: &Manifest, input: &mut InputFile, shard: Shard) -> Result<(), CliError> {
        let (mut failed, mut of_failed, mut is_known) = (HashSet::new(), 0u128, true);
        self.errors.each_record(|_, record| {
            let digest = record.line_digest.as_deref().and_then(|digest| u128::from_str_radix(digest, 16).ok());
            match (record.line, digest) {
                (Some(line), Some(digest)) => {
                    failed.insert(line);
                    of_failed = of_failed.wrapping_add(digest);
                }
                _ => is_known = false,
            }
            Ok(())
        })?;
        let path = self.output.path().display();
        let Some(before) = earlier.input().line_sum.as_ref().filter(|_| is_known) else {
            return Err(CliError::Usage(format!(
                "{path} was begun by an older version, which takes no corrected input; give another output file"
            )));
        };
        let others = sum_without(input, shard, &failed)?;
        if hex(others.wrapping_add(of_failed)) == *before {
            return Ok(());
        }
        Err(CliError::Usage(format!(
            "{} differs from the input that {path} was begun with in lines that did not fail; change no other lines, or \
             give another output file",
            input.path().display()
        )))
    }

    /// Enters what is recorded into the ledger; the failures among it. Lines that are to be run again are not entered.
    pub fn enter(&self, ledger: &mut Ledger) -> Result<Failures, CliError> {
        let mut failures = Failures::default();
        let mut enter = |path: &Path, number: u32, id: &str| {
            ledger.record(id).map_err(|error| {
                let message = format!("custom_id {id:?} {error}; give another output file");
                CliError::Usage(message).at(format!("{}:{number}", path.display()))
            })
        };
        self.output.each_record(|number, record| enter(self.output.path(), number, &record.custom_id).map(drop))?;
        if self.retry.is_some() {
            return Ok(failures);
        }
        self.errors.each_record(|number, record| {
            let line = enter(self.errors.path(), number, &record.custom_id)?;
            if let Some(error) = &record.error {
                failures.add(&error.code, line, &error.message);
            }
            Ok(())
        })?;
        Ok(failures)
    }
}
