//! What is odd about an input and no error: the user may want to know of it before the lines are run.

use rigel::sampling::SamplingParams;

use super::super::idle::{self, have_no_effect};
use super::super::nearest::nearest;
use super::job::OPENAI_FIELDS;
use super::misspelt::Misspelt;

/// What was seen of the lines of a file.
#[derive(Debug, Default)]
pub struct Oddities {
    misspelt: Misspelt,
    id_field: Option<IdField>,
    /// Lines as OpenAI has them.
    openai: u64,
    /// The others.
    plain: u64,
    /// A plain line has a temperature of its own.
    has_temperature: bool,
    line: LineSeen,
}

/// What was seen of the line that is read.
#[derive(Debug, Default)]
struct LineSeen {
    is_openai: bool,
    has_temperature: bool,
}

impl Oddities {
    /// Of a file whose ids are taken from the field `id_field` first, if there is one.
    pub fn new(id_field: Option<&str>) -> Oddities {
        Oddities { id_field: id_field.map(IdField::new), ..Oddities::default() }
    }

    /// A field of the line that is read, which is no id.
    pub fn field(&mut self, name: &str) {
        self.misspelt.field(name);
        self.line.is_openai |= OPENAI_FIELDS.contains(&name);
        self.line.has_temperature |= name == "temperature";
        if let Some(id_field) = &mut self.id_field {
            id_field.field(name);
        }
    }

    /// The line is read. `id` is the field that its id is in, if it has one; none if the line cannot be read.
    pub fn end_line(&mut self, number: u32, id: Option<Option<&str>>) {
        self.misspelt.end_line(number);
        let line = std::mem::take(&mut self.line);
        let Some(id) = id else { return };
        if line.is_openai {
            self.openai += 1;
        } else {
            self.plain += 1;
            self.has_temperature |= line.has_temperature;
        }
        if let Some(id_field) = &mut self.id_field {
            id_field.end_line(number, id);
        }
    }

    /// One line of text for each oddity of the fields.
    pub fn of_fields(&self) -> Vec<String> {
        let id_field = self.id_field.as_ref().and_then(IdField::warning);
        self.misspelt.warnings().into_iter().chain(id_field).collect()
    }

    /// What is said of the options for plain lines that were `given` and that no line heeds.
    pub fn of_options(&self, given: &[&'static str], sampling: &SamplingParams) -> Option<String> {
        // A line of OpenAI's that names no seed has one made of --seed.
        let is_seed_idle = self.openai == 0;
        let heeded_by_none = |options: &[&str]| -> Vec<&'static str> {
            given.iter().copied().filter(|name| options.contains(name) && (*name != "--seed" || is_seed_idle)).collect()
        };
        if self.plain == 0 && self.openai > 0 {
            let said = have_no_effect(&heeded_by_none(given))?;
            return Some(format!("{said}: every line has a body, which says all; give its fields there"));
        }
        if self.plain == 0 || self.has_temperature || sampling.temperature != 0.0 {
            return None;
        }
        let said = have_no_effect(&heeded_by_none(&idle::WHEN_GREEDY))?;
        Some(format!("{said} at temperature 0, and no line has another; give a --temperature above 0"))
    }
}

/// Where the field of `--id-field` is, and where it is not.
#[derive(Debug)]
struct IdField {
    name: String,
    /// Lines that can be read.
    lines: u64,
    /// Those without the field.
    lacking: u64,
    /// The first of them.
    first: u32,
    /// A field that is spelt almost alike.
    near: Option<String>,
}

impl IdField {
    fn new(name: &str) -> IdField {
        IdField { name: name.to_owned(), lines: 0, lacking: 0, first: 0, near: None }
    }

    fn field(&mut self, name: &str) {
        // A misspelt option is so for all lines: a few show what it was to be.
        const LINES: u64 = 100;
        if self.near.is_none() && self.lines < LINES && nearest(name, [self.name.as_str()]).is_some() {
            self.near = Some(name.to_owned());
        }
    }

