//! The forward pass, readable from top to bottom: parallel region by parallel region.

use super::attention::{self, MAX_QUERIES, Tile};
use super::cache::Cache;
use super::kernels::Kernels;
use super::matmul::{self, Epilogue, Gemm};
use super::plan::Plan;
use super::rope;
use super::thread_pool::ThreadPool;
use super::weights::{Layer, Linear, Norm, Weights};
use super::workspace::{Rows, Workspace};
use crate::backend::Batch;
use crate::model::ModelSpec;
use crate::text::TokenId;

/// Rows in a task of an elementwise region.
const ROWS_PER_TASK: usize = 4;

/// One forward pass over one batch.
///
/// The plan was made for the batch, so every index below is in range; tasks of a region write apart from each other
/// and read what earlier regions wrote. Each `SAFETY` below rests on these two facts.
pub(crate) struct ForwardPass<'a> {
    pub(crate) spec: &'a ModelSpec,
    pub(crate) inv_freq: &'a [f32],
    pub(crate) kernels: &'a Kernels,
    pub(crate) weights: &'a Weights,
    pub(crate) cache: &'a Cache,
    pub(crate) workspace: &'a Workspace,
    pub(crate) plan: &'a Plan,
    pub(crate) batch: &'a Batch<'a>,
    /// Of the batch's tokens.
    pub(crate) token_ids: &'a [TokenId],
    pub(crate) threads: usize,
}

