//! Fields of plain lines that nobody reads, and that are spelt almost like one that would be or are another program's
//! word for one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use rigel::openai::{SYNONYMS, is_known_field, option_fields};

use super::super::nearest::{MAX_NAME_BYTES, nearest, plain};
use super::super::prompts;
use super::job::{MESSAGES, OPENAI_FIELDS};

/// Names that are remembered: a file whose every line has names of its own does not fill the memory.
const MAX_NAMES: usize = 1024;

/// Counts the misspelt fields of a file. A field that is near no other is the caller's own.
#[derive(Debug, Default)]
pub struct Misspelt {
    /// Of each unknown name: what it was meant to be, where that can be told.
    names: HashMap<String, Option<Seen>>,
    /// Unknown names of the line that is read.
    of_line: Vec<String>,
    is_openai: bool,
}

#[derive(Debug)]
struct Seen {
    meant: Meant,
    lines: u64,
    first: u32,
}

impl Misspelt {
    /// A field of the line that is read.
    pub fn field(&mut self, name: &str) {
        self.is_openai |= OPENAI_FIELDS.contains(&name);
        if self.is_openai || name.len() > MAX_NAME_BYTES || self.of_line.len() >= MAX_NAMES {
            return;
        }
        if !is_known_field(name) && !prompts::FIELDS.contains(&name) && name != MESSAGES {
            self.of_line.push(name.to_owned());
        }
    }

    /// The line is read.
    pub fn end_line(&mut self, number: u32) {
        let is_openai = std::mem::take(&mut self.is_openai);
        for name in self.of_line.drain(..) {
            // An OpenAI line has nothing of its own but the body, whose unknown fields are ignored, as OpenAI's clients
            // need.
            if is_openai {
                continue;
            }
            let is_full = self.names.len() >= MAX_NAMES;
            let seen = match self.names.entry(name) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(_) if is_full => continue,
                Entry::Vacant(entry) => {
                    let meant = meant(entry.key());
                    entry.insert(meant.map(|meant| Seen { meant, lines: 0, first: number }))
                }
            };
            if let Some(seen) = seen {
                seen.lines += 1;
            }
        }
    }

    /// One line of text for each, in the order in which they were found.
    pub fn warnings(&self) -> Vec<String> {
        let mut found: Vec<(&String, &Seen)> =
            self.names.iter().filter_map(|(name, seen)| Some((name, seen.as_ref()?))).collect();
        found.sort_unstable_by_key(|(name, seen)| (seen.first, *name));
        let line = |(name, Seen { meant, lines, first }): (&String, &Seen)| {
            let place =
                if *lines == 1 { format!("line {first}") } else { format!("{lines} lines, from line {first} on") };
            let advice = match meant {
                Meant::Misspelt(field) => format!("did you mean {field}?"),
                Meant::Synonym(field) => format!("it is called {field} here"),
            };
            format!("{name} is no field and is ignored ({place}); {advice}")
        };
        found.into_iter().map(line).collect()
    }
}

