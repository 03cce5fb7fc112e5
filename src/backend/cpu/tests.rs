//! The whole backend, on random tiny models: against a forward pass in plain f64 loops, and against itself in other
//! company, chunks, pages and threads, bit for bit.

mod pages;

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::Range;

use super::testing::{DTYPES, Random, stored};
use super::{CpuBackend, CpuOptions, Isa};
use crate::backend::{Backend, BackendError, BackendHooks, Batch, SequenceRows, Token};
use crate::checkpoint::{Checkpoint, Dtype, ModelSource};
use crate::kv::{BlockTable, BlockTables, PageCache, PageId, PrefixCache};
use crate::model::ModelSpec;
use crate::text::TokenId;

/// Sizes of a model to make up.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    vocab: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    intermediate: usize,
    window: Option<u32>,
    /// The window of every second layer, where that is another one.
    second_window: Option<Option<u32>>,
    bias: bool,
    tied: bool,
    dtype: Dtype,
}

const SMALL: Sizes = Sizes {
    vocab: 61,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    head_dim: 16,
    intermediate: 50,
    window: Some(7),
    second_window: None,
    bias: true,
    tied: true,
    dtype: Dtype::Bf16,
};

impl Sizes {
    fn window_of(&self, layer: usize) -> Option<u32> {
        self.second_window.filter(|_| layer % 2 == 1).unwrap_or(self.window)
    }
}

/// Layers that see all positions between layers with a window.
const TWO_WINDOWS: Sizes = Sizes { layers: 3, second_window: Some(None), ..SMALL };

/// A made-up model: its checkpoint in a directory, and its weights as f64.
struct Model {
    sizes: Sizes,
    weights: HashMap<String, Vec<f64>>,
    checkpoint: Checkpoint,
    spec: ModelSpec,
    _directory: tempfile::TempDir,
}

const EPS: f64 = 1e-5;
const THETA: f64 = 10_000.0;

