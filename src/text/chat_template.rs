//! A model's chat template: messages to prompt text, as transformers' `apply_chat_template(tokenize=False)`. Knows
//! nothing of token ids; encode the text with [`SpecialTokens::Parse`](super::SpecialTokens::Parse).
//!
//! The Jinja settings are those of transformers' `_compile_jinja_template`: an immutable sandbox with `trim_blocks`
//! and `lstrip_blocks`, no trailing newline kept, no HTML escapes, the loop controls, the functions
//! `raise_exception` and `strftime_now`, its own `tojson`, Python's methods on strings, lists and dicts.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, State, Value};
use serde::{Deserialize, Serialize};

use super::config::{DEFAULT_TEMPLATE, TOKENIZER_CONFIG};
use super::{TextError, TokenizerConfig, python_json};
use crate::checkpoint::ModelSource;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Who speaks: `user`, `assistant`, `system`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl ChatMessage {
    /// A turn of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }

    /// A user's turn.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    fn to_value(&self) -> Value {
        Value::from_pairs([("role", self.role.as_str()), ("content", self.content.as_str())])
    }
}

/// Whether the prompt shall end with the header of the assistant's next turn. StarCoder2-Instruct's template writes
/// it in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddGenerationPrompt {
    /// `add_generation_prompt=True`.
    Yes,
    /// `add_generation_prompt=False`.
    No,
}

/// Work that one rendering may do: instructions, or 64 bytes of text each (minijinja's fuel). A conversation that fills
/// StarCoder2's 16,384 positions takes some ten thousand; a template that loops for ever is stopped within a second
/// and 64 MB. Not covered is the comparison (`==`) or concatenation (`~`) of lists that contain one another so often
/// that their expansion is exponential: minijinja does not charge for those.
const FUEL: u64 = 1_000_000;

/// Blocks, macro calls and expressions inside one another.
const RECURSION_LIMIT: usize = 200;

/// Longest template, in bytes; published ones reach a tenth of it.
const MAX_SOURCE: usize = 128 << 10;

/// Address space for the stack of the thread that renders, in bytes; only what is used becomes memory. Dropping lists
/// nested as deeply as [`FUEL`] allows takes most of it.
const STACK: usize = 512 << 20;

/// Where a limit on address space leaves no [`STACK`], a rendering gets less of it, and as much less fuel.
const MIN_STACK: usize = 32 << 20;

/// The stack for compiling a template of so many bytes: minijinja's parser recurses along chains such as `1+1+1…`, and
/// takes up to 4 KiB a byte of them.
fn stack_to_compile(source: usize) -> usize {
    (4 << 20) + 4096 * source
}

/// A compiled chat template. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    /// `bos_token` and its like.
    variables: BTreeMap<String, Value>,
    origin: String,
}

impl ChatTemplate {
    /// The chat template of a model, as transformers finds it: chat_template.jinja, else
    /// additional_chat_templates/default.jinja, else `chat_template` in tokenizer_config.json.
    ///
    /// # Errors
    /// [`TextError::NoChatTemplate`] for a base model, [`TextError::Source`] if a file cannot be read, those of
    /// [`from_files`](Self::from_files).
    pub fn from_source(source: &ModelSource) -> Result<Self, TextError> {
        const FILE: &str = "chat_template.jinja";
        const FOLDER: &str = "additional_chat_templates";
        let mut file = FILE.to_owned();
        let mut jinja = source.read(&file)?;
        if jinja.is_none() {
            file = format!("{FOLDER}/{DEFAULT_TEMPLATE}.jinja");
            jinja = source.read(&file)?;
        }
        let origin = source.describe(&file);
        let template = Self::from_files(
            jinja.as_deref().map(|bytes| (bytes, origin.as_str())),
            &TokenizerConfig::from_source(source)?,
            &source.describe(TOKENIZER_CONFIG),
            &source.to_string(),
        );
        match template {
            Err(TextError::NoChatTemplate { model }) => {
                // A model with other templates only is no base model.
                let names = source.names_in(FOLDER);
                let names: Vec<_> = names.iter().filter_map(|name| name.strip_suffix(".jinja")).collect();
                if names.is_empty() {
                    return Err(TextError::NoChatTemplate { model });
                }
                let names = names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
                Err(TextError::NoDefaultTemplate { file: source.describe(FOLDER), names })
            }
            template => template,
        }
    }

