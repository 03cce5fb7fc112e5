//! What an embedder does to logits.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::text::TokenId;

use super::SampleError;

/// Changes the logits of a request before a token is chosen. It is called on the host, once for each token that the
/// request generates, so a GPU's logits travel there for it.
pub trait LogitsProcessor: Send + Sync + std::fmt::Debug {
    /// Changes logits f32 `[vocab_size]` in place, after allowed and banned tokens and biases, ahead of the penalties.
    /// A token at −∞ cannot be chosen; what was banned is at −∞, and may be chosen again where it is raised. A row that
    /// it leaves with NaN, with +∞ or with nothing above −∞ fails its request, and so does a panic; other requests go
    /// on.
    fn process(&self, context: &LogitsContext<'_>, logits: &mut [f32]);
}

/// What a [`LogitsProcessor`] is told of the sequence.
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
    // The logits that a panic leaves half changed are dropped by the caller; the processor's own state is its own.
    catch_unwind(AssertUnwindSafe(|| processor.process(context, logits)))
        .map_err(|panic| SampleError::ProcessorPanicked { message: message_of(&*panic) })
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
