//! The two shapes in which OpenAI's responses hold log-probabilities.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::Sample;
use crate::engine::PromptToken;
use crate::text::{Detokenizer, SpecialOutput, TokenId, TokenNames, Tokenizer};

/// The best tokens at a position, under their [names](TokenNames::unique), and their log-probabilities: an object in
/// the order of the probabilities.
#[derive(Debug, Clone, PartialEq)]
pub struct TopLogprobs(pub Vec<(String, f32)>);

impl TopLogprobs {
    /// The best ones, and `chosen` where it is not among them: one entry each, since no two tokens share a name.
    fn new(names: &TokenNames, top: &[(TokenId, f32)], chosen: (TokenId, f32)) -> TopLogprobs {
        let missing = (!top.iter().any(|(id, _)| *id == chosen.0)).then_some(&chosen);
        TopLogprobs(top.iter().chain(missing).map(|(id, logprob)| (names.unique(*id), *logprob)).collect())
    }
}

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (text, logprob) in &self.0 {
            map.serialize_entry(text, logprob)?;
        }
        map.end()
    }
}

/// The number of `id` among the best ones where it is there, so that both places print the same one; else `logprob`.
fn same_number(top: &[(TokenId, f32)], id: TokenId, logprob: f32) -> f32 {
    top.iter().find(|(other, _)| *other == id).map_or(logprob, |(_, same)| *same)
}

/// `logprobs` of a completion's choice: four lists, one entry a token.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct CompletionLogprobs {
    /// Each token's [name](TokenNames::unique): its text where it is text by itself.
    pub tokens: Vec<String>,
    /// Its log-probability; null for the first token of an echoed prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The best tokens there, the token itself always among them; null where there is no log-probability.
    pub top_logprobs: Vec<Option<TopLogprobs>>,
    /// Characters (Unicode scalar values) of the choice's text before the token; all of them for a token that a stop
    /// string cut off.
    pub text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    pub(super) fn new(
        names: &TokenNames,
        tokenizer: Option<&Tokenizer>,
        echo: Option<(&str, &[PromptToken])>,
        sample: &Sample,
        special_output: SpecialOutput,
    ) -> CompletionLogprobs {
        let mut logprobs = CompletionLogprobs::default();
        let mut start = 0;
        if let Some((text, prompt)) = echo {
            // The prompt is echoed with its special tokens.
            let mut offsets = Offsets::new(tokenizer, 0, SpecialOutput::Keep);
            for (index, token) in prompt.iter().enumerate() {
                // What may follow a token stands with that token.
                let top = index.checked_sub(1).map_or(&[][..], |before| &prompt[before].top);
                logprobs.push(names, token.id, token.logprob, top, offsets.next(token.id));
            }
            start = text.chars().count();
        }
        let mut offsets = Offsets::new(tokenizer, start, special_output);
        // A stop string may have cut the text of the last tokens off.
        let end = start + sample.text.chars().count();
        for (&id, token) in sample.token_ids.iter().zip(&sample.logprobs) {
            logprobs.push(names, id, token.target, &token.top, offsets.next(id).min(end));
        }
        logprobs
    }

    /// The same where the first `added` tokens, of the `prompt` ones that are echoed, are no part of the text.
    pub(super) fn without_text(mut self, added: usize, prompt: usize) -> CompletionLogprobs {
        let prompt = &mut self.text_offset[..prompt.min(self.tokens.len())];
        let width = prompt.get(added).copied().unwrap_or(usize::MAX);
        if added > 0 {
            prompt.iter_mut().for_each(|offset| *offset = offset.saturating_sub(width));
        }
        self
    }

    fn push(
        &mut self,
        names: &TokenNames,
        id: TokenId,
        logprob: Option<f32>,
        top: &[(TokenId, f32)],
        text_offset: usize,
    ) {
        let logprob = logprob.map(|logprob| same_number(top, id, logprob));
        self.tokens.push(names.unique(id));
        self.token_logprobs.push(logprob);
        self.top_logprobs.push(logprob.map(|logprob| TopLogprobs::new(names, top, (id, logprob))));
        self.text_offset.push(text_offset);
    }
}

/// Where each token begins in the text.
struct Offsets {
    detokenizer: Option<Detokenizer>,
    characters: usize,
}

impl Offsets {
    fn new(tokenizer: Option<&Tokenizer>, start: usize, special: SpecialOutput) -> Offsets {
        let detokenizer = tokenizer.map(|tokenizer| Detokenizer::new(tokenizer.clone(), special));
        Offsets { detokenizer, characters: start }
    }

    /// The offset of the next token, `id`.
    fn next(&mut self, id: TokenId) -> usize {
        let before = self.characters;
        if let Some(detokenizer) = &mut self.detokenizer {
            self.characters += detokenizer.push(id).chars().count();
        }
        before
    }
}

/// `logprobs` of a chat's choice.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatLogprobs {
    /// One entry a token.
    pub content: Vec<ChatToken>,
    /// Never anything: there are no refusals apart from the content.
    pub refusal: Option<()>,
}

/// One token of an answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatToken {
    /// Its [name](TokenNames::shared): its text where it is text by itself.
    pub token: String,
    /// Its log-probability.
    pub logprob: f32,
    /// Its bytes, which of several tokens may make one character.
    pub bytes: Option<Vec<u8>>,
    /// The best tokens there, best first.
    pub top_logprobs: Vec<ChatTop>,
}

/// One of the best tokens at a position.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatTop {
    /// Its [name](TokenNames::shared).
    pub token: String,
    /// Its log-probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Option<Vec<u8>>,
}

impl ChatLogprobs {
    pub(super) fn new(names: &TokenNames, sample: &Sample) -> ChatLogprobs {
        let tokens = sample.token_ids.iter().zip(&sample.logprobs).filter_map(|(&id, token)| {
            let top = |(id, logprob): &(TokenId, f32)| ChatTop {
                token: names.shared(*id),
                logprob: *logprob,
                bytes: names.bytes(*id),
            };
            Some(ChatToken {
                token: names.shared(id),
                logprob: same_number(&token.top, id, token.target?),
                bytes: names.bytes(id),
                top_logprobs: token.top.iter().map(top).collect(),
            })
        });
        ChatLogprobs { content: tokens.collect(), refusal: None }
    }
}