    /// Compiles a template whose variables are the special tokens of `config`. `origin` names its file in errors.
    ///
    /// # Errors
    /// [`TextError::InvalidTemplate`] if it does not parse, or is longer than 128 KiB; [`TextError::TemplateMemory`] if
    /// there is no memory for the parser's stack.
    pub fn new(template: &str, config: &TokenizerConfig, origin: &str) -> Result<Self, TextError> {
        let invalid = |reason: String| TextError::InvalidTemplate { file: origin.to_owned(), reason };
        if template.len() > MAX_SOURCE {
            return Err(invalid(format!("found {} bytes, expected at most {MAX_SOURCE}", template.len())));
        }
        let source = accept_generation_tags(&unix_newlines(template)).into_owned();
        let compile = || {
            let mut environment = environment();
            environment.add_template_owned(NAME, source).map_err(|e| one_line(&e)).map(|()| environment)
        };
        let environment = match on_a_deep_stack(stack_to_compile(template.len()), compile) {
            Ok(compiled) => compiled.map_err(invalid)?,
            Err(NoResult::NoStack { mib, reason }) => {
                return Err(TextError::TemplateMemory { file: origin.to_owned(), mib, reason });
            }
            Err(NoResult::Panicked) => return Err(invalid(PANICKED.to_owned())),
        };
        let mut variables: BTreeMap<String, Value> =
            config.specials().into_iter().map(|(field, text)| (field, Value::from(text))).collect();
        let additional = config.additional_special_tokens();
        if !additional.is_empty() {
            let tokens = additional.into_iter().map(Value::from).collect();
            variables.insert("additional_special_tokens".to_owned(), tokens);
        }
        Ok(Self { environment: Arc::new(environment), variables, origin: origin.to_owned() })
    }

    /// The template of `tokenizer_config`, or of a chat_template.jinja beside it, which wins: (text, origin).
    ///
    /// # Errors
    /// [`TextError::NoChatTemplate`] naming `model` if neither has one; [`TextError::InvalidFile`] if the file is not
    /// UTF-8; those of [`TokenizerConfig::chat_template`] and of [`new`](Self::new).
    pub fn from_files(
        chat_template_jinja: Option<(&[u8], &str)>,
        config: &TokenizerConfig,
        config_origin: &str,
        model: &str,
    ) -> Result<Self, TextError> {
        if let Some((bytes, origin)) = chat_template_jinja {
            let template = std::str::from_utf8(bytes)
                .map_err(|e| TextError::InvalidFile { file: origin.to_owned(), reason: e.to_string() })?;
            return Self::new(template, config, origin);
        }
        match config.chat_template()? {
            Some(template) => Self::new(template, config, config_origin),
            None => Err(TextError::NoChatTemplate { model: model.to_owned() }),
        }
    }

    /// The prompt for this conversation. It holds special tokens in their text form.
    ///
    /// # Errors
    /// [`TextError::TemplateRefused`] with the template's message if it calls `raise_exception` (StarCoder2-Instruct's
    /// does for any system message); [`TextError::TemplateFailed`] for any other error in it, and when it exceeds the
    /// limits on work; [`TextError::TemplateMemory`] if there is no memory for its stack.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: AddGenerationPrompt,
    ) -> Result<String, TextError> {
        let mut context = self.variables.clone();
        context.insert("messages".to_owned(), messages.iter().map(ChatMessage::to_value).collect());
        context.insert("tools".to_owned(), Value::from(()));
        context.insert("documents".to_owned(), Value::from(()));
        let add = add_generation_prompt == AddGenerationPrompt::Yes;
        context.insert("add_generation_prompt".to_owned(), Value::from(add));
        let mut stack = STACK;
        loop {
            let mut environment = self.environment.clone();
            let environment = Arc::make_mut(&mut environment);
            environment.set_fuel(Some(FUEL / (STACK / stack) as u64));
            let render = || {
                let rendered = environment.get_template(NAME).and_then(|t| t.render(&context));
                rendered.map_err(|error| match refusal(&error) {
                    Some(message) => TextError::TemplateRefused { message },
                    None => self.failed(one_line(&error)),
                })
            };
            match on_a_deep_stack(stack, render) {
                Ok(rendered) => return rendered,
                Err(NoResult::Panicked) => return Err(self.failed(PANICKED.to_owned())),
                Err(NoResult::NoStack { .. }) if stack > MIN_STACK => stack /= 4,
                Err(NoResult::NoStack { mib, reason }) => {
                    return Err(TextError::TemplateMemory { file: self.origin.clone(), mib, reason });
                }
            }
        }
    }

    fn failed(&self, reason: String) -> TextError {
        TextError::TemplateFailed { file: self.origin.clone(), reason }
    }
}

