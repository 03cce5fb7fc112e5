//! The product with the fused query, key and value weights, rotated and written into the cache.

use super::super::super::buffer::{Slice, SliceMut};
use super::super::super::device::Device;
use super::super::super::error::CudaError;
use super::super::super::launch::Arguments;
use super::super::super::stream::Stream;
use super::super::super::work::Work;
use super::super::{BiasTerm, Check, Element, gemv};
use super::{BIAS_ROPE_KV, GemmAlgorithm, GemmShape, GemmSizes, LinearInputs, LinearKernels, check_operands, operands};
use crate::backend::Determinism;
use crate::model::WeightFormat;

/// Sizes of the product with the fused query, key and value weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QkvShape {
    /// Rows of activations.
    pub rows: usize,
    /// Elements of a row of activations and of weights.
    pub k: usize,
    /// Query heads.
    pub heads: usize,
    /// Key heads, and as many value heads.
    pub kv_heads: usize,
    /// Elements of a head: 64 or 128.
    pub head_dim: usize,
    /// Slots of a page of the cache: a power of two.
    pub page_size: usize,
}

impl QkvShape {
    /// The product that it is: a column for each element of each query, key and value head.
    ///
    /// # Errors
    /// [`CudaError::Operand`] for sizes that overflow.
    pub(in super::super) fn product(&self, check: Check) -> Result<GemmShape, CudaError> {
        let all = self.kv_heads.checked_mul(2).and_then(|kv| kv.checked_add(self.heads));
        match all.and_then(|all| all.checked_mul(self.head_dim)) {
            Some(n) => Ok(GemmShape { m: self.rows, n, k: self.k }),
            None => check.fail("heads", self.heads, "heads whose elements can be counted"),
        }
    }

    /// The same, of sizes that are known not to overflow.
    pub fn gemm_shape(&self) -> GemmShape {
        let n = (self.heads + 2 * self.kv_heads) * self.head_dim;
        GemmShape { m: self.rows, n, k: self.k }
    }

    /// Checks sizes that the kernels do not take.
    pub(in super::super) fn check(&self, check: Check) -> Result<(), CudaError> {
        if self.head_dim != 64 && self.head_dim != 128 {
            return check.fail("head_dim", self.head_dim, "64 or 128");
        }
        check.size("heads", self.heads, i32::MAX as usize)?;
        check.size("kv_heads", self.kv_heads, i32::MAX as usize)?;
        if !check.size("page_size", self.page_size, 1 << 30)?.is_power_of_two() {
            return check.fail("page_size", self.page_size, "a power of two");
        }
        Ok(())
    }

    /// Checks what the epilogue of queries, keys and values takes, and appends it to a kernel's arguments behind the
    /// bias. The sizes have been checked.
    pub(in super::super) fn append<T: Element>(
        &self,
        check: Check,
        arguments: Arguments,
        rows: QkvRows<'_>,
        out: &QkvOutputs<'_, T>,
    ) -> Result<Arguments, CudaError> {
        let QkvShape { heads, kv_heads, head_dim, page_size, .. } = *self;
        let head_count = check.size("heads", heads, i32::MAX as usize)?;
        let kv_head_count = check.size("kv_heads", kv_heads, i32::MAX as usize)?;
        let page_slots = check.size("page_size", page_size, 1 << 30)?;
        check.matrix("queries", (&out.queries).into(), self.rows, heads * head_dim)?;
        for (what, found) in [("positions", rows.positions.len()), ("row_pages", rows.row_pages.len())] {
            if found != self.rows {
                return check.fail(what, found, format_args!("{} elements", self.rows));
            }
        }
        let table_rows = rows.rotations.len() / head_dim;
        check.matrix("rotations", rows.rotations.into(), table_rows, head_dim)?;
        let table_rows = check.size("positions of the table", table_rows, i32::MAX as usize)?;
        // Columns that fit into 32 bits times a page of 30.
        let page_elements = kv_heads * page_size * head_dim;
        let pages = out.keys.len() / page_elements;
        check.matrix("keys", (&out.keys).into(), pages, page_elements)?;
        check.matrix("values", (&out.values).into(), pages, page_elements)?;
        let pages = check.size("pages", pages, i32::MAX as usize)?;
        Ok(arguments
            .output(&out.queries)
            .output(&out.keys)
            .output(&out.values)
            .input(rows.positions)
            .input(rows.row_pages)
            .input(rows.rotations)
            .scalar(table_rows)
            .scalar(pages)
            .scalar(head_count)
            .scalar(kv_head_count)
            .scalar(head_dim.trailing_zeros())
            .scalar(page_slots.trailing_zeros()))
    }

