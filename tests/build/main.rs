//! `build.rs`, and what the compiler made of the kernels.

mod build_script;
mod sass;
