//! Attention, over pages that lie in no order.

use crate::backend::cuda::kernels::Element;
use crate::backend::cuda::kernels::attention_batch_invariant::{AttentionBatchInvariant, BatchInvariantShape};
use crate::backend::cuda::kernels::attention_decode::{self, AttentionDecode, DecodeShape, DecodeWorkspace};
use crate::backend::cuda::kernels::attention_prefill::{AttentionPrefill, PrefillShape, Tile, Variant};
use crate::backend::cuda::kernels::paged::{AttentionInputs, CacheView, Heads, Sequence};
use crate::backend::cuda::{Buffer, CudaError, Stream};

use super::super::case::{Case, PAGE_SIZE};
use super::super::timer::Launches;
use super::{Filler, set_of};

/// Queries, keys, values and outputs.
struct Set<T> {
    queries: Buffer<T>,
    keys: Buffer<T>,
    values: Buffer<T>,
    out: Buffer<T>,
}

/// What all sets share: the sequences and where their pages lie.
struct Step {
    sequences: Buffer<Sequence>,
    block_tables: Buffer<u32>,
    tiles: Buffer<Tile>,
    pages: usize,
}

impl Step {
    fn new(stream: &Stream, case: &Case) -> Result<Step, CudaError> {
        let pages = case.cache_pages();
        let tables = scattered(pages);
        Ok(Step {
            sequences: stream.upload(&case.sequences())?,
            block_tables: stream.upload(&tables)?,
            tiles: stream.upload(&case.tiles(Variant::of(stream.device().properties())))?,
            pages,
        })
    }

    fn sets<T: Element>(
        &self,
        filler: &Filler<T>,
        rows: usize,
        heads: &Heads,
        sets: usize,
    ) -> Result<Vec<Set<T>>, CudaError> {
        let (queries, cache) = (rows * heads.width(), self.pages * heads.kv * PAGE_SIZE * heads.dim);
        let set = |set| {
            Ok(Set {
                queries: filler.activations(queries, set, 0)?,
                keys: filler.activations(cache, set, 1)?,
                values: filler.activations(cache, set, 2)?,
                out: filler.stream.zeroed(queries)?,
            })
        };
        (0..sets).map(set).collect()
    }

    fn inputs<'a, T>(
        &'a self,
        queries: &'a Buffer<T>,
        keys: &'a Buffer<T>,
        values: &'a Buffer<T>,
    ) -> AttentionInputs<'a, T>
    where
        T: Element,
    {
        AttentionInputs {
            queries: queries.view(),
            cache: CacheView { keys: keys.view(), values: values.view(), pages: self.pages, page_size: PAGE_SIZE },
            sequences: self.sequences.view(),
            block_tables: self.block_tables.view(),
        }
    }
}

/// Every page once, neighbours far from each other, as in an engine that has run for a while: steps of the golden
/// section, or of the next number that shares no factor with that of the pages.
fn scattered(pages: usize) -> Vec<u32> {
    let golden = pages * 618 / 1000;
    let stride = (golden.max(1)..).find(|stride| coprime(*stride, pages)).unwrap_or(1);
    (0..pages).map(|block| (block * stride % pages) as u32).collect()
}

fn coprime(a: usize, b: usize) -> bool {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a == 1
}

/// One row a sequence.
pub struct Decode<T> {
    kernels: AttentionDecode<T>,
    shape: DecodeShape,
    step: Step,
    partials: Buffer<f32>,
    tile_counters: Buffer<u32>,
    sets: Vec<Set<T>>,
}

impl<T: Element> Decode<T> {
    /// In the device's variant, or this one.
    pub fn new(
        filler: &Filler<T>,
        case: &Case,
        shape: DecodeShape,
        variant: Option<attention_decode::Variant>,
        sets: usize,
    ) -> Result<Decode<T>, CudaError> {
        let step = Step::new(&filler.stream, case)?;
        let sets = step.sets(filler, shape.rows, &shape.heads, sets)?;
        let device = filler.stream.device();
        let variant = variant.unwrap_or_else(|| attention_decode::Variant::of(device.properties()));
        let kernels = AttentionDecode::load_variant(device, shape.heads.dim, variant)?;
        let needed = shape.workspace_len(kernels.variant());
        let (partials, tile_counters) =
            (filler.stream.zeroed(needed.partials)?, filler.stream.zeroed(needed.tile_counters)?);
        Ok(Decode { kernels, shape, step, partials, tile_counters, sets })
    }
}

