//! Networks as data: their layers, and bytes and FLOPs per token.
//!
//! [`ModelSpec`] is derived from config.json by the file of its family in `family`. [`ModelSpec::tensors`] lists what a
//! checkpoint must hold, [`Counts`] what it costs; [`Description`] is for people, and [`Uniform`] makes random weights.
//! Nothing here computes a forward pass, reads a weight, or knows a device.

mod counts;
mod description;
mod family;
mod random;
mod rope;
mod spec;
mod tensors;
mod weight_format;

pub use counts::Counts;
pub use description::{Description, Network, StoredDtype, grouped};
#[cfg(feature = "cuda")]
pub(crate) use random::random_name;
pub use random::{Uniform, random_checkpoint};
pub use rope::Rope;
pub use spec::{
    Activation, Attention, Embedding, GatedMlp, Head, Layer, Linear, Mlp, ModelSpec, Norm, NormKind, Part, QueryScale,
    TensorRows,
};

pub use weight_format::{Code, Offsets, PerGroup, WeightFormat};

pub use crate::checkpoint::Family;