/// What a name was meant to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meant {
    /// This field.
    Misspelt(&'static str),
    /// What other programs call this field.
    Synonym(&'static str),
}

/// The field that a name was meant to be.
fn meant(name: &str) -> Option<Meant> {
    // Shorter ones are near words that mean something else: util, until.
    const MIN_SYNONYM: usize = 8;
    let written = plain(name);
    if let Some((_, field)) = SYNONYMS.iter().find(|(other, _)| plain(other) == written) {
        return Some(Meant::Synonym(field));
    }
    let synonyms = SYNONYMS.iter().map(|(other, _)| *other).filter(|other| other.len() >= MIN_SYNONYM);
    let near = nearest(name, option_fields().iter().copied().chain(synonyms))?;
    let field = SYNONYMS.iter().find(|(other, _)| *other == near).map_or(near, |(_, field)| *field);
    Some(Meant::Misspelt(field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_a_field_is_that_field_misspelt() {
        for (name, field) in [
            ("max_token", "max_tokens"),
            ("maxTokens", "max_tokens"),
            ("max-tokens", "max_tokens"),
            ("max_new_token", "max_tokens"),
            ("stop_sequence", "stop"),
            ("temprature", "temperature"),
            ("tempertaure", "temperature"),
            ("Temperature", "temperature"),
            ("topp", "top_p"),
            ("top-k", "top_k"),
            ("sufix", "suffix"),
            ("stops", "stop"),
            ("presence_penality", "presence_penalty"),
            ("N", "n"),
        ] {
            assert_eq!(meant(name), Some(Meant::Misspelt(field)), "{name}");
        }
    }

    #[test]
    fn what_other_programs_call_a_field_is_that_field() {
        for (name, field) in [
            ("max_new_tokens", "max_tokens"),
            ("maxOutputTokens", "max_tokens"),
            ("max_length", "max_tokens"),
            ("n_predict", "max_tokens"),
            ("num_predict", "max_tokens"),
            ("stop_sequences", "stop"),
            ("stopSequences", "stop"),
            ("repeat_penalty", "repetition_penalty"),
            ("random_seed", "seed"),
            ("candidateCount", "n"),
        ] {
            assert_eq!(meant(name), Some(Meant::Synonym(field)), "{name}");
        }
    }

    #[test]
    fn a_data_set_s_own_fields_are_its_own() {
        // Fields of HumanEval, MBPP, MultiPL-E, APPS, DS-1000, CodeSearchNet, The Stack and of everybody.
        for name in [
            "task_id",
            "entry_point",
            "canonical_solution",
            "test",
            "tests",
            "test_list",
            "test_setup_code",
            "code",
            "challenge_test_list",
            "name",
            "language",
            "doctests",
            "original",
            "prompt_terminology",
            "solutions",
            "input_output",
            "difficulty",
            "url_",
            "starter_code",
            "reference_code",
            "code_context",
            "repo",
            "path",
            "func_name",
            "original_string",
            "docstring",
            "sha",
            "partition",
            "hexsha",
            "size",
            "ext",
            "lang",
            "content",
            "avg_line_length",
            "max_line_length",
            "alphanum_fraction",
            "id_",
            "meta",
            "tags",
            "source",
            "category",
            "answer",
            "label",
            "score",
            "index",
            "idx",
            "file",
            "line",
            "date",
            "author",
            "version",
            "note",
            "role",
            "k",
            "a",
            "x",
            "ids",
            "title",
            "body_",
            "question",
            "input",
            "output",
            "instruction",
            "response",
            "stars",
            "top",
            "problem",
            "solution",
            "type",
            "kind",
            "hash",
            "split",
            "model_name",
            "mode",
            "tool",
            "context",
            "suite",
        ] {
            assert_eq!(meant(name), None, "{name}");
        }
    }

    #[test]
    fn each_is_said_once_with_its_lines() {
        let mut misspelt = Misspelt::default();
        let lines: [&[&str]; 5] = [
            &["prompt", "max_token", "mine"],
            &["max_token", "prompt", "temprature"],
            &["body", "max_token"],
            &["n_predict", "text"],
            &["max_token", "url"],
        ];
        for (number, fields) in (1..).zip(lines) {
            fields.iter().for_each(|name| misspelt.field(name));
            misspelt.end_line(number);
        }
        let said = [
            "max_token is no field and is ignored (2 lines, from line 1 on); did you mean max_tokens?",
            "temprature is no field and is ignored (line 2); did you mean temperature?",
            "n_predict is no field and is ignored (line 4); it is called max_tokens here",
        ];
        assert_eq!(misspelt.warnings(), said);
    }

    #[test]
    fn names_of_each_line_s_own_do_not_pile_up() {
        let mut misspelt = Misspelt::default();
        for number in 0..5000 {
            misspelt.field(&format!("field {number}"));
            misspelt.end_line(number);
        }
        assert_eq!(misspelt.names.len(), MAX_NAMES);
    }

    #[test]
    fn names_of_one_line_do_not_pile_up() {
        let mut misspelt = Misspelt::default();
        (0..5000).for_each(|number| misspelt.field(&format!("field {number}")));
        assert_eq!(misspelt.of_line.len(), MAX_NAMES);
    }

    #[test]
    fn a_long_name_is_the_caller_s_own() {
        let mut misspelt = Misspelt::default();
        // Nothing but its length tells it from max_tokens.
        let misspelt_in = |bytes: usize| format!("max-tokens{}", "-".repeat(bytes - 10));
        for bytes in [MAX_NAME_BYTES + 1, 1 << 20] {
            misspelt.field(&misspelt_in(bytes));
        }
        misspelt.end_line(1);
        assert!(misspelt.names.is_empty() && misspelt.warnings().is_empty());
        misspelt.field(&misspelt_in(MAX_NAME_BYTES));
        misspelt.end_line(2);
        assert_eq!(misspelt.warnings().len(), 1);
        assert!(option_fields().iter().all(|field| field.len() <= MAX_NAME_BYTES / 2));
        assert!(SYNONYMS.iter().all(|(other, _)| other.len() <= MAX_NAME_BYTES / 2));
    }
}
