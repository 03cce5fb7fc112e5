//! What the network is: shapes, norms, rope, window, and how many bytes and FLOPs a token costs.
//!
//! [`ModelSpec`] is derived from config.json once; [`names`] and [`ModelSpec::tensors`] say where its weights are in a
//! checkpoint, [`Counts`] what they cost, [`Description`] all of it for people. Nothing here computes a forward pass,
//! reads a weight, or knows a device.

mod counts;
mod description;
pub mod names;
mod random;
mod rope;
mod spec;
mod tensors;

pub use counts::Counts;
pub use description::{Description, StoredDtype, grouped};
pub use random::Uniform;
pub use rope::Rope;
pub use spec::{Activation, ModelSpec, Norm, NormKind};

pub use crate::checkpoint::Family;