    /// Work where no row is padding and all positions differ: besides the operands, each row reads its position, page
    /// and rotations, and writes its queries, keys and values of 16 bits.
    pub fn work(&self, weights: &WeightFormat, bias: BiasTerm) -> Work {
        let shape = self.gemm_shape();
        let n = shape.n;
        let rotations = self.rows * self.head_dim * 4;
        shape.of(weights, 2 * shape.bias(bias) + self.rows * 8 + rotations, 2 * self.rows * n)
    }
}

/// What [`QkvProjection`] reads of each row, and the table of rotations.
#[derive(Clone, Copy)]
pub struct QkvRows<'a> {
    /// Position of each row in its sequence, `[rows]`. One past the end of the table is rotated as the last.
    pub positions: Slice<'a, u32>,
    /// The page of each row's key and value, `[rows]`; they go to slot `position % page_size`. Where it is no page of
    /// the cache, as `u32::MAX` for padding, they are not written.
    pub row_pages: Slice<'a, u32>,
    /// `[positions of the table, head_dim / 2, 2]`: cosine and sine of each position and pair; no kernel writes it.
    pub rotations: Slice<'a, f32>,
}

/// Where queries, keys and values go.
pub struct QkvOutputs<'a, T> {
    /// `[rows, heads, head_dim]`.
    pub queries: SliceMut<'a, T>,
    /// The layer's cache of keys, `[pages, kv_heads, page_size, head_dim]`.
    pub keys: SliceMut<'a, T>,
    /// The layer's cache of values, of the same shape.
    pub values: SliceMut<'a, T>,
}

/// Products with fused query, key and value weights `[(heads + 2 kv_heads) head_dim, k]`, first the rows of all
/// query heads, then of all key heads, then of all value heads. Rows of each query and key head, and elements of the
/// bias, are interleaved: those that rotate together are 2p and 2p + 1.
pub struct QkvProjection<T>(LinearKernels<T>);

impl<T: Element> QkvProjection<T> {
    /// Loads the kernels.
    ///
    /// # Errors
    /// As for [`Device::module`].
    pub fn load(device: &Device) -> Result<QkvProjection<T>, CudaError> {
        LinearKernels::load(device, BIAS_ROPE_KV).map(QkvProjection)
    }

    /// The same, by algorithms that `determinism` allows; by default the fastest.
    pub fn with(self, determinism: Determinism) -> QkvProjection<T> {
        QkvProjection(LinearKernels { determinism, ..self.0 })
    }

    /// Sums and biases become queries, keys and values; queries and keys are rotated by their row's position,
    /// `(x, y) → (x cos − y sin, y cos + x sin)`; then all are rounded, queries written to `out.queries`, keys and
    /// values into their row's page.
    ///
    /// # Errors
    /// As for [`Projection::launch`](super::Projection::launch); and for a `head_dim` that is not 64 or 128, a page
    /// size that is no power of two, no heads, and a table or cache whose length is no whole number of positions or
    /// pages.
    pub fn launch(
        &self,
        stream: &Stream,
        shape: QkvShape,
        inputs: LinearInputs<'_, T>,
        rows: QkvRows<'_>,
        out: QkvOutputs<'_, T>,
    ) -> Result<(), CudaError> {
        // What does not fit a product fails below, whatever the algorithm.
        let product = shape.product(gemv::CHECK)?;
        self.launch_with(self.0.algorithm(stream, product)?, stream, shape, inputs, rows, out)
    }

    /// The same by a given algorithm.
    ///
    /// # Errors
    /// As for [`QkvProjection::launch`] and [`Projection::launch_with`](super::Projection::launch_with).
    pub fn launch_with(
        &self,
        algorithm: GemmAlgorithm,
        stream: &Stream,
        shape: QkvShape,
        inputs: LinearInputs<'_, T>,
        rows: QkvRows<'_>,
        out: QkvOutputs<'_, T>,
    ) -> Result<(), CudaError> {
        let check = algorithm.check();
        shape.check(check)?;
        let product = shape.product(check)?;
        let sizes = GemmSizes::of(check, algorithm, product)?;
        check_operands(check, product, inputs)?;
        let arguments = operands(algorithm, product, inputs, None)?.optional_input(inputs.bias);
        let arguments = sizes.append(shape.append(check, arguments, rows, &out)?);
        // SAFETY: the arguments are those of the kernels for queries, keys and values, checked above to have the
        // lengths that they index; positions and pages that lie outside of the table or the cache are not followed.
        unsafe { self.0.launch(stream, algorithm, product, arguments) }
    }
}
