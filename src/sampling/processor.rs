//! Logits processors of embedders.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::text::TokenId;

use super::SampleError;

/// Changes the logits of a request before sampling. Called on the host once per generated token, so a GPU's logits are
/// downloaded for it.
pub trait LogitsProcessor: Send + Sync + std::fmt::Debug {
    /// Changes logits f32 `[vocab_size]` in place, after allowed and banned tokens and biases, before the penalties. A
    /// token at −∞ cannot be sampled; banned tokens are at −∞ and may be raised again. If it leaves NaN, +∞ or nothing
    /// above −∞, or panics, its request fails and others go on.
    fn process(&self, context: &LogitsContext<'_>, logits: &mut [f32]);
}

/// The sequence as seen by a [`LogitsProcessor`].
#[derive(Debug, Clone, Copy)]
pub struct LogitsContext<'a> {
    /// The prompt.
    pub prompt: &'a [TokenId],
    /// The tokens generated so far.
    pub output: &'a [TokenId],
}

/// Calls the processor.
///
/// # Errors
/// [`SampleError::ProcessorPanicked`].
pub(super) fn process(
    processor: &dyn LogitsProcessor,
    context: &LogitsContext<'_>,
    logits: &mut [f32],
) -> Result<(), SampleError> {
    // The caller drops the logits that a panic left half changed; the processor's own state is its own concern.
    catch_unwind(AssertUnwindSafe(|| processor.process(context, logits)))
        .map_err(|panic| SampleError::ProcessorPanicked { message: message_of(&*panic) })
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
