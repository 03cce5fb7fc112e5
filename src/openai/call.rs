//! A body turned into requests, and what is needed to make a response of their samples.

use super::logprobs::{ChatLogprobs, CompletionLogprobs};
use super::response::{AssistantMessage, ChatChoice, CompletionChoice, ResponseBody, Usage};
use super::{Options, Output, ServedModel};
use crate::engine::{FinishReason, Request};
use crate::text::SpecialOutput;

/// What a response is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The response's id, after `cmpl-` or `chatcmpl-`.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
}

/// One call of an endpoint: the requests to run, and how to answer.
#[derive(Debug)]
pub struct Call {
    /// What to run, one request a prompt.
    pub requests: Vec<Request>,
    /// Whether to stream the answer.
    pub stream: bool,
    /// Whether a stream ends with the usage.
    pub include_usage: bool,
    format: Format,
    special_output: SpecialOutput,
}

/// Which endpoint answers, and with what.
#[derive(Debug)]
pub(super) enum Format {
    Completion {
        /// Where `echo` asks: the text of each prompt.
        echoes: Option<Vec<String>>,
        /// For each of these, how many tokens of the prompt stand before its text and are no part of it.
        added_before: Vec<usize>,
        logprobs: bool,
    },
    Chat {
        logprobs: bool,
    },
}

impl Call {
    pub(super) fn new(requests: Vec<Request>, format: Format, options: &Options) -> Call {
        Call {
            requests,
            stream: options.stream,
            include_usage: options.include_usage,
            format,
            special_output: options.special_output,
        }
    }

    /// The response, once every request is done. `outputs` are theirs, in the order of [`Call::requests`].
    pub fn response(&self, model: &ServedModel, identity: Identity, outputs: Vec<Output>) -> ResponseBody {
        let usage = Usage::of(&outputs);
        match &self.format {
            Format::Completion { echoes, added_before, logprobs } => {
                let (tokenizer, mut choices) = (model.maybe_tokenizer(), Vec::new());
                for (index, output) in outputs.into_iter().enumerate() {
                    let echo = echoes.as_ref().and_then(|echoes| echoes.get(index));
                    for sample in output.samples {
                        let logprobs = logprobs.then(|| {
                            let prompt = echo.map(|text| (text.as_str(), output.prompt.as_slice()));
                            let added = added_before.get(index).copied().unwrap_or(0);
                            CompletionLogprobs::new(model.names(), tokenizer, prompt, &sample, self.special_output)
                                .without_text(added, output.prompt.len())
                        });
                        let text = match echo {
                            Some(echo) => format!("{echo}{}", sample.text),
                            None => sample.text,
                        };
                        let finish_reason = finish_reason(&sample.reason);
                        choices.push(CompletionChoice { index: choices.len(), text, logprobs, finish_reason });
                    }
                }
                ResponseBody::completion(&model.name, identity, choices, usage)
            }
            Format::Chat { logprobs } => {
                let samples = outputs.into_iter().flat_map(|output| output.samples);
                let choices = samples.enumerate().map(|(index, sample)| ChatChoice {
                    index,
                    logprobs: logprobs.then(|| ChatLogprobs::new(model.names(), &sample)),
                    finish_reason: finish_reason(&sample.reason),
                    message: AssistantMessage::new(sample.text),
                });
                ResponseBody::chat(&model.name, identity, choices.collect(), usage)
            }
        }
    }
}

/// The wire's word. It has none for time that is up: the text was cut, as it is at `max_tokens`.
fn finish_reason(reason: &FinishReason) -> &'static str {
    match reason {
        FinishReason::Deadline => FinishReason::Length.as_str(),
        reason => reason.as_str(),
    }
}
