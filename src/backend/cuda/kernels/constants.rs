//! The constants of the kernels, as their files define them: build.rs writes this module (`build/constants.rs`).

#![allow(dead_code, clippy::unreadable_literal)]

include!(concat!(env!("OUT_DIR"), "/constants.rs"));
