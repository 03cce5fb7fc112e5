//! The report as people read it: what each thing is, and under it what to do where it is amiss.

use rigel::backend::cpu::ISA_VARIABLE;
use rigel::host::{Size, counted};

use super::super::option_names;
use super::super::version;
use super::{Cache, Cpu, Memory, Report, variables};

pub(super) fn lines(report: &Report) -> Vec<String> {
    let mut findings = vec![
        Finding::new("version", wrapped(version::long())),
        cpu(&report.cpu),
        memory(report.memory.as_ref()),
        cache(report.cache.as_ref()),
    ];
    findings.extend(report.gpu.findings.iter().cloned());
    findings.push(variables::finding(&report.environment));
    findings.push(models(report));
    findings.iter().flat_map(Finding::to_lines).collect()
}

/// One thing that was looked at: what it is, then what to do about it where it is amiss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    subject: String,
    pub(super) lines: Vec<String>,
}

impl Finding {
    pub(super) fn new(subject: impl Into<String>, lines: Vec<String>) -> Finding {
        Finding { subject: subject.into(), lines }
    }

    /// Errors say what is wrong, a semicolon, what to do.
    pub(super) fn amiss(subject: impl Into<String>, error: &impl ToString) -> Finding {
        Finding::new(subject, option_names::of_settings(&error.to_string()).split("; ").map(str::to_owned).collect())
    }

    /// The subject stands before the first line alone.
    pub(super) fn to_lines(&self) -> Vec<String> {
        let subjects = std::iter::once(self.subject.as_str()).chain(std::iter::repeat(""));
        subjects.zip(&self.lines).map(|(subject, line)| format!("{subject:<8}  {line}")).collect()
    }
}

/// The text in lines that a terminal holds beside the subjects' column, cut between words.
pub(super) fn wrapped(text: &str) -> Vec<String> {
    const WIDTH: usize = 100;
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn cpu(cpu: &Cpu) -> Finding {
    let Cpu { model, isa, isa_is_set, threads, problem } = cpu;
    let set = if *isa_is_set { format!(" ({ISA_VARIABLE} is set)") } else { String::new() };
    let isa = isa.map_or_else(String::new, |isa| format!(", {isa}{set}"));
    let mut finding = Finding::new("cpu", vec![format!("{model}{isa}, {}", counted(*threads, "thread"))]);
    if let Some(problem) = problem {
        finding.lines.extend(Finding::amiss("", problem).lines);
    }
    finding
}

/// What the CPU has for weights and cache.
fn memory(memory: Option<&Memory>) -> Finding {
    let line = match memory {
        Some(Memory { available_bytes, limit }) => format!("{} left in {limit}", Size(*available_bytes)),
        None => "not known: the system does not say".to_owned(),
    };
    Finding::new("memory", vec![line])
}

/// Where models are looked for by their hub id.
fn cache(cache: Option<&Cache>) -> Finding {
    let Some(Cache { directory, exists, free_bytes, models }) = cache else {
        return Finding::new("cache", vec!["no home directory".to_owned(), "set HF_HOME to have one".to_owned()]);
    };
    let state = if *exists { "" } else { " (does not exist yet)" };
    let free = free_bytes.map_or_else(String::new, |bytes| format!("{} free on its disk", Size(bytes)));
    let directory = format!("{}{state}", directory.display());
    let models = match models.as_deref() {
        None => "cannot be read".to_owned(),
        Some([]) => String::new(),
        Some(models) => {
            let bytes = models.iter().map(|model| model.bytes).sum();
            format!("{}, {}; `rigel list` shows them", counted(models.len(), "model"), Size(bytes))
        }
    };
    Finding::new("cache", [directory, free, models].into_iter().filter(|line| !line.is_empty()).collect())
}

/// What all that amounts to.
fn models(report: &Report) -> Finding {
    let line = if report.gpu.usable { "run on gpu 0; with --device cpu on the CPU" } else { "run on the CPU" };
    Finding::new("models", vec![line.to_owned()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut_between_words() {
        let text = ["kernel_name,"; 30].join(" ");
        let lines = wrapped(&text);
        assert!(lines.len() > 1 && lines.iter().all(|line| line.len() <= 100), "{lines:?}");
        assert_eq!(lines.join(" "), text);
    }
}
