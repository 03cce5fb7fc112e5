//! Every kernel against float64 loops, on the interpreter or, with `RIGEL_TEST_DEVICE=cuda`, on a GPU.

#[path = "../common/mod.rs"]
#[macro_use]
mod common;
// What the tests of several kernels share.
mod attention;
mod linear;
mod prefill;

mod attention_batch_invariant;
mod attention_decode;
mod attention_prefill;
mod attention_prefill_sm90;
mod ceilings;
mod conformance;
mod conformance_hopper;
mod embed;
mod gemm;
mod gemm_sm90;
mod gemm_small_m;
mod gemv;
mod gemv_normed;
mod mbarrier_trap;
mod norm;
mod random;
mod sample;
