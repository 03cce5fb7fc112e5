//! What the network is: its layers as data, and how many bytes and FLOPs a token costs.
//!
//! [`ModelSpec`] is derived from config.json once, by the file of its family in `family`; [`ModelSpec::tensors`] says
//! what a checkpoint must hold, [`Counts`] what it costs, [`Description`] all of it for people, and [`Uniform`] random
//! weights in its place. Nothing here computes a forward pass, reads a weight, or knows a device.

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
