//! Why no token could be chosen.

/// A row of logits holds NaN or +∞, or nothing above −∞: no token can be chosen from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the logits are not finite: the weights hold NaN or infinity, or overflow in the forward pass")]
pub struct NotFinite;

/// Why one row of a step got no token. The other rows have theirs.
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