impl ForwardPass<'_> {
    /// All of it, on the threads of `pool`.
    pub(crate) fn run(&self, pool: &mut ThreadPool) {
        let &Workspace { hidden, normed, attn_out, intermediate, .. } = self.workspace;
        self.embed(pool);
        for (index, layer) in self.weights.layers.iter().enumerate() {
            self.norm_rows(pool, &layer.attention_norm);
            self.project_qkv(pool, layer);
            self.rotate_and_cache(pool, index);
            self.attend(pool, index, layer);
            self.multiply(pool, &[self.gemm(attn_out, &layer.output, hidden, Epilogue::Add)]);
            self.norm_rows(pool, &layer.mlp_norm);
            self.multiply(pool, &[self.gemm(normed, &layer.up, intermediate, layer.activation)]);
            self.multiply(pool, &[self.gemm(intermediate, &layer.down, hidden, Epilogue::Add)]);
        }
        self.head(pool);
    }

    fn rows(&self) -> usize {
        self.plan.positions().len()
    }

    /// Token embeddings, and each row's rotation.
    fn embed(&self, pool: &mut ThreadPool) {
        let embedding = self.weights.embedding.weight();
        let half = self.spec.head_dim / 2;
        pool.parallel_for_rows(self.rows(), ROWS_PER_TASK, |rows| {
            for row in rows {
                let id = self.token_ids[row].0 as usize;
                let stored = &embedding.bytes[id * embedding.row_bytes()..][..embedding.row_bytes()];
                let position = self.plan.positions()[row];
                // SAFETY: see `ForwardPass`.
                unsafe {
                    let to = self.workspace.hidden.row(row);
                    (embedding.kernels.widen)(stored.as_ptr(), self.spec.hidden_size, to);
                    let cos = std::slice::from_raw_parts_mut(self.workspace.cos.row(row), half);
                    let sin = std::slice::from_raw_parts_mut(self.workspace.sin.row(row), half);
                    rope::angles(position, self.inv_freq, cos, sin);
                }
            }
        });
    }

    /// `normed[row] = norm(hidden[row])` for every row.
    fn norm_rows(&self, pool: &mut ThreadPool, norm: &Norm) {
        pool.parallel_for_rows(self.rows(), ROWS_PER_TASK, |rows| rows.for_each(|row| self.norm_row(norm, row, row)));
    }

    /// `normed[to] = norm(hidden[row])`.
    fn norm_row(&self, norm: &Norm, row: usize, to: usize) {
        let n = self.spec.hidden_size;
        // SAFETY: see `ForwardPass`; weight and bias have the length of a row.
        unsafe {
            let x = self.workspace.hidden.row(row);
            let out = self.workspace.normed.row(to);
            (self.kernels.layer_norm)(x, norm.weight.as_ptr(), norm.bias.as_ptr(), norm.eps, n, out);
        }
    }

    /// `out = epilogue(x · linearᵀ)` over all rows.
    fn gemm<'b>(&self, x: Rows, linear: &'b Linear, out: Rows, epilogue: Epilogue) -> Gemm<'b> {
        // SAFETY: no pointer is followed here, and the buffers have a first row whenever the product has rows.
        let (x_start, out_start) = unsafe { (x.row(0), out.row(0)) };
        Gemm {
            x: x_start,
            x_stride: x.stride,
            rows: self.rows(),
            weight: linear.weight(),
            bias: linear.bias(),
            out: out_start,
            out_stride: out.stride,
            epilogue,
        }
    }

    fn project_qkv(&self, pool: &mut ThreadPool, layer: &Layer) {
        let &Workspace { normed, qkv, .. } = self.workspace;
        let head_dim = self.spec.head_dim;
        let part = |linear, first_head: usize| {
            let gemm = self.gemm(normed, linear, qkv, Epilogue::Store);
            // SAFETY: the heads of a row lie one after the other in `qkv`.
            let out = unsafe { gemm.out.add(first_head * head_dim) };
            Gemm { out, ..gemm }
        };
        let (keys, values) = (self.spec.heads, self.spec.heads + self.spec.kv_heads);
        self.multiply(pool, &[part(&layer.query, 0), part(&layer.key, keys), part(&layer.value, values)]);
    }

    /// GEMMs in one region: blocks of weight rows go to whoever is free.
    fn multiply<const N: usize>(&self, pool: &mut ThreadPool, gemms: &[Gemm<'_>; N]) {
        let blocks = gemms.each_ref().map(|gemm| gemm.block_rows(self.threads));
        let mut tasks = 0;
        for (gemm, block) in gemms.iter().zip(blocks) {
            tasks += gemm.weight.rows().div_ceil(block);
        }
        pool.parallel_for(tasks, |thread, mut task| {
            // SAFETY: each thread's scratch begins with room for this.
            let scratch = unsafe { matmul::Scratch::new(self.scratch(thread)) };
            for (gemm, block) in gemms.iter().zip(blocks) {
                let rows = gemm.weight.rows();
                let here = rows.div_ceil(block);
                if task < here {
                    let range = task * block..rows.min((task + 1) * block);
                    // The blocks in between go to the others.
                    let next = range.start + self.threads * block;
                    // SAFETY: see `ForwardPass`; the block lies inside the weight, and `scratch` is this thread's.
                    return unsafe { (gemm.weight.kernels.gemm_block)(gemm, range, next, scratch) };
                }
                task -= here;
            }
        });
    }

    /// Rotates queries in slot, and rotates keys into the cache; copies values there.
    fn rotate_and_cache(&self, pool: &mut ThreadPool, layer: usize) {
        let head_dim = self.spec.head_dim;
        let slots = self.plan.rows(self.cache.group(layer));
        let half = head_dim / 2;
        let (heads, kv_heads) = (self.spec.heads, self.spec.kv_heads);
        pool.parallel_for_rows(self.rows(), ROWS_PER_TASK, |rows| {
            for row in rows {
                let slot = slots[row];
                // SAFETY: see `ForwardPass`; no two rows of a batch share a slot.
                unsafe {
                    let (cos, sin) = (self.workspace.cos.row(row), self.workspace.sin.row(row));
                    let qkv = self.workspace.qkv.row(row);
                    for head in 0..heads {
                        let query = qkv.add(head * head_dim);
                        (self.kernels.rotate)(query, cos, sin, half, query);
                    }
                    for head in 0..kv_heads {
                        let (keys, values) = self.cache.head(layer, head);
                        let at = slot.page as usize * self.cache.page_stride() + slot.slot as usize * head_dim;
                        let key = qkv.add((heads + head) * head_dim);
                        (self.kernels.rotate)(key, cos, sin, half, keys.add(at));
                        let value = qkv.add((heads + kv_heads + head) * head_dim);
                        std::ptr::copy_nonoverlapping(value, values.add(at), head_dim);
                    }
                }
            }
        });
    }

    /// Attention of all rows, a tile of rows and heads to a task.
    fn attend(&self, pool: &mut ThreadPool, index: usize, layer: &Layer) {
        let (spec, tiles) = (self.spec, &self.plan.tiles);
        let group = spec.group_size();
        // The heads of a KV head share its keys in one task, unless there would be too few tasks for the threads.
        let splits = self.threads.div_ceil((tiles.len() * spec.kv_heads).max(1));
        let heads = group.div_ceil(splits).clamp(1, MAX_QUERIES);
        let splits = group.div_ceil(heads);
        let &Workspace { qkv, attn_out, .. } = self.workspace;
        pool.parallel_for(tiles.len() * spec.kv_heads * splits, |thread, task| {
            // SAFETY: behind the room for GEMMs lies that for attention.
            let scratch = unsafe { attention::Scratch::new(self.scratch(thread).add(matmul::Scratch::FLOATS)) };
            // The last rows see the most keys: the long tasks first.
            let rows = tiles[tiles.len() - 1 - task / (spec.kv_heads * splits)];
            let kv_head = task / splits % spec.kv_heads;
            let split = task % splits;
            let table = &self.batch.sequences[rows.sequence].tables[self.cache.group(index)];
            let first_head = kv_head * group + split * heads;
            let (keys, values) = self.cache.head(index, kv_head);
            // SAFETY: see `ForwardPass`; the cache was written in the region before, `scratch` is this thread's.
            unsafe {
                let tile = Tile {
                    queries: qkv.row(rows.row).add(first_head * spec.head_dim),
                    query_stride: qkv.stride,
                    out: attn_out.row(rows.row).add(first_head * spec.head_dim),
                    out_stride: attn_out.stride,
                    rows: rows.rows,
                    heads: heads.min(group - split * heads),
                    head_dim: spec.head_dim,
                    position: rows.position,
                    window: layer.window,
                    keys,
                    values,
                    page_stride: self.cache.page_stride(),
                    page_size: self.cache.geometry().page_size.get(),
                    first_block: table.first_block(),
                    pages: table.pages(),
                };
                (self.kernels.attend)(&tile, scratch);
            }
        });
    }

    /// Final norm and head, for the rows whose logits are wanted.
    fn head(&self, pool: &mut ThreadPool) {
        let wanted = self.batch.logits_rows;
        pool.parallel_for_rows(wanted.len(), ROWS_PER_TASK, |range| {
            range.for_each(|i| self.norm_row(&self.weights.final_norm, wanted[i], i));
        });
        let &Workspace { normed, logits, .. } = self.workspace;
        let gemm = self.gemm(normed, &self.weights.head, logits, Epilogue::Store);
        self.multiply(pool, &[Gemm { rows: wanted.len(), ..gemm }]);
    }

    /// A thread's working memory.
    fn scratch(&self, thread: usize) -> *mut f32 {
        // SAFETY: there is a row for each thread of the pool.
        unsafe { self.workspace.scratch.row(thread) }
    }
}
