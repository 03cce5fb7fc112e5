//! `rigel chat`: a conversation in a terminal, or from a pipe.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Stdin, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use rigel::engine::{Engine, EosTokens, Event, Failure, FinishReason, Generation};
use rigel::text::{AddGenerationPrompt, ChatMessage, ChatTemplate, SpecialTokens, TokenId};
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;

use super::error::CliError;
use super::input::utf8;
use super::lines::without_mark;
use super::load_bar::LoadBar;
use super::model_args::{Load, ModelArgs};
use super::output::Output;
use super::sampling_args::{DEFAULT_MAX_NEW_TOKENS, GenerationArgs, GenerationOptions};
use super::signals::{self, Signal, note};

const EXAMPLES: &str = "\
Examples:
  rigel chat
  rigel chat --model bigcode/starcoder2-15b-instruct-v0.1 -n 1024
  rigel chat --temperature 0.2 --top-p 0.95
  printf '%s\\n' 'Reverse a string.' 'Now in Rust.' | rigel chat --quiet";

const COMMANDS: &str = "\
/reset      forget the conversation
/save FILE  write it as JSON, a body for /v1/chat/completions
/help       these lines
/quit       leave; Ctrl-D does, too
\"\"\"         begins a message of several lines, and ends it
Ctrl-C      stops the answer";

/// Text that the headings of StarCoder2-Instruct's template begin with. A model that goes on after its answer writes
/// the next heading.
const HEADING: &str = "###";
const QUOTES: &str = "\"\"\"";

/// Talk with an instruct model
///
/// Each message goes through the model's chat template together with the conversation so far, and the answer is
/// printed as it comes; greedy unless a --temperature is given. Where the conversation outgrows the model's
/// positions, its oldest exchange is dropped. Needs an instruct model (nano is one).
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[command(after_long_help = format!("{EXAMPLES}\n\nIn the conversation:\n{}", indented(COMMANDS)))]
pub struct Chat {
    #[command(flatten)]
    model: ModelArgs,
    /// What the model is told before the conversation; StarCoder2-Instruct's template takes no such message
    #[arg(long, value_name = "TEXT", help_heading = "Input", allow_hyphen_values = true)]
    system: Option<String>,
    #[command(flatten)]
    generation: GenerationArgs,
    /// No bar while the model loads, no greeting
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,
}

fn indented(lines: &str) -> String {
    lines.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

impl Chat {
    pub fn run(self, out: &mut Output) -> Result<(), CliError> {
        let source = self.model.model.source()?;
        let options = self.generation.options(&source)?;
        let template = ChatTemplate::from_source(&source)?;
        let system = self.system.map(|text| ChatMessage::new("system", text));
        // What the template has to say about a system message is said before the model is loaded.
        let opening: Vec<ChatMessage> = system.iter().cloned().chain([ChatMessage::user("")]).collect();
        let headings = template.render(&opening, AddGenerationPrompt::Yes)?.contains(HEADING);
        let engine = self.model.engine(source, LoadBar::unless(self.quiet), Load::One)?;
        let end = if headings { engine.tokenizer()?.id(HEADING) } else { None };
        let name = self.model.model.name();
        let mut lines = Lines::stdin()?;
        let interrupts = Interrupts::catch(matches!(lines, Lines::Terminal(_)))?;
        if !self.quiet && matches!(lines, Lines::Terminal(_)) {
            note(&format!("{name}. /help lists what there is besides messages; Ctrl-D leaves."));
        }
        let mut chat =
            Conversation { engine, template, options, end, system, turns: Vec::new(), interrupts, failed: 0 };
        loop {
            match entry(&mut lines)? {
                Entry::End => return chat.verdict(&lines),
                Entry::Unreadable(error) => chat.fail(&error),
                Entry::Interrupted => note("Ctrl-D or /quit leaves"),
                Entry::Message(text) if text.trim().is_empty() => {}
                Entry::Message(text) => chat.say(text, out)?,
                Entry::Command(line) => match Command::parse(&line) {
                    Ok(Command::Quit) => return chat.verdict(&lines),
                    Ok(Command::Help) => out.line(COMMANDS)?,
                    Ok(Command::Reset) => {
                        chat.turns.clear();
                        note("the conversation is forgotten");
                    }
                    Ok(Command::Save(path)) => match chat.save(&name, Path::new(&path)) {
                        Ok(()) => note(&format!("saved to {path}")),
                        Err(error) => note(&format!("error: {path}: {error}")),
                    },
                    Err(message) => note(&format!("error: {message}")),
                },
            }
        }
    }
}

/// What a line that begins with a slash asks for.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Reset,
    Save(String),
    Help,
    Quit,
}