impl Model {
    fn new(sizes: Sizes, seed: u64) -> Model {
        let mut random = Random(seed);
        let hidden = sizes.heads * sizes.head_dim;
        let kv = sizes.kv_heads * sizes.head_dim;
        let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![sizes.vocab, hidden])];
        let norm = |name: String| [(format!("{name}.weight"), vec![hidden]), (format!("{name}.bias"), vec![hidden])];
        for i in 0..sizes.layers {
            let layer = format!("model.layers.{i}");
            shapes.extend(norm(format!("{layer}.input_layernorm")));
            shapes.extend(norm(format!("{layer}.post_attention_layernorm")));
            for (name, rows, columns) in [
                ("self_attn.q_proj", hidden, hidden),
                ("self_attn.k_proj", kv, hidden),
                ("self_attn.v_proj", kv, hidden),
                ("self_attn.o_proj", hidden, hidden),
                ("mlp.c_fc", sizes.intermediate, hidden),
                ("mlp.c_proj", hidden, sizes.intermediate),
            ] {
                shapes.push((format!("{layer}.{name}.weight"), vec![rows, columns]));
                if sizes.bias {
                    shapes.push((format!("{layer}.{name}.bias"), vec![rows]));
                }
            }
        }
        shapes.extend(norm("model.norm".to_owned()));
        if !sizes.tied {
            shapes.push(("lm_head.weight".to_owned(), vec![sizes.vocab, hidden]));
        }

        let mut weights = HashMap::new();
        let mut files = Vec::new();
        for (name, shape) in shapes {
            let mut values = random.units(shape.iter().product());
            match shape[..] {
                // Large enough that scores and activations leave the flat part of softmax and GELU.
                [_, columns] => values.iter_mut().for_each(|w| *w *= 1.5 / (columns as f32).sqrt()),
                _ if name.ends_with("norm.weight") => values.iter_mut().for_each(|w| *w = 1.0 + 0.3 * *w),
                _ => values.iter_mut().for_each(|w| *w *= 0.3),
            }
            let (bytes, rounded) = stored(&values, sizes.dtype);
            weights.insert(name.clone(), rounded.into_iter().map(f64::from).collect());
            files.push((name, shape, bytes));
        }
        let dtype = match sizes.dtype {
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::Bf16 => safetensors::Dtype::BF16,
        };
        let views = files.iter().map(|(name, shape, bytes)| {
            (name, safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap())
        });
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap())
            .unwrap();
        let config = serde_json::json!({
            "architectures": ["Starcoder2ForCausalLM"], "model_type": "starcoder2",
            "hidden_size": hidden, "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads, "intermediate_size": sizes.intermediate, "vocab_size": sizes.vocab,
            "hidden_act": "gelu_pytorch_tanh", "rope_theta": THETA, "max_position_embeddings": 512,
            "sliding_window": sizes.window, "norm_epsilon": EPS, "use_bias": sizes.bias,
            "tie_word_embeddings": sizes.tied, "bos_token_id": 0, "eos_token_id": 0,
        });
        std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
        let checkpoint = Checkpoint::open(&ModelSource::directory(directory.path()).unwrap()).unwrap();
        let mut spec = ModelSpec::from_checkpoint(&checkpoint).unwrap();
        for (index, layer) in spec.layers.iter_mut().enumerate() {
            layer.attention.window = sizes.window_of(index).and_then(NonZeroU32::new);
        }
        Model { sizes, weights, checkpoint, spec, _directory: directory }
    }

    fn backend(&self, setup: Setup) -> CpuBackend {
        let options = CpuOptions {
            threads: NonZeroUsize::new(setup.threads),
            page_size: NonZeroU32::new(setup.page_size).unwrap(),
            pages: setup.pages,
            max_rows: 128,
        };
        CpuBackend::with_isa(&self.checkpoint, self.spec.clone(), options, setup.isa).unwrap()
    }

    // The reference: reference/starcoder2.md §2 in f64, one row at a time, every key looked at.

    fn weight(&self, name: &str) -> &[f64] {
        &self.weights[name]
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = self.weight(&format!("{name}.weight"));
        let bias = self.weights.get(&format!("{name}.bias"));
        let dot = |row: usize| (0..x.len()).map(|i| weight[row * x.len() + i] * x[i]).sum::<f64>();
        (0..weight.len() / x.len()).map(|row| dot(row) + bias.map_or(0.0, |bias| bias[row])).collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let (weight, shift) = (self.weight(&format!("{name}.weight")), self.weight(&format!("{name}.bias")));
        (0..x.len()).map(|i| (x[i] - mean) / (variance + EPS).sqrt() * weight[i] + shift[i]).collect()
    }

    fn rotated(&self, x: &[f64], position: usize) -> Vec<f64> {
        let half = x.len() / 2;
        let mut out = x.to_vec();
        for p in 0..half {
            let angle = position as f64 / THETA.powf(2.0 * p as f64 / x.len() as f64);
            out[p] = x[p] * angle.cos() - x[p + half] * angle.sin();
            out[p + half] = x[p + half] * angle.cos() + x[p] * angle.sin();
        }
        out
    }

    /// Log-probabilities of every token after each of `ids`.
    fn reference(&self, ids: &[TokenId]) -> Vec<Vec<f64>> {
        let Sizes { heads, kv_heads, head_dim, .. } = self.sizes;
        let size = heads * head_dim;
        let embedding = self.weight("model.embed_tokens.weight");
        let mut hidden: Vec<Vec<f64>> =
            ids.iter().map(|id| embedding[id.0 as usize * size..][..size].to_vec()).collect();
        for layer in 0..self.sizes.layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            let window = self.sizes.window_of(layer);
            let x: Vec<Vec<f64>> = hidden.iter().map(|h| self.norm(&name("input_layernorm"), h)).collect();
            let heads_of = |part: &str, rotate: bool| -> Vec<Vec<Vec<f64>>> {
                let row = |(position, x): (usize, &Vec<f64>)| {
                    let y = self.linear(&name(part), x);
                    let head = |h: &[f64]| if rotate { self.rotated(h, position) } else { h.to_vec() };
                    y.chunks(head_dim).map(head).collect()
                };
                x.iter().enumerate().map(row).collect()
            };
            let q = heads_of("self_attn.q_proj", true);
            let k = heads_of("self_attn.k_proj", true);
            let v = heads_of("self_attn.v_proj", false);
            for (i, hidden) in hidden.iter_mut().enumerate() {
                let mut attn_out = Vec::new();
                for j in 0..heads {
                    let kv = j / (heads / kv_heads);
                    let sees = |p: usize| p <= i && window.is_none_or(|window| i - p < window as usize);
                    let seen: Vec<usize> = (0..ids.len()).filter(|&p| sees(p)).collect();
                    let score = |p: &usize| {
                        q[i][j].iter().zip(&k[*p][kv]).map(|(q, k)| q * k).sum::<f64>() / (head_dim as f64).sqrt()
                    };
                    let weights: Vec<f64> = seen.iter().map(|p| score(p).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    let mixed = |d: usize| seen.iter().zip(&weights).map(|(&p, w)| w / total * v[p][kv][d]).sum();
                    attn_out.extend((0..head_dim).map(mixed).collect::<Vec<f64>>());
                }
                let add = |hidden: &mut Vec<f64>, y: Vec<f64>| hidden.iter_mut().zip(y).for_each(|(h, y)| *h += y);
                add(hidden, self.linear(&name("self_attn.o_proj"), &attn_out));
                let mut intermediate =
                    self.linear(&name("mlp.c_fc"), &self.norm(&name("post_attention_layernorm"), hidden));
                for x in &mut intermediate {
                    *x = 0.5 * *x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (*x + 0.044715 * x.powi(3))).tanh());
                }
                add(hidden, self.linear(&name("mlp.c_proj"), &intermediate));
            }
        }
        let head = if self.sizes.tied { "model.embed_tokens" } else { "lm_head" };
        let row = |h: &Vec<f64>| log_softmax(&self.linear(head, &self.norm("model.norm", h)));
        hidden.iter().map(row).collect()
    }
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total = logits.iter().map(|x| (x - highest).exp()).sum::<f64>().ln() + highest;
    logits.iter().map(|x| x - total).collect()
}

