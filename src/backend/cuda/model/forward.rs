//! The forward pass, readable from top to bottom: one launch a line, in stream order.

use super::super::error::CudaError;
use super::super::kernels::attention_decode::{AttentionDecode, DecodeInputs, DecodeShape};
use super::super::kernels::attention_prefill::{AttentionPrefill, PrefillInputs, PrefillShape};
use super::super::kernels::embed::{Embed, EmbedShape};
use super::super::kernels::norm::{Norm, NormForm, NormShape};
use super::super::kernels::paged::Sequence;
use super::super::kernels::product::{Epilogue, Head, ProductInputs, ProductShape, Projection, QkvOutputs, QkvProjection};
use super::super::kernels::{Element, norm::NormWeights};
use super::super::weights::{LinearWeights, RopeTable, Weights};
use super::super::{Buffer, Device, Slice, Stream};
use super::step::{StepLayout, StepShape};
use super::workspace::{Cache, Workspace, rows, rows_mut};
use crate::model::{ModelSpec, NormKind};

/// The loaded kernels of a forward pass.
pub(super) struct Kernels<T> {
    embed: Embed<T>,
    norm: Norm<T>,
    qkv: QkvProjection<T>,
    attention_decode: AttentionDecode<T>,
    attention_prefill: AttentionPrefill<T>,
    /// Back into the residual stream.
    out: Projection<T>,
    mlp_in: Projection<T>,
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
            attention_decode: AttentionDecode::load(device)?,
            attention_prefill: AttentionPrefill::load(device)?,
            out: Projection::load(device, Epilogue::BiasResidual)?,
            mlp_in: Projection::load(device, Epilogue::BiasGelu)?,
            head: Head::load(device)?,
        })
    }
}
