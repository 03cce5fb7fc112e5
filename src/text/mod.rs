//! Tokens and text: tokenizer, chat template, infill, incremental detokenizer, stop strings. Knows nothing of
//! weights or devices.

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
