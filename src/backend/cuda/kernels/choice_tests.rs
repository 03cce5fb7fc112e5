//! Which kernels each generation of GPUs gets.

use super::super::device::Properties;
use super::super::gpu_spec::GpuSpec;
use super::super::image::images;
use super::super::switches::{Algorithms, AttentionAlgorithm, LinearAlgorithm};
use super::super::versions::ComputeCapability;
use super::linear::{GemmAlgorithm, GemmShape};
use super::{attention_decode, attention_prefill};

/// An H200 in all but its generation.
fn device(major: u32, minor: u32) -> Properties {
    Properties { compute_capability: ComputeCapability { major, minor }, ..GpuSpec::h200().properties }
}

/// The names of the files that compute products of 64 and of 4096 rows, decode attention and prefill attention.
fn chosen(device: &Properties) -> [&'static str; 4] {
    let product = |rows| match GemmAlgorithm::choose(device, GemmShape { m: rows, n: 4096, k: 4096 }) {
        GemmAlgorithm::Gemv => "gemv",
        GemmAlgorithm::SmallM(_) => "gemm_small_m_sm90",
        GemmAlgorithm::Sm80(_) => "gemm_sm80",
        GemmAlgorithm::Sm90(_) => "gemm_sm90",
    };
    let (decode, prefill) = (attention_decode::Variant::of(device), attention_prefill::Variant::of(device));
    [product(64), product(4096), decode.file(), prefill.file()]
}

const GENERAL: [&str; 4] = ["gemm_sm80", "gemm_sm80", "attention_decode", "attention_prefill"];
const HOPPER: [&str; 4] = ["gemm_small_m_sm90", "gemm_sm90", "attention_decode_sm90", "attention_prefill_sm90"];

/// Their instructions are Hopper's alone: a GPU that came later takes the general kernels, too.
#[test]
fn hopper_s_kernels_are_chosen_on_9_0_alone() {
    for (major, minor) in [(8, 0), (8, 6), (8, 9), (10, 0), (12, 0)] {
        assert_eq!(chosen(&device(major, minor)), GENERAL, "{major}.{minor}");
    }
    if images().is_empty() {
        eprintln!("SKIPPED hopper_s_kernels_are_chosen_on_9_0_alone for 9.0: this build has no kernels");
        assert_eq!(chosen(&device(9, 0)), GENERAL);
    } else {
        assert_eq!(chosen(&device(9, 0)), HOPPER);
    }
}

#[test]
fn hopper_s_kernels_are_refused_by_name_elsewhere() {
    let none = Algorithms::default();
    let by_name = [
        ("RIGEL_CUDA_GEMM=small_m", Algorithms { gemm: Some(LinearAlgorithm::SmallM), ..none }),
        ("RIGEL_CUDA_GEMM=sm90", Algorithms { gemm: Some(LinearAlgorithm::Sm90), ..none }),
        ("RIGEL_CUDA_ATTENTION_DECODE=sm90", Algorithms { decode: Some(AttentionAlgorithm::Sm90), ..none }),
        ("RIGEL_CUDA_ATTENTION_PREFILL=sm90", Algorithms { prefill: Some(AttentionAlgorithm::Sm90), ..none }),
    ];
    for (major, minor) in [(8, 0), (8, 6), (8, 9), (10, 0), (12, 0)] {
        let device = device(major, minor);
        for (switch, algorithms) in &by_name {
            let error = algorithms.check_device(&device).unwrap_err().to_string();
            let expected = format!("{switch} cannot be used: it needs compute capability 9.0");
            assert!(error.starts_with(&expected) && error.contains(&format!("{major}.{minor}")), "{error}");
        }
    }
}
