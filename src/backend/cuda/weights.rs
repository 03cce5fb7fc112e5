//! The weights of a model in device memory, and the rotations of its positions.

use std::marker::PhantomData;
use std::ops::Range;

use super::buffer::{Buffer, Slice, SliceMut};
use super::kernels::norm::NormWeights;
use super::kernels::random::{Random, RandomShape};
use super::kernels::{Element, WeightMatrix};
use super::layout::{Layout, LinearLayout, NormLayout, Region};
use super::stream::Stream;
use super::upload::{Ring, UploadError, fill, upload};
use crate::backend::{LoadProgress, check_tensors};
use crate::checkpoint::Checkpoint;
use crate::model::{ModelSpec, Rope, Uniform};

/// All weights, in one allocation. What each slice is, its padding and the order of its rows: [`Layout`].
pub struct Weights<T> {
    arena: Buffer<u8>,
    layout: Layout,
    element: PhantomData<T>,
}

/// A matrix `[rows, columns]` and its bias `[rows]`, padding included.
#[derive(Clone, Copy)]
pub struct LinearWeights<'a, T> {
    /// `[rows, columns]`, row-major where it is dense.
    pub weight: WeightMatrix<'a>,
    /// `[rows]`
    pub bias: Option<Slice<'a, T>>,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
}

/// One transformer block; shapes as in [`LayerLayout`](super::layout::LayerLayout).
#[derive(Clone)]
pub struct LayerWeights<'a, T> {
    /// Before attention.
    pub attention_norm: NormWeights<'a, T>,
    /// Queries, keys and values.
    pub qkv: LinearWeights<'a, T>,
    /// Attention's way out.
    pub o_proj: LinearWeights<'a, T>,
    /// Before the MLP.
    pub mlp_norm: NormWeights<'a, T>,
    /// The MLP's matrices, in the order of [`Mlp::linears`](crate::model::Mlp::linears).
    pub mlp: Vec<LinearWeights<'a, T>>,
}

impl<T: Element> Weights<T> {
    /// Allocates the arena on `stream`, which then also frees it, and uploads the tensors of `checkpoint` on a stream
    /// of their own, converted to `T` where they are stored in another dtype. Returns when all of it is on the device;
    /// `progress` is called a few times a second on this thread, and once at the end.
    ///
    /// # Errors
    /// A tensor that is missing, misshapen or of a dtype that is not supported, or that holds a finite value beyond the
    /// range of `T`; too little device memory; any other failure of the device.
    pub fn load(
        stream: &Stream,
        checkpoint: &Checkpoint,
        spec: &ModelSpec,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Weights<T>, UploadError> {
        Weights::load_through(Ring::default(), stream, checkpoint, spec, progress)
    }

    /// [`Weights::load`] with buffers and threads of one's choice.
    ///
    /// # Errors
    /// As for [`Weights::load`].
    pub fn load_through(
        ring: Ring,
        stream: &Stream,
        checkpoint: &Checkpoint,
        spec: &ModelSpec,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Weights<T>, UploadError> {
        check_tensors(checkpoint, spec)?;
        let layout = Layout::new(spec, T::DTYPE);
        let mut arena = stream.alloc::<u8>(layout.bytes() as usize)?;
        let copies = stream.device().stream()?;
        copies.wait(&stream.record()?)?;
        upload(&copies, checkpoint, &layout, &mut arena, ring, progress)?;
        Ok(Weights { arena, layout, element: PhantomData })
    }

    /// Random weights, made on the device: those that a checkpoint of this `seed` holds in `T`
    /// ([`random_checkpoint`](crate::model::random_checkpoint)), bit for bit. Returns when all of them are there.
    ///
    /// # Errors
    /// Too little device memory; any other failure of the device; a tensor of 2³² elements or more, or one that several
    /// matrices share.
    pub fn random(stream: &Stream, spec: &ModelSpec, seed: u32) -> Result<Weights<T>, UploadError> {
        let layout = Layout::new(spec, T::DTYPE);
        let random = Random::<T>::load(stream.device())?;
        // What lies between the tensors is zero.
        let mut arena = stream.zeroed::<u8>(layout.bytes() as usize)?;
        for part in layout.parts() {
            if part.rows != part.tensor_rows {
                return Err(UploadError::PartOfTensor { tensor: part.tensor.clone() });
            }
            if part.region.format.dense_dtype() != Some(T::DTYPE) {
                return Err(UploadError::NoPacker { tensor: part.tensor.clone() });
            }
            let shape = RandomShape { rows: part.rows, columns: part.columns, stride: part.stride() };
            let [start, end] =
                [part.range().start, part.range().end].map(|at| part.region.offset + at * size_of::<T>());
            // Cannot fail: the arena was allocated for this layout, all parts of which lie inside it, at even bytes.
            let out = arena.slice_mut(start..end).and_then(SliceMut::cast).expect("a part lies inside the arena");
            random.fill(stream, shape, part.order, Uniform::of_tensor(seed, &part.tensor), out)?;
        }
        stream.synchronize()?;
        Ok(Weights { arena, layout, element: PhantomData })
    }

    /// Where everything lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The whole allocation.
    pub fn arena(&self) -> Slice<'_, u8> {
        self.arena.view()
    }

    /// Token embeddings, `[vocab, hidden]`.
    pub fn embedding(&self) -> Slice<'_, T> {
        self.region(self.layout.embedding)
    }

