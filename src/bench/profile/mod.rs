//! One step launch by launch: when each ran, what it moved and computed, and how much of its own limit that is.
//!
//! | module | noun |
//! |---|---|
//! | `steps` | runs a prefill and decode steps on a GPU and has them watched |
//! | `timeline` | [`Timeline`]: the launches of one step, with time and [cost](crate::backend::cuda::model::cost_model) |
//! | `picture` | a timeline as SVG and HTML |

mod picture;
mod steps;
mod timeline;

pub use picture::{html, svg};
pub use steps::{Plan, ProfileError, profile};
pub use timeline::{Mismatch, PartTotal, Span, Step, Timeline};
