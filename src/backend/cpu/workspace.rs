//! Activations of a batch, allocated once for the most rows there can be.

use super::memory::{Memory, PageSize};
use super::{attention, matmul};
use crate::backend::BackendError;
use crate::model::ModelSpec;

/// A matrix of f32, row after row, in the workspace.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    start: *mut f32,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
}

// SAFETY: through `&Rows` one gets raw pointers; whoever uses them promises that accesses do not race.
unsafe impl Sync for Rows {}

impl Rows {
    /// The first element of a row.
    ///
    /// # Safety
    /// The row exists. What is read and written through the pointer is the caller's to order.
    pub(crate) unsafe fn row(self, row: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.start.add(row * self.stride) }
    }
}

/// All of them, and what each thread needs for itself, in one stretch of memory.
pub(crate) struct Workspace {
    /// The residual stream, `[rows][hidden_size]`.
    pub(crate) hidden: Rows,
    /// `[rows][hidden_size]`
    pub(crate) normed: Rows,
    /// Query heads, then key heads, then value heads: `[rows][(heads + 2 kv_heads) head_dim]`.
    pub(crate) qkv: Rows,
    /// `[rows][heads * head_dim]`
    pub(crate) attn_out: Rows,
    /// `[rows][intermediate_size]`
    pub(crate) intermediate: Rows,
    /// `[rows][head_dim / 2]`
    pub(crate) cos: Rows,
    /// `[rows][head_dim / 2]`
    pub(crate) sin: Rows,
    /// `[logits rows][vocab_size]`
    pub(crate) logits: Rows,
    /// `[threads][..]`: a [`matmul::Scratch`], then an [`attention::Scratch`].
    pub(crate) scratch: Rows,
    /// What the pointers go into.
    #[cfg_attr(not(test), expect(dead_code, reason = "it is owned, not read"))]
    memory: Memory,
}

// SAFETY: the pointers go into `memory`, which the workspace owns.
unsafe impl Send for Workspace {}
// SAFETY: through `&Workspace` one gets raw pointers; whoever uses them promises that accesses do not race.
unsafe impl Sync for Workspace {}

impl Workspace {
    /// Bytes that [`Workspace::new`] takes.
    pub(crate) fn bytes(spec: &ModelSpec, max_rows: usize, max_logits_rows: usize, threads: usize) -> u64 {
        (floats(&shapes(spec, max_rows, max_logits_rows, threads)) as u64).saturating_mul(4)
    }

    pub(crate) fn new(
        spec: &ModelSpec,
        max_rows: usize,
        max_logits_rows: usize,
        threads: usize,
    ) -> Result<Workspace, BackendError> {
        let shapes = shapes(spec, max_rows, max_logits_rows, threads);
        let floats = floats(&shapes);
        let advice = "compute fewer rows at once (a smaller prefill chunk)";
        let memory = Memory::zeroed(&[floats], PageSize::Large, "activations", advice)?;
        let mut start = 0;
        let [hidden, normed, qkv, attn_out, intermediate, cos, sin, logits, scratch] = shapes.map(|(rows, n)| {
            // `wrapping_add`: stays inside the memory, as `floats` counted.
            let part = Rows { start: memory.as_ptr().wrapping_add(start), stride: stride(n) };
            start += rows * stride(n);
            part
        });
        Ok(Workspace { hidden, normed, qkv, attn_out, intermediate, cos, sin, logits, scratch, memory })
    }
}

impl Workspace {
    #[cfg(test)]
    pub(crate) fn allocated_bytes(&self) -> u64 {
        4 * self.memory.len() as u64
    }

    /// One row of logits.
    ///
    /// # Safety
    /// The row exists and was written, nobody writes it while the slice lives, and `vocab_size` is that of the model.
    pub(crate) unsafe fn logits_of(&self, row: usize, vocab_size: usize) -> &[f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.logits.row(row), vocab_size) }
    }
}

/// Rows and elements of each, in the order of [`Workspace`]'s fields.
fn shapes(spec: &ModelSpec, max_rows: usize, max_logits_rows: usize, threads: usize) -> [(usize, usize); 9] {
    let scratch = matmul::Scratch::FLOATS + attention::Scratch::floats(spec.head_dim);
    [
        (max_rows, spec.hidden_size),
        (max_rows, spec.hidden_size),
        (max_rows, (spec.heads + 2 * spec.kv_heads) * spec.head_dim),
        (max_rows, spec.heads * spec.head_dim),
        (max_rows, spec.intermediate_size()),
        (max_rows, spec.head_dim / 2),
        (max_rows, spec.head_dim / 2),
        (max_logits_rows, spec.vocab_size),
        (threads, scratch),
    ]
}

fn floats(shapes: &[(usize, usize)]) -> usize {
    shapes.iter().fold(0usize, |sum, &(rows, n)| sum.saturating_add(rows.saturating_mul(stride(n))))
}

/// Elements from one row of `n` to the next: whole cache lines, and for long rows an odd number of 4 KB, so that the
/// same columns of neighbouring rows do not all fall into the same sets of a cache.
fn stride(n: usize) -> usize {
    const LINE: usize = 16;
    const PAGE: usize = 1024;
    match n {
        0..PAGE => n.next_multiple_of(LINE),
        _ => n.div_ceil(PAGE) / 2 * 2 * PAGE + PAGE,
    }
}

#[cfg(test)]
mod tests {
    use super::stride;

    #[test]
    fn rows_are_far_enough_apart_and_spread_over_the_sets() {
        for n in [1, 2, 16, 17, 1023, 1024, 1025, 2048, 2049, 3072, 4096, 12288, 49152] {
            assert!(stride(n) >= n && stride(n).is_multiple_of(16), "{n}: {}", stride(n));
            assert!(n < 1024 || stride(n) % 2048 == 1024, "{n}: {}", stride(n));
        }
    }
}
