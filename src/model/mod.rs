//! What the network is: shapes, norms, rope, window, and how many bytes and FLOPs a token costs.
//!
//! [`ModelSpec`] is derived from config.json once; [`names`] and [`ModelSpec::tensors`] say where its weights are in a
//! checkpoint, [`Counts`] what they cost, [`Description`] all of it for people, and [`Uniform`] random weights in their
//! place. Nothing here computes a forward pass, reads a weight, or knows a device.

mod counts;
mod description;
pub mod names;
mod random;
mod rope;
mod spec;
mod tensors;

pub use counts::Counts;
pub use description::{Description, StoredDtype, grouped};
#[cfg(feature = "cuda")]
pub(crate) use random::random_name;
pub use random::{Uniform, random_checkpoint};
pub use rope::Rope;
pub use spec::{Activation, ModelSpec, Norm, NormKind};

pub use crate::checkpoint::Family;
