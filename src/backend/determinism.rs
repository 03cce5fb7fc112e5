//! How much the arithmetic of a batch may depend on its company.

/// Which kernels a backend may choose between by the shape of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Determinism {
    /// The fastest for each shape. A row's logits may differ in their last bits between batches of different shapes.
    #[default]
    Fast,
    /// A row's logits have the same bits alone or in any batch, in a whole or a chunked prefill, as decode or as one of
    /// several rows, and on pages that were computed in any of these ways.
    BatchInvariant,
}