    fn end_line(&mut self, number: u32, id: Option<&str>) {
        self.lines += 1;
        if id != Some(self.name.as_str()) {
            self.lacking += 1;
            if self.lacking == 1 {
                self.first = number;
            }
        }
    }

    fn warning(&self) -> Option<String> {
        const ELSE: &str = "ids are those of custom_id or id, or line-N";
        let IdField { name, lines, lacking, first, near } = self;
        if *lacking == 0 {
            return None;
        }
        Some(match near {
            Some(near) if lacking == lines => {
                format!("no line has the field {name} of --id-field; did you mean {near}?")
            }
            _ if lacking == lines => format!("no line has the field {name} of --id-field; {ELSE}"),
            _ => format!(
                "{lacking} of {lines} lines, from line {first} on, have no field {name} of --id-field; their {ELSE}"
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of lines with these fields, and with their id in one of them.
    fn seen(id_field: Option<&str>, lines: &[(&[&str], Option<&str>)]) -> Oddities {
        let mut oddities = Oddities::new(id_field);
        for (number, (fields, id)) in (1..).zip(lines) {
            fields.iter().for_each(|name| oddities.field(name));
            oddities.end_line(number, Some(*id));
        }
        oddities
    }

    #[test]
    fn an_id_field_that_is_not_there_is_said_once() {
        let said = |lines: &[(&[&str], Option<&str>)]| seen(Some("task_id"), lines).of_fields();
        let (has, lacks): ((&[&str], _), (&[&str], _)) = ((&["prompt"], Some("task_id")), (&["prompt"], Some("id")));
        assert_eq!(said(&[has, has]), [""; 0]);
        assert_eq!(said(&[]), [""; 0]);
        assert_eq!(
            said(&[lacks, lacks]),
            ["no line has the field task_id of --id-field; ids are those of custom_id or id, or line-N"]
        );
        assert_eq!(
            said(&[(&["prompt", "taskid"], None)]),
            ["no line has the field task_id of --id-field; did you mean taskid?"]
        );
        assert_eq!(
            said(&[has, lacks, (&["taskid"], None)]),
            ["2 of 3 lines, from line 2 on, have no field task_id of --id-field; their ids are those of custom_id or \
              id, or line-N"]
        );
        assert_eq!(seen(None, &[lacks]).of_fields(), [""; 0]);
    }

    #[test]
    fn an_option_that_no_line_heeds_is_said() {
        let plain: (&[&str], _) = (&["prompt"], None);
        let hot: (&[&str], _) = (&["prompt", "temperature"], None);
        let openai: (&[&str], _) = (&["url", "body"], None);
        let greedy = SamplingParams::default();
        let said = |lines: &[(&[&str], Option<&str>)], given: &[&'static str], sampling: &SamplingParams| {
            seen(None, lines).of_options(given, sampling)
        };
        let given = ["--top-k", "--stop", "--seed"];
        let warm = "give a --temperature above 0";
        let greedy_lines = said(&[plain, plain], &given, &greedy).unwrap();
        assert_eq!(
            greedy_lines,
            format!("--top-k and --seed have no effect at temperature 0, and no line has another; {warm}")
        );
        assert!(said(&[plain, openai], &given, &greedy).unwrap().starts_with("--top-k has no effect at temperature 0"));
        assert_eq!(said(&[plain, hot], &given, &greedy), None);
        assert_eq!(said(&[plain], &given, &SamplingParams { temperature: 1.0, ..greedy.clone() }), None);
        assert_eq!(said(&[plain], &["--stop"], &greedy), None);
        let bodies = said(&[openai, openai], &given, &greedy).unwrap();
        assert!(bodies.starts_with("--top-k and --stop have no effect: every line has a body"), "{bodies}");
        assert_eq!(said(&[openai], &["--seed"], &greedy), None);
        assert_eq!(said(&[], &given, &greedy), None);
    }
}
