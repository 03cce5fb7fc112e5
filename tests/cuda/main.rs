//! The device layer and the CUDA backend, on the interpreter or, with `RIGEL_TEST_DEVICE=cuda`, on a GPU.

#[path = "../common/mod.rs"]
#[macro_use]
mod common;
#[path = "../common/goldens.rs"]
mod goldens;

mod backend;
mod bench_kernels;
mod bench_model;
mod cost_model;
mod device_layer;
mod faked_drivers;
mod interpreter_speed;
mod invariance;
mod parity;
mod profile;
mod switches;
mod upload;
