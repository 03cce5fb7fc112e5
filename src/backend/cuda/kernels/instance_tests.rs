//! Every compiled kernel is one that a launcher loads, and every one that a launcher loads is compiled.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::super::image::images;
use super::linear::{BIAS_ROPE_KV, Epilogue, LOGITS};
use super::norm::NormVariant;
use super::{
    attention_batch_invariant, attention_decode, attention_prefill, embed, gemm, gemm_sm90, gemm_small_m_sm90, gemv,
    gemv_normed, sample,
};

const ELEMENTS: [&str; 2] = ["bf16", "f16"];
const HEAD_DIMS: [usize; 2] = [64, 128];

/// The kernels of a file, by their names.
fn loaded(file: &str) -> BTreeSet<String> {
    let epilogues = [Epilogue::BiasGelu.name(), Epilogue::BiasResidual.name(), BIAS_ROPE_KV, LOGITS];
    // The names of a product's kernels, for each epilogue and type.
    let products = |of: &dyn Fn(&str, &str) -> Vec<String>| -> BTreeSet<String> {
        epilogues.iter().flat_map(|epilogue| ELEMENTS.iter().flat_map(|element| of(epilogue, element))).collect()
    };
    let heads = |of: &dyn Fn(&str, usize) -> Vec<String>| -> BTreeSet<String> {
        ELEMENTS.iter().flat_map(|element| HEAD_DIMS.iter().flat_map(|head_dim| of(element, *head_dim))).collect()
    };
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let decode = |variant| {
        use attention_decode::RowTile;
        move |element: &str, head_dim| {
            [RowTile::Heads16, RowTile::Heads32].map(|tile| tile.kernel_name(variant, element, head_dim)).to_vec()
        }
    };
    match file {
        "attention_decode" => {
            let merge = |element: &str, head_dim| vec![attention_decode::merge_kernel_name(element, head_dim)];
            &heads(&decode(attention_decode::Variant::Split)) | &heads(&merge)
        }
        "attention_decode_sm90" => heads(&decode(attention_decode::Variant::Cluster)),
        "attention_batch_invariant" => heads(&|element, head_dim| {
            use attention_batch_invariant::{kernel_name, merge_kernel_name};
            vec![kernel_name(element, head_dim), merge_kernel_name(element, head_dim)]
        }),
        "attention_prefill" => {
            heads(&|element, head_dim| vec![attention_prefill::Variant::Warp.kernel_name(element, head_dim)])
        }
        "attention_prefill_sm90" => {
            heads(&|element, head_dim| vec![attention_prefill::Variant::Warpgroup.kernel_name(element, head_dim)])
        }
        "ceilings" => names(&["read_words", "wait_and_count"]),
        "embed" => names(&[embed::KERNEL]),
        "gemm_sm80" => {
            products(&|epilogue, element| gemm::Tile::ALL.map(|tile| tile.kernel_name(epilogue, element)).to_vec())
        }
        "gemm_sm90" => {
            products(&|epilogue, element| gemm_sm90::Tile::ALL.map(|tile| tile.kernel_name(epilogue, element)).to_vec())
        }
        "gemm_small_m_sm90" => products(&|epilogue, element| {
            let plan = |batch| gemm_small_m_sm90::Plan { tile: batch, splits: 1, across: 1 };
            gemm_small_m_sm90::Tile::ALL.map(|batch| plan(batch).kernel_name(epilogue, element)).to_vec()
        }),
        "gemv" => products(&|epilogue, element| {
            // A number of rows for each tile.
            [1, 8, 16].map(|rows| gemv::kernel_name(epilogue, element, rows)).to_vec()
        }),
        "gemv_normed" => {
            let of = |epilogue: &str, element: &str| {
                [NormVariant::Layer, NormVariant::Rms]
                    .map(|variant| gemv_normed::kernel_name(variant, epilogue, element))
                    .to_vec()
            };
            // Nothing that adds to the residual stream follows a norm.
            let added = Epilogue::BiasResidual.name();
            products(&|epilogue, element| if epilogue == added { Vec::new() } else { of(epilogue, element) })
        }
        "logprobs" => names(&["logprobs_rows"]),
        "norm" => {
            let of =
                |element: &&str| [NormVariant::Layer, NormVariant::Rms].map(|variant| variant.kernel_name(element));
            ELEMENTS.iter().flat_map(of).collect()
        }
        "random" => ELEMENTS.iter().map(|element| format!("random_fill_{element}")).collect(),
        "sample" => names(&[sample::KERNEL]),
        other => panic!("what does the launcher of kernels/{other}.cu load?"),
    }
}

#[test]
fn every_kernel_has_a_launcher_and_every_launcher_its_kernels() {
    if images().is_empty() {
        eprintln!("every_kernel_has_a_launcher…: skipped, this build has no kernels; run tools/install-nvcc");
    }
    for image in images() {
        let path = Path::new(env!("OUT_DIR")).join(image.name).with_extension("ptxas");
        let report = fs::read_to_string(&path).unwrap();
        // ptxas info    : Compiling entry function 'norm_layer_bf16' for 'sm_80'
        let entry = |line: &str| Some(line.split_once("Compiling entry function '")?.1.split_once('\'')?.0.to_owned());
        let compiled: BTreeSet<String> = report.lines().filter_map(entry).collect();
        assert_eq!(compiled, loaded(image.name), "kernels/{}.cu", image.name);
    }
}
