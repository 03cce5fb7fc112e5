//! Determinism of a backend's results.

/// How much a row's bits may depend on the batch it is computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Determinism {
    /// The fastest kernel for each shape. Logits may differ in their last bits between batches of different shapes.
    #[default]
    Fast,
    /// A row's logits have the same bits alone or in any batch, in a whole or a chunked prefill, as a decode row or
    /// verified with drafts, and on pages computed in any of these ways.
    BatchInvariant,
}
