//! Measuring: what `rigel bench`, `rigel profile` and the benches of this crate share.
//!
//! Every figure is a [`Row`] of a [`Report`], with the device, the commit and the command that it came from, the work
//! it had to do and the share of the limit that the same run measured. Peers (PyTorch and others) write the same rows.
//!
//! | module | noun |
//! |---|---|
//! | [`report`] | the one JSON schema: [`Report`], [`Row`], [`Ceiling`] |
//! | [`times`] | [`Times`]: median and spread of one figure |
//! | [`model`] | whole models in llama-bench's words |
//! | [`shapes`] | networks by name or config.json, for measuring without a checkpoint |
//! | [`start`] | from the start of a process to its first token |
//! | [`synthetic`] | checkpoints of random weights, as files |
//! | [`table`] | [`table::Table`]: Markdown that lines up |
//! | `kernels` | every kernel alone, at models' shapes, beside PyTorch's |
//! | [`cpu_limits`] | what a processor can do |
//! | [`compare`] | two reports, as ratios |
//! | [`document`] | the measured part of docs/performance.md |
//! | [`plot`] | pictures as SVG |
//! | `profile` | one step launch by launch (with the feature `cuda`) |
//!
//! Nothing here knows of terminals or arguments; `src/cli` prints.

pub mod compare;
pub mod cpu_limits;
mod device;
pub mod document;
#[cfg(feature = "cuda")]
pub mod kernels;
pub mod model;
pub mod plot;
#[cfg(feature = "cuda")]
pub mod profile;
pub mod report;
pub mod shapes;
pub mod start;
pub mod synthetic;
pub mod table;
pub mod times;

pub use report::{Ceiling, DeviceRecord, Limit, Report, Row, Suite};
pub use times::Times;
