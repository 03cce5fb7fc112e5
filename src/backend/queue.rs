//! Work that is given to a device and not waited for.

use super::{BackendError, Batch};
use crate::sampling::{SampleError, SampleRow, Sampled};

/// A [`Backend`](super::Backend)'s queue, where it has one: a step can be given to the device before the tokens of the
/// step before are known to the host. What is given is done in order. A loop over it is
///
/// ```text
/// forward_drawn(step n + 1)   its token ids from the draws of step n, which may still be under way
/// finish_sampling()           the tokens of step n; does not wait for step n + 1
/// start_sampling(step n + 1)
/// ```
///
/// and whatever the host does about step `n` is done while the device computes step `n + 1`.
pub trait DeviceQueue {
    /// [`Backend::forward`](super::Backend::forward), but the token of row `r` is the one that the last
    /// [`DeviceQueue::start_sampling`] drew for its row `drawn[r]`, where there is such an entry. Draws that are under
    /// way are not waited for, nor disturbed. A row for which none could be drawn gets logits that are not finite.
    ///
    /// # Errors
    /// [`BackendError::InvalidBatch`]; what the device says of this or earlier work.
    fn forward_drawn(&mut self, batch: &Batch<'_>, drawn: &[Option<u32>]) -> Result<(), BackendError>;

    /// Gives draws for `rows`, of the last forward pass, to the device. The tokens are those of the reference sampler.
    /// A row that the device has no way to draw for (one with a processor of its request, say) is drawn on the host
    /// before it returns.
    ///
    /// # Errors
    /// [`BackendError::InvalidBatch`] for a row that is no logits row, or where draws were started and not finished;
    /// what the device says of this or earlier work.
    fn start_sampling(&mut self, rows: &[SampleRow<'_>]) -> Result<(), BackendError>;

    /// The tokens of the draws that were started, in their order; none where none were. Waits for them, and for nothing
    /// that was given to the device behind them. A row whose logits are not finite fails alone.
    ///
    /// # Errors
    /// What the device says of this or earlier work.
    fn finish_sampling(&mut self) -> Result<Vec<Result<Sampled, SampleError>>, BackendError>;
}