impl Command {
    fn parse(line: &str) -> Result<Command, String> {
        let (word, rest) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
        match (word, rest.trim()) {
            ("/reset", "") => Ok(Command::Reset),
            ("/help", "") => Ok(Command::Help),
            ("/quit" | "/exit", "") => Ok(Command::Quit),
            ("/save", "") => Err("/save needs the name of a file".to_owned()),
            ("/save", file) => Ok(Command::Save(file.to_owned())),
            ("/reset" | "/help" | "/quit" | "/exit", _) => Err(format!("{word} takes nothing after it")),
            _ => Err(format!(
                "{word} is no command; /help lists them, and a space before the slash makes the line a message"
            )),
        }
    }
}

/// The conversation so far, and what answers.
struct Conversation {
    engine: Engine,
    template: ChatTemplate,
    options: GenerationOptions,
    /// A token that ends an answer, beside the model's own.
    end: Option<TokenId>,
    system: Option<ChatMessage>,
    /// The user's and the assistant's, in turn.
    turns: Vec<ChatMessage>,
    interrupts: Interrupts,
    /// Messages that were not answered.
    failed: usize,
}

impl Conversation {
    /// Adds a message, and prints and adds the answer. A message that cannot be answered is taken back, and said so.
    fn say(&mut self, text: String, out: &mut Output) -> Result<(), CliError> {
        self.turns.push(ChatMessage::user(text));
        match self.answer(out) {
            Ok(answer) => self.turns.push(ChatMessage::new("assistant", answer)),
            // These end the program: nobody reads, or nobody answers.
            Err(error @ (CliError::StdoutClosed | CliError::Stdout(_))) => return Err(error),
            Err(error @ CliError::Failure(Failure::EngineStopped | Failure::Panicked { .. })) => return Err(error),
            Err(error) => {
                self.turns.pop();
                self.fail(&error);
            }
        }
        Ok(())
    }

    /// Says why a message is not answered.
    fn fail(&mut self, error: &CliError) {
        self.failed += 1;
        note(&format!("error: {}", error.line().unwrap_or_default()));
    }

    /// A program that pipes messages in learns from the exit code whether all were answered; a person has seen it.
    fn verdict(&self, lines: &Lines) -> Result<(), CliError> {
        match (lines, self.failed) {
            (Lines::Terminal(_), _) | (_, 0) => Ok(()),
            (_, 1) => Err(CliError::Failed("1 message was not answered".to_owned())),
            (_, failed) => Err(CliError::Failed(format!("{failed} messages were not answered"))),
        }
    }

