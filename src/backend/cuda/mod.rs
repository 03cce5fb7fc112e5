//! The device layer: one GPU behind safe types, and the launchers of the kernels in `kernels/`.
//!
//! Everything unsafe about CUDA stays in this module: device pointers never leave it, buffers know their length, and a
//! launch is checked against the compiled kernel's own parameters. It speaks the driver API through cudarc, which
//! opens the driver's library at run time, so that one binary starts on machines with and without a GPU. The tests'
//! interpreter (`crates/rigel-interpreter/`) is such a library too: nothing here knows of it.
//!
//! | module | noun |
//! |---|---|
//! | [`driver`] | the driver's library: is there one, which CUDA does it support |
//! | [`Device`], [`GpuSpec`] | one GPU: properties, memory, loaded kernels; those known by name |
//! | [`Switches`] | what is switched off or chosen by name, to find what is at fault |
//! | [`Stream`], [`Event`], [`Graph`] | work in order, a point in it, a capture of it |
//! | [`Buffer`], [`Slice`], [`SliceMut`], [`Pinned`] | typed memory with a length, on the device and pinned on the host |
//! | [`Image`], [`Module`], [`Kernel`] | a fatbin, the fatbin loaded, one function of it |
//! | [`Launch`], [`Arguments`], [`Work`] | a launch, what it is given, what it must move and compute |
//! | [`TensorMap`] | a tensor as Hopper's copy engine takes it |
//! | [`trace`], [`cupti`] | when launches ran |
//! | [`kernels`] | one launcher for each `kernels/*.cu` |
//! | [`layout`], [`upload`] | where each weight lies in device memory, and its way there |
//! | [`Weights`], [`RopeTable`] | the weights of a model, and its rotations |
//! | [`model`] | a whole model: [`CudaBackend`](model::CudaBackend) |

mod buffer;
mod convert;
pub mod cupti;
mod device;
pub mod driver;
mod error;
mod event;
mod gpu_spec;
mod graph;
mod image;
pub mod kernels;
mod launch;
pub mod layout;
mod mbarrier_trap;
pub mod model;
mod module;
mod pack;
mod pinned;
mod stream;
mod switches;
mod target;
mod tensor_map;
pub mod trace;
pub mod upload;
mod versions;
mod weights;
mod work;

pub use buffer::{Buffer, Slice, SliceMut};
pub use device::{Device, Properties, properties};
pub use error::{CudaError, CuptiError, SwitchError};
pub use event::Event;
pub use gpu_spec::GpuSpec;
pub use graph::Graph;
pub use image::{Image, images, mbarrier_trap_seconds, nvcc_version, runs_on};
pub use launch::{Arguments, Launch, Overlap};
pub use module::{Kernel, Module};
pub use pinned::{Pinned, PinnedSlice, PinnedSliceMut};
pub use stream::Stream;
pub use switches::{Algorithms, AttentionAlgorithm, LinearAlgorithm, SWITCHES, Switch, Switches};
pub use target::{Form, Target, UnknownTarget};
pub use tensor_map::{Dimension, Swizzle, TensorMap};
pub use upload::UploadError;
pub use versions::{ComputeCapability, CudaVersion};
pub use weights::{LayerWeights, LinearWeights, RopeTable, Weights};
pub use work::Work;
