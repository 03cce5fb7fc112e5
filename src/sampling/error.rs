//! Sampling errors.

/// The logits hold NaN or +∞, or nothing above −∞.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the logits are not finite: the weights hold NaN or infinity, or overflow in the forward pass")]
pub struct NotFinite;

/// Why a row could not be sampled. Other rows are not affected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// The logits, as the model gave them or as biases, bans, the request's processor and penalties left them.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// The request's [`LogitsProcessor`](super::LogitsProcessor) panicked.
    #[error("the request's logits processor panicked: {message}")]
    ProcessorPanicked {
        /// The panic's message.
        message: String,
    },
}