    /// The transformer blocks, first to last.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = LayerWeights<'_, T>> {
        self.layout.layers.iter().map(|layer| LayerWeights {
            attention_norm: self.norm(layer.attention_norm),
            qkv: self.linear(layer.qkv),
            o_proj: self.linear(layer.o_proj),
            mlp_norm: self.norm(layer.mlp_norm),
            mlp: layer.mlp.iter().map(|linear| self.linear(*linear)).collect(),
        })
    }

    /// The norm before the head, `[hidden]`.
    pub fn final_norm(&self) -> NormWeights<'_, T> {
        self.norm(self.layout.final_norm)
    }

    /// The output head, `[vocab, hidden]`; the embedding where the two are tied.
    pub fn head(&self) -> LinearWeights<'_, T> {
        self.linear(LinearLayout { weight: self.layout.head, bias: None })
    }

    /// The elements of a dense region.
    pub(super) fn region(&self, region: Region) -> Slice<'_, T> {
        // Cannot fail: regions start at multiples of 256 bytes, and those of vectors and embeddings hold whole
        // elements.
        self.bytes(region).cast().expect("a dense region")
    }

    fn bytes(&self, region: Region) -> Slice<'_, u8> {
        // Cannot fail: the arena was allocated for this layout.
        self.arena.slice(region.range()).expect("a region of the layout lies inside the arena")
    }

    pub(super) fn linear(&self, linear: LinearLayout) -> LinearWeights<'_, T> {
        let Region { rows, columns, format, .. } = linear.weight;
        let bias = linear.bias.map(|bias| self.region(bias));
        LinearWeights { weight: WeightMatrix { bytes: self.bytes(linear.weight), format }, bias, rows, columns }
    }

    pub(super) fn norm(&self, norm: NormLayout) -> NormWeights<'_, T> {
        NormWeights { weight: self.region(norm.weight), bias: norm.bias.map(|bias| self.region(bias)) }
    }
}

/// The rotations of all positions, f32 `[positions, head_dim / 2, 2]`: cosine and sine of each pair's angle.
pub struct RopeTable {
    table: Buffer<f32>,
    positions: usize,
}

impl RopeTable {
    /// The bytes of the table of the first `positions` positions.
    pub fn bytes(spec: &ModelSpec, positions: usize) -> u64 {
        positions as u64 * (spec.head_dim / 2) as u64 * 2 * size_of::<f32>() as u64
    }

    /// Computes the table of positions `0..positions` and uploads it. Returns when it is on the device.
    ///
    /// # Errors
    /// [`UploadError::Cuda`].
    pub fn load(stream: &Stream, spec: &ModelSpec, positions: usize) -> Result<RopeTable, UploadError> {
        let inv_freq = spec.ropes.first().map_or_else(Vec::new, |rope| rope.inv_freq(spec.head_dim));
        let elements = positions.saturating_mul(2 * inv_freq.len());
        let mut table = stream.alloc::<f32>(elements)?;
        let copies = stream.device().stream()?;
        copies.wait(&stream.record()?)?;
        // Small pieces, so that every thread has some: it is the cosines that take the time.
        let ring = Ring { buffer_bytes: 1 << 20, ..Ring::default() };
        let write = |range: Range<usize>, piece: &mut [f32]| {
            // The table's length is even and so is a piece's: no pair is cut in two.
            let (pairs, _) = piece.as_chunks_mut();
            for ([cos, sin], index) in pairs.iter_mut().zip(range.start / 2..) {
                let (position, pair) = (index / inv_freq.len(), index % inv_freq.len());
                (*cos, *sin) = Rope::rotation(position as u32, inv_freq[pair]);
            }
            Ok(())
        };
        fill(&copies, &mut table, ring, &write, &mut |_| {})?;
        Ok(RopeTable { table, positions })
    }

    /// f32 `[positions, head_dim / 2, 2]`
    pub fn view(&self) -> Slice<'_, f32> {
        self.table.view()
    }

    /// How many positions it has.
    pub fn positions(&self) -> usize {
        self.positions
    }
}
