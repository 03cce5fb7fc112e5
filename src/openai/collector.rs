//! The events of one request, gathered into its samples.

use crate::engine::{Event, Failure, FinishReason, PromptToken};
use crate::sampling::TokenLogprobs;
use crate::text::TokenId;

/// Everything that came of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Log-probabilities of the prompt, where they were asked for.
    pub prompt: Vec<PromptToken>,
    /// The samples, in their order.
    pub samples: Vec<Sample>,
}

/// One sample of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Tokens generated, the one that ended the generation included.
    pub token_ids: Vec<TokenId>,
    /// Where they were asked for: one entry a token generated.
    pub logprobs: Vec<TokenLogprobs>,
    /// The text generated.
    pub text: String,
    /// Why it ended.
    pub reason: FinishReason,
}

/// What an event led to.
#[derive(Debug)]
pub enum Collected {
    /// There is more to come.
    More,
    /// The request is done.
    Done(Output),
    /// The request failed; what it had generated is dropped.
    Failed(Failure),
}

/// Gathers the events of one request. Samples may come interleaved.
#[derive(Debug)]
pub struct Collector {
    prompt_tokens: usize,
    prompt: Vec<PromptToken>,
    /// Those of which something came.
    samples: Vec<Growing>,
    /// Samples that have not ended.
    open: u32,
}

#[derive(Debug, Default)]
struct Growing {
    token_ids: Vec<TokenId>,
    logprobs: Vec<TokenLogprobs>,
    text: String,
    reason: Option<FinishReason>,
}

impl Collector {
    /// For a request with a prompt of so many tokens and `n` samples.
    pub fn new(prompt_tokens: usize, n: u32) -> Collector {
        Collector { prompt_tokens, prompt: Vec::new(), samples: Vec::new(), open: n }
    }

    fn sample(&mut self, sample: u32) -> &mut Growing {
        let index = sample as usize;
        if index >= self.samples.len() {
            self.samples.resize_with(index + 1, Growing::default);
        }
        &mut self.samples[index]
    }

    /// Takes the request's next event.
    pub fn push(&mut self, event: Event) -> Collected {
        match event {
            Event::Prompt(tokens) => self.prompt.extend(tokens),
            Event::Token(token) => {
                let sample = self.sample(token.sample);
                sample.token_ids.push(token.id);
                sample.logprobs.extend(token.logprobs);
                sample.text.push_str(&token.text);
            }
            Event::Finished(finish) => {
                let sample = self.sample(finish.sample);
                sample.text.push_str(&finish.text);
                sample.reason = Some(finish.reason);
                self.open = self.open.saturating_sub(1);
                if self.open == 0 {
                    return Collected::Done(self.output());
                }
            }
            Event::Failed(failure) => return Collected::Failed(failure),
        }
        Collected::More
    }

    fn output(&mut self) -> Output {
        let samples = std::mem::take(&mut self.samples).into_iter().filter_map(|sample| {
            let Growing { token_ids, logprobs, text, reason } = sample;
            reason.map(|reason| Sample { token_ids, logprobs, text, reason })
        });
        Output {
            prompt_tokens: self.prompt_tokens,
            prompt: std::mem::take(&mut self.prompt),
            samples: samples.collect(),
        }
    }
}