    fn answer(&mut self, out: &mut Output) -> Result<String, CliError> {
        let (prompt, dropped) = self.prompt()?;
        let mut request = self.options.request(&self.engine, prompt)?;
        request.eos = EosTokens::Chat;
        request.stop_token_ids.extend(self.end);
        let mut generation = self.engine.generate(request)?;
        self.interrupts.begin();
        self.drop_exchanges(dropped);
        let mut answer = Answer::default();
        let reason = loop {
            match next_event(&mut generation, &self.interrupts) {
                None => break None,
                Some(Event::Token(token)) => out.text(&answer.push(&token.text))?,
                Some(Event::Finished(finish)) => {
                    out.text(&answer.push(&finish.text))?;
                    break Some(finish.reason);
                }
                Some(Event::Failed(failure)) => {
                    self.interrupts.end();
                    out.text("\n")?;
                    return Err(failure.into());
                }
                Some(_) => {}
            }
        };
        self.interrupts.end();
        out.text("\n")?;
        match reason {
            None => note("stopped"),
            Some(FinishReason::Length) => {
                let limit = self.options.max_new_tokens.unwrap_or(DEFAULT_MAX_NEW_TOKENS);
                note(&format!("the answer was cut at --max-new-tokens {limit}, or at the model's last position"));
            }
            Some(_) => {}
        }
        Ok(answer.printed)
    }

    /// The conversation as the template writes it, without as many of the oldest exchanges as leave no room; and how
    /// many those are.
    fn prompt(&self) -> Result<(Vec<TokenId>, usize), CliError> {
        let positions = self.engine.spec().max_positions;
        // An answer shrinks to what is left: history is worth more than the last of many tokens asked for.
        let wanted = self.options.max_new_tokens.unwrap_or(DEFAULT_MAX_NEW_TOKENS) as usize;
        let wanted = wanted.min(positions / 4);
        let mut dropped = 0;
        loop {
            let turns = &self.turns[2 * dropped..];
            let messages: Vec<ChatMessage> = self.system.iter().chain(turns).cloned().collect();
            let text = self.template.render(&messages, AddGenerationPrompt::Yes)?;
            let prompt = self.engine.tokenizer()?.encode(&text, SpecialTokens::Parse)?;
            if prompt.len() + wanted <= positions || turns.len() < 3 {
                return Ok((prompt, dropped));
            }
            dropped += 1;
        }
    }

    /// Forgets the oldest exchanges, for good.
    fn drop_exchanges(&mut self, count: usize) {
        self.turns.drain(..2 * count);
        let positions = self.engine.spec().max_positions;
        match count {
            0 => {}
            1 => note(&format!("the first exchange was dropped: the model has {positions} positions")),
            _ => note(&format!("the first {count} exchanges were dropped: the model has {positions} positions")),
        }
    }

    /// Writes a new file.
    fn save(&self, model: &str, path: &Path) -> std::io::Result<()> {
        let messages: Vec<&ChatMessage> = self.system.iter().chain(&self.turns).collect();
        let body = serde_json::json!({"model": model, "messages": messages});
        let mut file = File::create_new(path)?;
        writeln!(file, "{body:#}")
    }
}

/// An answer on its way: white space is held back until something follows it, so that none is at the end.
#[derive(Debug, Default)]
struct Answer {
    printed: String,
    held: String,
}

impl Answer {
    /// What can be printed now.
    fn push(&mut self, text: &str) -> String {
        self.held.push_str(text);
        let end = self.held.trim_end().len();
        let rest = self.held.split_off(end);
        let text = std::mem::replace(&mut self.held, rest);
        self.printed.push_str(&text);
        text
    }
}

/// Ctrl-C: during an answer it ends the answer, else what a terminal makes of it. SIGTERM and SIGHUP end the program.
struct Interrupts {
    answering: Arc<AtomicBool>,
    interrupted: Arc<AtomicBool>,
}

