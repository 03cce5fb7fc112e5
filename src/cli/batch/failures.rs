//! Lines that failed, counted by their codes for the last line of a run.

/// The failures recorded in the errors file, including those of earlier runs.
#[derive(Debug, Default)]
pub struct Failures {
    /// In the order in which the codes were seen.
    codes: Vec<Code>,
}

#[derive(Debug)]
struct Code {
    name: String,
    count: u64,
    /// The first line in the file, and what is wrong with it.
    line: u32,
    message: String,
}

/// The code of lines that may succeed as they are.
const MAY_SUCCEED: &str = "server_error";

impl Failures {
    pub fn add(&mut self, name: &str, line: u32, message: &str) {
        match self.codes.iter_mut().find(|code| code.name == name) {
            Some(code) => {
                code.count += 1;
                if line < code.line {
                    (code.line, code.message) = (line, message.to_owned());
                }
            }
            None => self.codes.push(Code { name: name.to_owned(), count: 1, line, message: message.to_owned() }),
        }
    }

    pub fn count(&self) -> u64 {
        self.codes.iter().map(|code| code.count).sum()
    }

    /// `17 failed: 8 invalid_json (line 5: …), 9 server_error (line 7: …)`.
    pub fn summary(&self) -> String {
        let of_code =
            |Code { name, count, line, message }: &Code| format!("{count} {name} (line {line}: {})", cut(message));
        let codes: Vec<String> = self.codes.iter().map(of_code).collect();
        format!("{} failed: {}", self.count(), codes.join(", "))
    }

    /// What can be done: nothing but correct the lines, where they fail as they are.
    pub fn advice(&self) -> &'static str {
        let may_succeed = |code: &Code| code.name == MAY_SUCCEED;
        match (self.codes.iter().any(may_succeed), self.codes.iter().all(may_succeed)) {
            (_, true) => "--retry-failed does them again",
            (false, _) if self.count() == 1 => "correct the line and give --retry-failed to do it again",
            (true, _) => "--retry-failed does them again; all but those of server_error have to be corrected first",
            (false, _) => "correct these lines and give --retry-failed to do them again",
        }
    }
}

/// The beginning of a message that would fill the screen.
fn cut(message: &str) -> String {
    const LIMIT: usize = 160;
    match message.char_indices().nth(LIMIT) {
        None => message.to_owned(),
        Some((end, _)) => format!("{}…", &message[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_its_first_line() {
        let mut failures = Failures::default();
        failures.add("invalid_json", 9, "late");
        failures.add("server_error", 7, "the device is gone");
        failures.add("invalid_json", 5, "early");
        failures.add("invalid_json", 6, &"x".repeat(500));
        assert_eq!(
            failures.summary(),
            "4 failed: 3 invalid_json (line 5: early), 1 server_error (line 7: the device is gone)"
        );
        assert!(failures.advice().contains("all but those of server_error"), "{}", failures.advice());
    }

    #[test]
    fn a_retry_is_offered_where_it_may_succeed() {
        let mut failures = Failures::default();
        failures.add("server_error", 7, "x");
        assert_eq!(failures.advice(), "--retry-failed does them again");
        let mut failures = Failures::default();
        failures.add("invalid_line", 7, "x");
        assert!(failures.advice().starts_with("correct the line and"));
        failures.add("invalid_line", 8, "x");
        assert!(failures.advice().starts_with("correct these lines and"));
    }
}