/// Why work on a deep stack has no result.
enum NoResult {
    NoStack { mib: usize, reason: String },
    Panicked,
}

const PANICKED: &str = "the template engine panicked; simplify the template";

/// Runs `work` on a thread with a stack of so many bytes.
fn on_a_deep_stack<T: Send>(stack: usize, work: impl FnOnce() -> T + Send) -> Result<T, NoResult> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat template".to_owned()).stack_size(stack);
        let no_stack = |e: std::io::Error| NoResult::NoStack { mib: stack >> 20, reason: e.to_string() };
        thread.spawn_scoped(scope, work).map_err(no_stack)?.join().map_err(|_| NoResult::Panicked)
    })
}

/// The name of the one template in its environment; its lack of an extension keeps HTML escapes off.
const NAME: &str = "chat_template";

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.unwrap_or_default()); // fails for clashing delimiters only; these are the defaults
    environment.set_unknown_method_callback(python_method);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", python_json::tojson);
    environment.set_formatter(|out, state, value| {
        pay_for_printing(state, value, 0)?;
        minijinja::escape_formatter(out, state, value)
    });
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION_LIMIT);
    environment
}

/// Python's methods on strings, lists and dicts. `str.format` alone may pad to any width without paying for it.
fn python_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    const MAX_DIGITS: usize = 4;
    let digits = |text: &str| text.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
    if method == "format" && value.as_str().is_some_and(|text| digits(text) > MAX_DIGITS) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "str.format: a number of more than 4 digits in the format",
        ));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// Charges fuel for each item that printing `value` visits. The engine charges for what was printed, which is too
/// late for a list that contains itself twice over ninety levels.
fn pay_for_printing(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
    const MAX_K: usize = 100;
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map) {
        return Ok(());
    }
    if depth > MAX_K {
        let message = format!("more than {MAX_K} containers inside one another cannot be printed");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    for item in value.try_iter()? {
        state.consume_fuel(1)?;
        if value.kind() == ValueKind::Map {
            pay_for_printing(state, &value.get_item(&item)?, depth + 1)?;
        }
        pay_for_printing(state, &item, depth + 1)?;
    }
    Ok(())
}

/// The message of a template's `raise_exception`, as the source of the engine's error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception was called").with_source(Refusal(message)))
}

/// `datetime.now().strftime(format)`: local time, where the machine tells its zone.
fn strftime_now(format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now())
        .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?})")).with_source(e))
}

fn refusal(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let chain = std::iter::successors(Some(error), |e| (*e).source());
    chain.filter_map(|e| e.downcast_ref::<Refusal>()).map(|r| r.0.clone()).next()
}

/// The engine's message with its causes, on one line.
fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |e| (*e).source());
    let messages: Vec<String> = chain.map(|e| e.to_string().replace(['\n', '\r'], " ")).collect();
    messages.join(": ")
}

/// Jinja2 reads every kind of line break as `\n`; minijinja keeps them.
fn unix_newlines(template: &str) -> String {
    template.replace("\r\n", "\n").replace('\r', "\n")
}