#[derive(Debug, Clone, Copy)]
struct Setup {
    isa: Isa,
    threads: usize,
    page_size: u32,
    pages: u32,
}

fn best() -> Setup {
    Setup { isa: Isa::available().last().unwrap(), threads: 2, page_size: 4, pages: 200 }
}

fn ids(random: &mut Random, n: usize, vocab: usize) -> Vec<TokenId> {
    (0..n).map(|_| TokenId(random.below(vocab) as u32)).collect()
}

fn poison_all(backend: &mut CpuBackend) {
    for (group, pages) in backend.cache().clone().groups.iter().map(|group| group.pages).enumerate() {
        backend.poison(group, &(0..pages).map(PageId).collect::<Vec<_>>()).unwrap();
    }
}

/// Runs sequences side by side in chunks of random sizes, each keeping its own pages; freed pages are filled with
/// NaN. Returns the logits of every row of every sequence.
fn run(backend: &mut CpuBackend, sequences: &[Vec<TokenId>], mut chunk: impl FnMut() -> usize) -> Vec<Vec<Vec<f32>>> {
    let mut cache = PageCache::new(backend.cache(), PrefixCache::Off);
    let mut tables: Vec<BlockTables> = sequences.iter().map(|_| BlockTables::new(&cache)).collect();
    let mut logits: Vec<Vec<Vec<f32>>> = sequences.iter().map(|_| Vec::new()).collect();
    poison_all(backend);
    while logits.iter().zip(sequences).any(|(logits, ids)| logits.len() < ids.len()) {
        let mut token_ids = Vec::new();
        let mut parts = Vec::new();
        for (i, ids) in sequences.iter().enumerate() {
            let start = logits[i].len();
            let rows = chunk().min(ids.len() - start).min(backend.max_rows() - token_ids.len());
            if rows == 0 {
                continue;
            }
            let held = tables[i].as_slice().to_vec();
            tables[i].evict(start as u32, &mut cache);
            for (group, (held, kept)) in held.iter().zip(tables[i].as_slice()).enumerate() {
                let freed = held.pages().iter().copied().filter(|page| !kept.pages().contains(page));
                backend.poison(group, &freed.collect::<Vec<_>>()).unwrap();
            }
            tables[i].reserve((start + rows) as u32, &mut cache).unwrap();
            parts.push((i, token_ids.len()..token_ids.len() + rows, start as u32));
            token_ids.extend(&ids[start..start + rows]);
        }
        let rows: Vec<SequenceRows<'_>> = parts
            .iter()
            .map(|(i, rows, start)| SequenceRows { rows: rows.clone(), start: *start, tables: tables[*i].as_slice() })
            .collect();
        let all: Vec<usize> = (0..token_ids.len()).collect();
        backend.forward(&Batch { tokens: &Token::known(&token_ids), sequences: &rows, logits_rows: &all }).unwrap();
        for (i, rows, _) in &parts {
            rows.clone().for_each(|row| logits[*i].push(backend.logits(row).unwrap().to_vec()));
        }
    }
    logits
}

