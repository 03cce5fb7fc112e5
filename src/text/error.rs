//! What can go wrong between text and token ids.

use super::TokenId;
use crate::checkpoint::CheckpointError;

/// Why text could not become tokens, or tokens text. Each message is one line and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file of the model could not be read.
    #[error(transparent)]
    Source(#[from] CheckpointError),
    /// tokenizer.json could not be read as a tokenizer.
    #[error("{file}: not a tokenizer: {reason}; expected the tokenizer.json of a Hugging Face fast tokenizer")]
    InvalidTokenizer {
        /// The file.
        file: String,
        /// What the parser said.
        reason: String,
    },
    /// A JSON or Jinja file beside the tokenizer is malformed.
    #[error("{file}: {reason}")]
    InvalidFile {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A field of tokenizer_config.json or special_tokens_map.json has an unusable value.
    #[error("{file}: field `{field}`: found {found}, expected {expected}")]
    InvalidField {
        /// The file.
        file: String,
        /// The field's name.
        field: String,
        /// What stands there, shortened.
        found: String,
        /// What should.
        expected: &'static str,
    },
    /// A file says that a token has another id than it has, or an id that another token has.
    #[error(
        "{file}: token {token:?} is to have id {id}, but in {vocabulary} {other}; the two files belong to different \
         tokenizers: download both from the model's repository again"
    )]
    IdClash {
        /// The file that states the id.
        file: String,
        /// The token.
        token: String,
        /// Its id there.
        id: TokenId,
        /// The file of the vocabulary.
        vocabulary: String,
        /// What contradicts it, such as "it has id 7".
        other: String,
    },
    /// An id that no token has.
    #[error("token id {id} is not in the vocabulary; this tokenizer's ids are below {vocab_size}")]
    UnknownId {
        /// The id.
        id: TokenId,
        /// The tokenizer's vocabulary size.
        vocab_size: usize,
    },
    /// The tokenizer gave up on a text.
    #[error("the tokenizer cannot encode this text: {0}")]
    Encode(String),
    /// The tokenizer's decoder gave up on a list of ids.
    #[error("the tokenizer cannot decode these token ids: {0}")]
    Decode(String),
    /// Text that was to be taken literally contains something that the vocabulary writes as a special token only.
    #[error(
        "the text contains characters that this vocabulary can only write as the special token `{token}` (id {id}), \
         and special tokens are not allowed in it; remove those characters"
    )]
    SpecialFromText {
        /// The special token.
        token: String,
        /// Its id.
        id: TokenId,
    },
    /// A base model: no chat template anywhere.
    #[error(
        "{model}: has no chat template (neither chat_template.jinja nor `chat_template` in tokenizer_config.json): \
         it is a base model; use `rigel generate` or `rigel infill` with it, or an instruct model"
    )]
    NoChatTemplate {
        /// The model.
        model: String,
    },
    /// There are chat templates, and none is named "default".
    #[error(
        "{file}: none of the model's chat templates is named \"default\" (found {names}), so none can be chosen; give \
         one that name, or put it into chat_template.jinja"
    )]
    NoDefaultTemplate {
        /// The file or folder that holds them.
        file: String,
        /// Their names.
        names: String,
    },
    /// There is no memory for the stack that a chat template may need.
    #[error(
        "not enough memory for the chat template of {file}: its stack needs {mib} MiB of address space ({reason}); \
         allow the process more memory"
    )]
    TemplateMemory {
        /// The file that the template came from.
        file: String,
        /// The smallest stack that would do, in MiB.
        mib: usize,
        /// The system's answer.
        reason: String,
    },
    /// The chat template does not parse.
    #[error("{file}: the chat template does not parse: {reason}")]
    InvalidTemplate {
        /// The file that it came from.
        file: String,
        /// The parser's message, with the line.
        reason: String,
    },
    /// The chat template called `raise_exception`: it does not accept this conversation.
    #[error("the model's chat template refuses this conversation: {message}")]
    TemplateRefused {
        /// The template's own message.
        message: String,
    },
    /// The chat template failed while rendering.
    #[error("{file}: the chat template failed: {reason}")]
    TemplateFailed {
        /// The file that it came from.
        file: String,
        /// The engine's message, with the line.
        reason: String,
    },
    /// The tokenizer lacks a token of the infill format.
    #[error("the tokenizer has no `{token}` token: this model {lacks}; use a model trained for it, such as StarCoder2")]
    NoInfillToken {
        /// The missing token.
        token: &'static str,
        /// What the model was therefore not trained for.
        lacks: &'static str,
    },
    /// A file path with a line break cannot be written into the infill format, where a path is one line.
    #[error("file path {path:?}: contains a line break; the infill format gives a path one line; rename the file")]
    PathLineBreak {
        /// The path.
        path: String,
    },
    /// What an infill prompt needs besides code is more than there is room for.
    #[error(
        "the infill prompt needs {needed} tokens before any code, and there is room for {max_tokens}: shorten the \
         names and paths, or leave the prompt more room"
    )]
    InfillTooLong {
        /// Tokens of the format, of names and of paths.
        needed: usize,
        /// Tokens that the prompt may have.
        max_tokens: usize,
    },
    /// An empty stop string would stop before the first token.
    #[error("stop string {index} (counted from 0) is empty; remove it or give it at least one character")]
    EmptyStop {
        /// Which of the stop strings.
        index: usize,
    },
}
