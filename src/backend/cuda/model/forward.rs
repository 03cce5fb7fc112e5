//! The forward pass, readable from top to bottom: one launch after the other, in stream order.

use super::super::error::CudaError;
use super::super::kernels::Element;
use super::super::kernels::attention_decode::{AttentionDecode, DecodeShape};
use super::super::kernels::attention_prefill::{AttentionPrefill, PrefillShape};
use super::super::kernels::embed::{Embed, EmbedShape};
use super::super::kernels::norm::{Norm, NormForm, NormShape, NormWeights};
use super::super::kernels::paged::{AttentionInputs, Heads};
use super::super::kernels::product::{Epilogue, Head, ProductInputs, ProductShape, Projection, QkvOutputs, QkvProjection};
use super::super::weights::{LayerWeights, LinearWeights, RopeTable, Weights};
use super::super::{Buffer, Device, Slice, SliceMut, Stream};
use super::step::{StepLayout, StepShape, heads};
use super::workspace::{Cache, Workspace};
use crate::model::{ModelSpec, NormKind};

/// The loaded kernels of a forward pass.
pub(super) struct Kernels<T> {
    embed: Embed<T>,
    norm: Norm<T>,
    qkv: QkvProjection<T>,
    attention_decode: AttentionDecode<T>,
    attention_prefill: AttentionPrefill<T>,
    mlp_in: Projection<T>,
    /// Back into the residual stream: out of attention, and out of the MLP.
    out: Projection<T>,
    head: Head<T>,
}

impl<T: Element> Kernels<T> {
    pub(super) fn load(device: &Device, spec: &ModelSpec) -> Result<Kernels<T>, CudaError> {
        let form = match spec.norm.kind {
            NormKind::LayerNorm => NormForm::Layer,
        };
        Ok(Kernels {
            embed: Embed::load(device)?,
            norm: Norm::load(device, form)?,
            qkv: QkvProjection::load(device)?,
            attention_decode: AttentionDecode::load(device, spec.head_dim)?,
            attention_prefill: AttentionPrefill::load(device, spec.head_dim)?,
            mlp_in: Projection::load(device, Epilogue::BiasGelu)?,
            out: Projection::load(device, Epilogue::BiasResidual)?,
            head: Head::load(device)?,
        })
    }
}

/// One forward pass over one step.
pub(super) struct Pass<'a, T> {
    pub(super) spec: &'a ModelSpec,
    pub(super) kernels: &'a Kernels<T>,
    pub(super) weights: &'a Weights<T>,
    pub(super) rope: &'a RopeTable,
    pub(super) cache: &'a mut Cache<T>,
    pub(super) workspace: &'a mut Workspace<T>,
    /// The step's inputs on the device, laid out as `layout` says.
    pub(super) inputs: &'a Buffer<u32>,
    /// Tokens drawn in the steps before.
    pub(super) draws: Slice<'a, u32>,
    pub(super) shape: StepShape,
    pub(super) layout: &'a StepLayout,
    /// Positions of a split of decode attention.
    pub(super) split_len: usize,
}

impl<T: Element> Pass<'_, T> {
    /// Gives the step to the stream.
    pub(super) fn run(&mut self, stream: &Stream) -> Result<(), CudaError> {
        self.embed(stream)?;
        // The layers borrow the weights, not the pass.
        let weights = self.weights;
        for (index, layer) in weights.layers().enumerate() {
            self.norm(stream, layer.attention_norm)?;
            self.project_qkv(stream, index, layer.qkv)?;
            self.attend(stream, index)?;
            self.attention_out(stream, &layer)?;
            self.norm(stream, layer.mlp_norm)?;
            self.mlp(stream, &layer)?;
        }
        self.head(stream)
    }

    /// `hidden[r] = embedding[token_ids[r]]`
    fn embed(&mut self, stream: &Stream) -> Result<(), CudaError> {
        let head = self.weights.head();
        let width = self.workspace.sizes.hidden;
        let shape = EmbedShape { rows: self.shape.rows, vocabulary: self.spec.vocab_size, width };
        let ids = self.words(&self.layout.token_ids)?;
        todo!()
    }
}