fn whole(backend: &mut CpuBackend, ids: &[TokenId]) -> Vec<Vec<f32>> {
    run(backend, &[ids.to_vec()], || usize::MAX).remove(0)
}

fn assert_same_bits(a: &[Vec<f32>], b: &[Vec<f32>], what: &str) {
    assert_eq!(a.len(), b.len());
    for (row, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(a.iter().all(|x| x.is_finite()), "{what}: row {row} is not finite");
        assert!(a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()), "{what}: row {row} differs");
    }
}

#[test]
fn log_probabilities_agree_with_f64() {
    let mut random = Random(10);
    let cases = [
        SMALL,
        Sizes { window: None, dtype: Dtype::F32, ..SMALL },
        Sizes { window: Some(1), dtype: Dtype::F16, bias: false, ..SMALL },
        Sizes { heads: 9, kv_heads: 1, head_dim: 8, tied: false, window: Some(70), ..SMALL },
        Sizes { heads: 2, kv_heads: 2, head_dim: 34, intermediate: 17, window: Some(64), dtype: Dtype::F32, ..SMALL },
        Sizes {
            heads: 12,
            kv_heads: 1,
            head_dim: 64,
            vocab: 97,
            intermediate: 131,
            layers: 1,
            window: Some(65),
            ..SMALL
        },
        Sizes { heads: 50, kv_heads: 1, head_dim: 4, layers: 1, dtype: Dtype::F16, ..SMALL },
        Sizes { heads: 4, kv_heads: 2, head_dim: 128, layers: 1, window: Some(32), ..SMALL },
        TWO_WINDOWS,
        Sizes { second_window: Some(Some(40)), ..TWO_WINDOWS },
    ];
    for (i, sizes) in cases.into_iter().enumerate() {
        let model = Model::new(sizes, i as u64);
        let ids = ids(&mut random, 100, sizes.vocab);
        let reference = model.reference(&ids);
        for isa in Isa::available() {
            let mut backend = model.backend(Setup { isa, ..best() });
            let mut worst: f64 = 0.0;
            for (row, logits) in whole(&mut backend, &ids).iter().enumerate() {
                let found = log_softmax(&logits.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
                for (found, exact) in found.iter().zip(&reference[row]) {
                    worst = worst.max((found - exact).abs());
                }
            }
            assert!(worst <= 1e-4, "{isa:?} {sizes:?}: log-probabilities are off by {worst}");
        }
    }
}

#[test]
fn bits_depend_on_neither_chunks_nor_company_nor_pages_nor_threads() {
    let mut random = Random(11);
    let cases = [
        SMALL,
        Sizes { window: None, ..SMALL },
        Sizes { heads: 6, kv_heads: 2, head_dim: 20, window: Some(33), dtype: Dtype::F32, ..SMALL },
        Sizes { heads: 9, kv_heads: 1, head_dim: 24, window: Some(70), dtype: Dtype::F16, ..SMALL },
        TWO_WINDOWS,
    ];
    for (i, sizes) in cases.into_iter().enumerate() {
        let model = Model::new(sizes, i as u64);
        let sequences: Vec<Vec<TokenId>> = [128, 77, 3, 40].iter().map(|&n| ids(&mut random, n, sizes.vocab)).collect();
        for isa in Isa::available() {
            let alone: Vec<_> = sequences
                .iter()
                .map(|ids| whole(&mut model.backend(Setup { isa, threads: 1, page_size: 64, pages: 8 }), ids))
                .collect();
            for (threads, page_size) in [(1, 1), (2, 3), (3, 16), (2, 64), (1, 100)] {
                let mut backend = model.backend(Setup { isa, threads, page_size, pages: 500 / page_size + 8 });
                let together = run(&mut backend, &sequences, || random.below(14));
                for (together, alone) in together.iter().zip(&alone) {
                    assert_same_bits(together, alone, &format!("{isa:?}, {threads} threads, pages of {page_size}"));
                }
                let decoded = run(&mut backend, &sequences[1..2], || 1);
                assert_same_bits(&decoded[0], &alone[1], "one row at a time");
            }
        }
    }
}

#[test]
fn avx2_and_avx512_give_the_same_bits() {
    if Isa::available().last() != Some(Isa::Avx512) {
        eprintln!("skipped: avx2_and_avx512_give_the_same_bits: this machine has no AVX-512");
        return;
    }
    let mut random = Random(12);
    for (i, dtype) in DTYPES.into_iter().enumerate() {
        let model = Model::new(Sizes { dtype, head_dim: 20, window: Some(40), ..SMALL }, i as u64);
        let ids = ids(&mut random, 90, model.sizes.vocab);
        let [a, b] = [Isa::Avx2, Isa::Avx512].map(|isa| whole(&mut model.backend(Setup { isa, ..best() }), &ids));
        assert_same_bits(&a, &b, "avx2 and avx512");
    }
}

#[test]
fn only_the_wanted_rows_have_logits() {
    let model = Model::new(SMALL, 1);
    let ids = ids(&mut Random(13), 20, SMALL.vocab);
    let mut backend = model.backend(best());
    let all = whole(&mut backend, &ids);
    let tables = [BlockTable::from_pages(0, (0..5).map(PageId).collect())];
    let rows = [SequenceRows { rows: 0..20, start: 0, tables: &tables }];
    backend.forward(&Batch { tokens: &Token::known(&ids), sequences: &rows, logits_rows: &[3, 19] }).unwrap();
    assert_same_bits(&[backend.logits(0).unwrap().to_vec()], &all[3..4], "row 3");
    assert_same_bits(&[backend.logits(1).unwrap().to_vec()], &all[19..20], "row 19");
    assert!(matches!(backend.logits(2), Err(BackendError::InvalidBatch(_))));
    backend.forward(&Batch { tokens: &[], sequences: &[], logits_rows: &[] }).unwrap();
    assert!(backend.logits(0).is_err());
}

#[test]
fn a_batch_that_makes_no_sense_is_refused() {
    let model = Model::new(SMALL, 1);
    let mut backend = model.backend(Setup { pages: 10, ..best() });
    let table =
        |first_block, pages: &[u32]| [BlockTable::from_pages(first_block, pages.iter().copied().map(PageId).collect())];
    let all: Vec<u32> = (0..10).collect();
    let (pages, late, one) = (table(0, &all), table(1, &all), table(0, &all[..1]));
    let (beyond, twice) = (table(0, &[0, 10]), table(0, &[3, 3]));
    let two = [pages[0].clone(), pages[0].clone()];
    let ids = vec![TokenId(1); 200];
    fn sequence(rows: Range<usize>, start: u32, tables: &[BlockTable]) -> SequenceRows<'_> {
        SequenceRows { rows, start, tables }
    }
    let mut refused = |token_ids: &[TokenId], sequences: &[SequenceRows<'_>], logits_rows: &[usize], why: &str| {
        let error = backend.forward(&Batch { tokens: &Token::known(token_ids), sequences, logits_rows }).unwrap_err();
        assert!(matches!(&error, BackendError::InvalidBatch(what) if what.contains(why)), "{error}, expected {why}");
        assert!(backend.logits(0).is_err());
    };
    refused(&[TokenId(61)], &[sequence(0..1, 0, &pages)], &[], "token id 61");
    refused(&ids[..129], &[sequence(0..129, 0, &pages)], &[], "129 rows");
    refused(&ids[..2], &[sequence(0..2, 0, &pages)], &[2], "logits of row 2");
    refused(&ids[..2], &[sequence(0..2, 0, &pages)], &[1, 1], "ascending");
    refused(&ids[..2], &[sequence(0..1, 0, &pages)], &[], "2 token ids");
    refused(&ids[..2], &[], &[], "2 token ids");
    refused(&ids[..2], &[sequence(1..2, 0, &pages)], &[], "expected to begin at 0");
    refused(&ids[..2], &[sequence(0..3, 0, &pages)], &[], "end by 2");
    refused(&ids[..2], &[sequence(0..2, u32::MAX, &pages)], &[], "overflow");
    refused(&ids[..2], &[sequence(0..2, 3, &one)], &[], "1 pages for 2 blocks");
    refused(&ids[..2], &[sequence(0..2, 0, &late)], &[], "first block");
    refused(&ids[..1], &[sequence(0..1, 9, &late)], &[], "first block is 1, block 0 is still visible");
    refused(&ids[..5], &[sequence(0..5, 0, &beyond)], &[], "page 10 of 10");
    refused(&ids[..5], &[sequence(0..5, 0, &twice)], &[], "page 3 is written twice");
    let both = [sequence(0..1, 0, &pages), sequence(1..2, 0, &pages)];
    refused(&ids[..2], &both, &[], "page 0 is written twice");
    refused(&ids[..2], &[sequence(0..2, 0, &two)], &[], "2 block tables for 1 groups");
}