impl Interrupts {
    fn catch(terminal: bool) -> Result<Interrupts, CliError> {
        let (answering, interrupted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let interrupts = Interrupts { answering: answering.clone(), interrupted: interrupted.clone() };
        signals::on_signal(move |signal, _| {
            if signal != Signal::Interrupt {
                signal.exit();
            } else if answering.load(Ordering::SeqCst) {
                interrupted.store(true, Ordering::SeqCst);
            } else if !terminal {
                signal.exit();
            }
        })?;
        Ok(interrupts)
    }

    fn begin(&self) {
        self.interrupted.store(false, Ordering::SeqCst);
        self.answering.store(true, Ordering::SeqCst);
    }

    fn end(&self) {
        self.answering.store(false, Ordering::SeqCst);
    }
}

/// The next event. `None` at the end, and once Ctrl-C was pressed, which is noticed while a long prompt is computed,
/// too.
fn next_event(generation: &mut Generation, interrupts: &Interrupts) -> Option<Event> {
    const LOOK_EVERY: Duration = Duration::from_millis(50);
    while !generation.is_done() && !interrupts.interrupted.load(Ordering::SeqCst) {
        if let Some(event) = generation.next_within(LOOK_EVERY) {
            return Some(event);
        }
    }
    None
}

/// Where lines come from.
enum Lines {
    Terminal(Box<rustyline::Editor<(), MemHistory>>),
    /// A pipe, and how many lines of it were read.
    Pipe(BufReader<Stdin>, usize),
}

/// A line, without its break.
enum Typed {
    Line(String),
    /// Bytes that are no text.
    Unreadable(CliError),
    Interrupted,
    End,
}

impl Lines {
    fn stdin() -> Result<Lines, CliError> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(Lines::Pipe(BufReader::new(stdin), 0));
        }
        let config = rustyline::Config::builder().auto_add_history(true).build();
        let editor = rustyline::Editor::with_history(config, MemHistory::new());
        Ok(Lines::Terminal(Box::new(editor.map_err(|error| CliError::Failed(format!("the terminal: {error}")))?)))
    }

    fn next(&mut self, prompt: &str) -> Result<Typed, CliError> {
        let error = |source| CliError::Read { origin: "stdin".to_owned(), source };
        match self {
            Lines::Terminal(editor) => match editor.readline(prompt) {
                Ok(line) => Ok(Typed::Line(line)),
                Err(ReadlineError::Interrupted) => Ok(Typed::Interrupted),
                Err(ReadlineError::Eof) => Ok(Typed::End),
                Err(ReadlineError::Io(source)) => Err(error(source)),
                Err(other) => Err(CliError::Failed(format!("the terminal: {other}"))),
            },
            Lines::Pipe(reader, count) => {
                let mut line = Vec::new();
                if reader.read_until(b'\n', &mut line).map_err(error)? == 0 {
                    return Ok(Typed::End);
                }
                *count += 1;
                let line = if *count == 1 { without_mark(&line) } else { &line };
                let line = line.strip_suffix(b"\n").unwrap_or(line);
                let line = line.strip_suffix(b"\r").unwrap_or(line).to_vec();
                Ok(utf8(line, &format!("stdin:{count}")).map_or_else(Typed::Unreadable, Typed::Line))
            }
        }
    }
}

/// What was typed.
#[derive(Debug)]
enum Entry {
    Message(String),
    /// A message, part of which is no text.
    Unreadable(CliError),
    Command(String),
    Interrupted,
    End,
}

/// The next line, or the lines between two `"""`.
fn entry(lines: &mut Lines) -> Result<Entry, CliError> {
    read_entry(|prompt| lines.next(prompt))
}

