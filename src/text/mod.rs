//! Tokens and text: tokenizer, chat template, infill, incremental detokenizer, stop strings. Knows nothing of
//! weights or devices.
//!
//! | what | where |
//! |---|---|
//! | text ⇄ ids | [`Tokenizer`] |
//! | ids → text, one at a time | [`Detokenizer`] |
//! | ids → text, up to a stop string | [`TextStream`] |
//! | a name for each token | [`TokenNames`] |
//! | a conversation → prompt text | [`ChatTemplate`] |
//! | code around a gap → prompt ids, all of them or as many as fit | [`Infill`] |
//! | tokenizer_config.json and its like | [`TokenizerConfig`] |
//! | transformers' change of spaces | [`clean_up_spaces`] |

mod added_tokens;
mod byte_level;
mod chat_template;
mod cleanup;
mod config;
mod detokenizer;
mod error;
mod infill;
mod infill_fit;
mod python_json;
mod stop;
#[cfg(test)]
mod testing;
mod text_stream;
mod token_names;
mod tokenizer;
mod vocab_files;

pub use chat_template::{AddGenerationPrompt, ChatMessage, ChatTemplate};
pub use cleanup::clean_up_spaces;
pub use config::TokenizerConfig;
pub use detokenizer::{Detokenizer, MAX_UNDECIDED};
pub use error::TextError;
pub use infill::{ContextFile, Infill, RepoContext};
pub use infill_fit::FittedPrompt;
pub use stop::StopText;
pub use text_stream::{StopOutcome, StopStrings, TextStream};
pub use token_names::TokenNames;
pub use tokenizer::{SpecialOutput, SpecialTokens, Tokenizer};

use serde::{Deserialize, Serialize};

/// One id of the tokenizer's vocabulary.
#[derive(
    Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, bytemuck::Pod, bytemuck::Zeroable,
)]
#[serde(transparent)]
#[repr(transparent)]
pub struct TokenId(pub u32);

impl std::fmt::Display for TokenId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