#[test]
fn memory_that_cannot_be_had_is_an_error() {
    let model = Model::new(SMALL, 1);
    let options = |pages, max_rows| CpuOptions {
        threads: NonZeroUsize::new(1),
        page_size: NonZeroU32::new(1 << 30).unwrap(),
        pages,
        max_rows,
    };
    for (pages, max_rows, what) in [(u32::MAX, 1, "keys"), (0, usize::MAX / 2, "activations")] {
        let error = CpuBackend::new(&model.checkpoint, model.spec.clone(), options(pages, max_rows)).err().unwrap();
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn what_is_planned_is_what_is_allocated() {
    for sizes in [SMALL, TWO_WINDOWS] {
        planned_is_allocated(sizes);
    }
}

fn planned_is_allocated(sizes: Sizes) {
    let model = Model::new(sizes, 1);
    let options =
        CpuOptions { threads: NonZeroUsize::new(3), page_size: NonZeroU32::new(8).unwrap(), pages: 7, max_rows: 33 };
    let pages_within = |memory, least| CpuBackend::pages_within(&model.spec, &options, Some(memory), least, 1000);
    let bytes = CpuBackend::planned_bytes(&model.spec, &options);
    let backend = CpuBackend::new(&model.checkpoint, model.spec.clone(), options.clone()).unwrap();
    assert_eq!(backend.allocated_bytes(), bytes);
    // So many pages fit so much memory, and a byte less is a page less.
    assert_eq!(pages_within(bytes, 7).unwrap(), 7);
    assert_eq!(pages_within(bytes - 1, 1).unwrap(), 6);
    assert_eq!(pages_within(u64::MAX, 1).unwrap(), 1000);
    let error = pages_within(bytes - 1, 7).unwrap_err();
    assert!(matches!(error, BackendError::OutOfMemory { needed, .. } if needed == bytes), "{error}");
}

#[test]
fn an_instruction_set_that_is_not_there_is_an_error() {
    assert_eq!(Isa::choose(Some("portable")).unwrap(), Isa::Portable);
    assert_eq!(Isa::choose(Some("")).unwrap(), Isa::available().last().unwrap());
    let error = Isa::choose(Some("sse9")).unwrap_err().to_string();
    assert!(error.starts_with("RIGEL_CPU_ISA=sse9: this machine has portable"), "{error}");
}
