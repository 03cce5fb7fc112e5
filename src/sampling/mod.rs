//! From logits to a token: parameters, the order of processors, the counter-based generator, and the reference
//! sampler that every device's sampler is checked against. Knows rows of logits, not sequences or devices.
//!
//! The order is vLLM's documented one: repetition penalty, temperature, min-p, top-k, top-p, draw.
//!
//! A draw depends on the logits, the seed and the position alone (see [`noise`]), so a request's tokens are the
//! same alone or in any batch.

mod logprobs;
pub mod noise;
mod params;
mod sampler;
mod seen;

pub use logprobs::TokenLogprobs;
pub use params::{InvalidParam, SamplingParams};
pub use sampler::{SampleRow, Sampled, sample};
pub use seen::SeenTokens;

/// A row of logits holds NaN or +∞, or nothing above −∞: no token can be chosen from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the logits are not finite: the weights hold NaN or infinity, or overflow in the forward pass")]
pub struct NotFinite;
