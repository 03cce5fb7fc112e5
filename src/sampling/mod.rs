//! From logits to a token: parameters, the order of processors, the counter-based generator, and the reference
//! sampler that every device's sampler is checked against. Knows rows of logits, not sequences or devices.
//!
//! The order is vLLM's documented one: allowed tokens, banned tokens, logit bias, the request's own processor;
//! repetition, frequency and presence penalty; temperature, min-p, top-k, top-p, draw. Log-probabilities are those of
//! the logits before all of it.
//!
//! A sampled token depends on the logits, the seed and the position alone (see [`noise`]), so a request's tokens are
//! the same alone or in any batch.

mod error;
mod history;
mod logprobs;
#[cfg(test)]
mod naive;
pub mod noise;
mod params;
mod processor;
mod sampler;
mod seen;

pub use error::{NotFinite, SampleError};
pub use history::TokenHistory;
pub use logprobs::TokenLogprobs;
pub use params::{InvalidParam, SamplingParams};
pub use processor::{LogitsContext, LogitsProcessor};
pub use sampler::{SampleRow, Sampled, sample};
pub use seen::SeenTokens;