/// Makes transformers' `{% generation %}…{% endgeneration %}`, which only marks what training shall learn, into a
/// block that is always rendered: `{% if true %}…{% endif %}`.
fn accept_generation_tags(template: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut copied = 0;
    for (open, _) in template.match_indices("{%") {
        let tag = &template[open + 2..];
        let Some((body, _)) = tag.split_once("%}") else { break };
        let word = body.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let replacement = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        out.push_str(&template[copied..open + 2]);
        out.push_str(&body.replace(word, replacement));
        copied = open + 2 + body.len();
    }
    if copied == 0 {
        return Cow::Borrowed(template);
    }
    out.push_str(&template[copied..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use AddGenerationPrompt::{No, Yes};

    /// bigcode-project/starcoder2-self-align `src/star_align/prompt_template.py` (reference §3.1).
    const INSTRUCT: &str = include_str!("../../tests/data/starcoder2_instruct_template.jinja");

    const CONFIG: &str = r#"{"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>"}}"#;

    fn config() -> TokenizerConfig {
        TokenizerConfig::from_bytes(Some((CONFIG.as_bytes(), "c")), None).expect("well formed")
    }

    fn render(template: &str, messages: &[ChatMessage]) -> Result<String, TextError> {
        ChatTemplate::new(template, &config(), "dir/chat_template.jinja")?.render(messages, Yes)
    }

    const SYSTEM: &str = "<|endoftext|>You are an exceptionally intelligent coding assistant that consistently delivers \
                          accurate and reliable responses to user instructions.\n\n";

    #[test]
    fn the_instruct_template_renders_exactly() {
        let template = ChatTemplate::new(INSTRUCT, &config(), "t").expect("parses");
        let one = [ChatMessage::user("Write {{ code }}.")];
        let expected = format!("{SYSTEM}### Instruction\nWrite {{{{ code }}}}.\n\n### Response\n");
        for add in [Yes, No] {
            assert_eq!(template.render(&one, add).expect("renders"), expected);
        }
        let three = [ChatMessage::user("a"), ChatMessage::new("assistant", "b\n"), ChatMessage::user("c")];
        let expected = format!(
            "{SYSTEM}### Instruction\na\n\n### Response\nb\n<|endoftext|>\n\n### Instruction\nc\n\n### Response\n"
        );
        assert_eq!(template.render(&three, Yes).expect("renders"), expected);
        assert_eq!(template.render(&[], Yes).expect("renders"), format!("{SYSTEM}### Response\n"));
    }

    #[test]
    fn a_refusal_is_the_templates_own_words() {
        let error = render(INSTRUCT, &[ChatMessage::new("system", "s"), ChatMessage::user("u")]).expect_err("refuses");
        assert!(matches!(&error, TextError::TemplateRefused { message }
            if message == "System messages are not allowed in this template."));
        // Through a macro as well.
        let nested =
            "{% macro m() %}{{ raise_exception('no ' ~ 'way') }}{% endmacro %}{% if true %}{{ m() }}{% endif %}";
        let error = render(nested, &[]).expect_err("refuses");
        assert!(matches!(&error, TextError::TemplateRefused { message } if message == "no way"), "{error}");
    }

    /// Expected texts printed by jinja2 3.1.6 with transformers' settings: tools/chat_template_goldens.py.
    #[test]
    fn constructs_of_published_templates_render_as_in_jinja2() {
        let goldens: Vec<Golden> =
            serde_json::from_str(include_str!("../../tests/data/chat_template_goldens.json")).expect("well formed");
        assert!(goldens.len() > 10);
        for golden in goldens {
            let template = ChatTemplate::new(&golden.template, &config(), "t").expect("parses");
            let add = if golden.add_generation_prompt { Yes } else { No };
            let rendered = template.render(&golden.messages, add).expect(&golden.template);
            assert_eq!(rendered, golden.rendered, "{}", golden.template);
        }
    }

    #[derive(Deserialize)]
    struct Golden {
        template: String,
        messages: Vec<ChatMessage>,
        add_generation_prompt: bool,
        rendered: String,
    }

    #[test]
    fn errors_are_one_line_with_file_and_line() {
        let error = ChatTemplate::new("a\n{% for %}", &config(), "dir/chat_template.jinja").expect_err("syntax");
        let message = error.to_string();
        assert!(message.starts_with("dir/chat_template.jinja: the chat template does not parse: "), "{message}");
        assert!(message.contains("chat_template:2") && !message.contains('\n'), "{message}");
        let message = render("a\n{{ messages[0]['x']['y'] }}", &[]).expect_err("undefined").to_string();
        assert!(message.starts_with("dir/chat_template.jinja: the chat template failed: "), "{message}");
        assert!(message.contains("chat_template:2") && !message.contains('\n'), "{message}");
    }

    #[test]
    fn runaway_templates_are_stopped() {
        for template in [
            "{% for i in range(9999) %}{% for j in range(9999) %}{% for k in range(9999) %}x{% endfor %}{% endfor %}{% endfor %}",
            "{% set ns = namespace(s='ab') %}{% for i in range(9999) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "{{ 'x' * 99999999999 }}",
            "{{ '{:>9999999999}'.format('x') }}",
            "{% set ns = namespace(s=[1]) %}{% for i in range(9999) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s|tojson }}",
            "{% set ns = namespace(s=[1]) %}{% for i in range(90) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s|tojson }}",
            "{% set ns = namespace(s=[1]) %}{% for i in range(90) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
            "{% set ns = namespace(s=[1]) %}{% for i in range(9999) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s }}",
            "{% set ns = namespace(s=[1]) %}{% for i in range(9999) %}{% for j in range(9999) %}{% set ns.s = [ns.s] %}{% endfor %}{% endfor %}",
        ] {
            let error = render(template, &[]).expect_err(template);
            assert!(matches!(error, TextError::TemplateFailed { .. }), "{template}: {error}");
        }
        let chain = |link: &str| format!("{{{{ 1{} }}}}", link.repeat((MAX_SOURCE - 20) / link.len()));
        for template in [chain("("), chain("-"), chain("+1"), chain("|trim"), chain(" if 1 else 1"), chain("[0]")] {
            // Whatever comes out: it comes back.
            let _ = render(&template, &[]);
        }
        let not = format!("{{{{ {}1 }}}}", "not ".repeat((MAX_SOURCE - 20) / 4));
        let _ = render(&not, &[]);
        let error = render(&"x".repeat(MAX_SOURCE + 1), &[]).expect_err("too long");
        assert!(matches!(error, TextError::InvalidTemplate { .. }), "{error}");
    }

    /// Less stack than is asked for, as under a limit on address space.
    #[test]
    fn a_stack_that_cannot_be_had_is_said() {
        let huge = usize::MAX / 2;
        let error = on_a_deep_stack(huge, || ());
        assert!(matches!(error, Err(NoResult::NoStack { mib, .. }) if mib == huge >> 20));
        assert!(stack_to_compile(INSTRUCT.len()) < 16 << 20 && stack_to_compile(MAX_SOURCE) > STACK);
    }

    #[test]
    fn special_tokens_that_are_not_set_are_undefined() {
        assert_eq!(
            render("[{{ pad_token }}{{ bos_token }}{{ pad_token is defined }}]", &[]).expect("renders"),
            "[<|endoftext|>False]"
        );
    }

    #[test]
    fn the_date_is_todays() {
        let rendered = render("{{ strftime_now('%d %b %Y') }}", &[]).expect("renders");
        let parts: Vec<&str> = rendered.split(' ').collect();
        assert!(matches!(parts[..], [day, month, year] if day.len() == 2 && month.len() == 3 && year.len() == 4));
        assert!(matches!(render("{{ strftime_now('%') }}", &[]), Err(TextError::TemplateFailed { .. })));
    }

    #[test]
    fn the_file_wins_over_the_config() {
        let json = br#"{"chat_template": "from config"}"#;
        let both = TokenizerConfig::from_bytes(Some((json, "c")), None).expect("well formed");
        let render = |file: Option<&str>, config: &TokenizerConfig| {
            let file = file.map(|text| (text.as_bytes(), "dir/chat_template.jinja"));
            ChatTemplate::from_files(file, config, "dir/tokenizer_config.json", "dir").and_then(|t| t.render(&[], Yes))
        };
        assert_eq!(render(Some("from file"), &both).expect("renders"), "from file");
        assert_eq!(render(None, &both).expect("renders"), "from config");
        assert_eq!(render(Some("from file"), &config()).expect("renders"), "from file");
        let message = render(None, &config()).expect_err("a base model").to_string();
        assert!(message.starts_with("dir: has no chat template") && message.contains("rigel generate"), "{message}");
    }
}