fn read_entry(mut next: impl FnMut(&str) -> Result<Typed, CliError>) -> Result<Entry, CliError> {
    let line = match next("> ")? {
        Typed::End => return Ok(Entry::End),
        Typed::Interrupted => return Ok(Entry::Interrupted),
        Typed::Unreadable(error) => return Ok(Entry::Unreadable(error)),
        Typed::Line(line) => line,
    };
    let Some(first) = line.strip_prefix(QUOTES) else {
        return Ok(if line.starts_with('/') { Entry::Command(line) } else { Entry::Message(line) });
    };
    let mut text = first.to_owned();
    // The lines up to the end are of this message, whatever is wrong with one of them.
    let mut unreadable = None;
    let message = |text: &str, unreadable: Option<CliError>| {
        unreadable.map_or_else(|| Entry::Message(text.strip_prefix('\n').unwrap_or(text).to_owned()), Entry::Unreadable)
    };
    loop {
        if let Some(whole) = text.strip_suffix(QUOTES) {
            return Ok(message(whole.strip_suffix('\n').unwrap_or(whole), unreadable));
        }
        match next(". ")? {
            Typed::Interrupted => return Ok(Entry::Interrupted),
            // What a pipe leaves open is a message, too.
            Typed::End => return Ok(message(&text, unreadable)),
            Typed::Unreadable(error) => unreadable = unreadable.or(Some(error)),
            Typed::Line(line) => {
                text.push('\n');
                text.push_str(&line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What lines are: `message …`, `command …`, or `error …`. The line `\xff` is no text.
    fn entries(lines: &[&str]) -> Vec<String> {
        let mut lines = lines.iter();
        let mut next = |_: &str| {
            Ok(match lines.next() {
                None => Typed::End,
                Some(&"\\xff") => Typed::Unreadable(utf8(b"\xff".to_vec(), "stdin").unwrap_err()),
                Some(line) => Typed::Line((*line).to_owned()),
            })
        };
        let mut found = Vec::new();
        loop {
            match read_entry(&mut next).unwrap() {
                Entry::End => return found,
                Entry::Message(text) => found.push(message(&text)),
                Entry::Command(line) => found.push(format!("command {line}")),
                Entry::Unreadable(error) => found.push(format!("error {error}")),
                Entry::Interrupted => unreachable!("nobody interrupts"),
            }
        }
    }

    fn message(text: &str) -> String {
        format!("message {text}")
    }

    #[test]
    fn what_is_no_text_is_a_message_that_fails() {
        let error = "error stdin: byte 0 is not valid UTF-8; give UTF-8 text, or token ids";
        assert_eq!(entries(&["a", "\\xff", "b"]), [message("a"), error.to_owned(), message("b")]);
        assert_eq!(entries(&["\"\"\"a", "\\xff", "b\"\"\"", "c"]), [error.to_owned(), message("c")]);
    }

    #[test]
    fn lines_are_messages_and_commands() {
        let command = |line: &str| format!("command {line}");
        assert_eq!(
            entries(&["hi", "", "/reset", " /etc", "/save a b"]),
            [message("hi"), message(""), command("/reset"), message(" /etc"), command("/save a b")]
        );
    }

    #[test]
    fn quotes_hold_several_lines() {
        assert_eq!(entries(&["\"\"\"a", "/b", "c\"\"\"", "d"]), [message("a\n/b\nc"), message("d")]);
        assert_eq!(entries(&["\"\"\"", "a", "", "b", "\"\"\""]), [message("a\n\nb")]);
        assert_eq!(entries(&["\"\"\"one\"\"\""]), [message("one")]);
        assert_eq!(entries(&["\"\"\"", "left open"]), [message("left open")]);
    }

    #[test]
    fn commands_are_exact() {
        assert_eq!(Command::parse("/save  my file.json "), Ok(Command::Save("my file.json".into())));
        assert_eq!(Command::parse("/quit"), Ok(Command::Quit));
        assert!(Command::parse("/save").unwrap_err().contains("name of a file"));
        assert!(Command::parse("/reset now").unwrap_err().contains("takes nothing"));
        assert!(Command::parse("/resets").unwrap_err().starts_with("/resets is no command"));
    }

    #[test]
    fn white_space_waits_for_what_follows() {
        let mut answer = Answer::default();
        let printed: Vec<String> =
            ["a ", " b\n", "", "\n\n", "c", " \n"].iter().map(|text| answer.push(text)).collect();
        assert_eq!(printed, ["a", "  b", "", "", "\n\n\nc", ""]);
        assert_eq!(answer.printed, "a  b\n\n\nc");
    }
}