impl<T: Element> Launches for Decode<T> {
    fn sets(&self) -> usize {
        self.sets.len()
    }

    fn launch(&mut self, stream: &Stream, set: usize) -> Result<(), CudaError> {
        let Decode { kernels, shape, step, partials, tile_counters, sets } = self;
        let Some(Set { queries, keys, values, out }) = set_of(sets, set) else { return Ok(()) };
        let inputs = step.inputs(queries, keys, values);
        let workspace = DecodeWorkspace { partials: partials.view_mut(), tile_counters: tile_counters.view_mut() };
        // SAFETY: the case's sequences are rows of the step, and every block of theirs has an entry in the tables that
        // is below the number of pages.
        unsafe { kernels.launch(stream, *shape, inputs, workspace, out.view_mut()) }
    }
}

/// A whole prompt.
pub struct Prefill<T> {
    kernels: AttentionPrefill<T>,
    shape: PrefillShape,
    step: Step,
    sets: Vec<Set<T>>,
}

impl<T: Element> Prefill<T> {
    pub fn new(filler: &Filler<T>, case: &Case, shape: PrefillShape, sets: usize) -> Result<Prefill<T>, CudaError> {
        let step = Step::new(&filler.stream, case)?;
        let sets = step.sets(filler, shape.rows, &shape.heads, sets)?;
        // As many as its variant has; the case's are the warp's.
        let shape = PrefillShape { tiles: step.tiles.len(), ..shape };
        Ok(Prefill { kernels: AttentionPrefill::load(filler.stream.device(), shape.heads.dim)?, shape, step, sets })
    }
}

impl<T: Element> Launches for Prefill<T> {
    fn sets(&self) -> usize {
        self.sets.len()
    }

    fn launch(&mut self, stream: &Stream, set: usize) -> Result<(), CudaError> {
        let Prefill { kernels, shape, step, sets } = self;
        let Some(Set { queries, keys, values, out }) = set_of(sets, set) else { return Ok(()) };
        let inputs = step.inputs(queries, keys, values);
        // SAFETY: as above; the tiles are those of these sequences.
        unsafe { kernels.launch(stream, *shape, inputs, step.tiles.view(), out.view_mut()) }
    }
}

/// Either, batch-invariant.
pub struct Ordered<T> {
    kernels: AttentionBatchInvariant<T>,
    shape: BatchInvariantShape,
    step: Step,
    workspace: Buffer<f32>,
    sets: Vec<Set<T>>,
}

impl<T: Element> Ordered<T> {
    pub fn new(
        filler: &Filler<T>,
        case: &Case,
        shape: BatchInvariantShape,
        sets: usize,
    ) -> Result<Ordered<T>, CudaError> {
        let step = Step::new(&filler.stream, case)?;
        let sets = step.sets(filler, shape.rows, &shape.heads, sets)?;
        let kernels = AttentionBatchInvariant::load(filler.stream.device(), shape.heads.dim)?;
        Ok(Ordered { kernels, shape, step, workspace: filler.stream.zeroed(shape.workspace_len())?, sets })
    }
}

impl<T: Element> Launches for Ordered<T> {
    fn sets(&self) -> usize {
        self.sets.len()
    }

    fn launch(&mut self, stream: &Stream, set: usize) -> Result<(), CudaError> {
        let Ordered { kernels, shape, step, workspace, sets } = self;
        let Some(Set { queries, keys, values, out }) = set_of(sets, set) else { return Ok(()) };
        let inputs = step.inputs(queries, keys, values);
        // SAFETY: as above; a split tile holds the one row of its sequence.
        unsafe { kernels.launch(stream, *shape, inputs, step.tiles.view(), workspace.view_mut(), out.view_mut()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_lie_in_no_order() {
        for pages in [1, 2, 3, 16, 64, 1000, 16_384] {
            let mut table = scattered(pages);
            let near = table.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < pages as u32 / 4).count();
            assert_eq!(near, 0, "{pages} pages: {table:?}");
            table.sort_unstable();
            assert!(table.iter().copied().eq(0..pages as u32), "{pages} pages: each once");
        }
    }
}
