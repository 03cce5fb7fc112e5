//! **Rigel** runs StarCoder2 code models from an unmodified Hugging Face checkpoint directory: one library, one
//! binary, no Python.
//!
//! ```
//! use rigel::engine::Engine;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::builder().model("nano").build()?;
//! println!("{}", engine.complete("def fibonacci(n):")?.text);
//! # Ok(())
//! # }
//! ```
//!
//! [`engine::Engine`] runs any number of requests together. [`checkpoint::Checkpoint`], [`text::Tokenizer`] and
//! [`model::ModelSpec`] are useful on their own. `examples/` has more: embedding, batches, a logits processor, infill.
//!
//! # Layers
//!
#![doc = include_str!("../docs/layers.svg")]
//!
//! Each module imports only from the layers below its own (checked by `tests/layering.rs`). `docs/architecture.md`
//! follows a request through them and says which file does what.
//!
//! | layer | module | contents |
//! |---|---|---|
//! | 6 | `main.rs`, `cli/` | the `rigel` command: arguments, progress bars, output |
//! | 5 | [`bench`](mod@bench) | measurements: reports, kernels against their limits, models in llama-bench's terms; imports from `engine` |
//! | 5 | [`openai`] | OpenAI's request and response bodies; imports from `engine` |
//! | 5 | [`engine`] | [`engine::Engine`], [`engine::Request`], [`engine::Event`]: scheduling and the generation loop |
//! | 4 | [`backend`] | one forward pass over a ragged batch: the trait, [`backend::cpu`] and `backend::cuda` |
//! | 3 | [`kv`] | the paged KV cache: pages, block tables, window eviction, prefix cache |
//! | 3 | [`sampling`] | sampling parameters, logits processors, the reference sampler |
//! | 2 | [`model`] | networks as data: layers, shapes, counts |
//! | 2 | [`text`] | tokenizer, chat template, infill, stop strings |
//! | 2 | `hub` | downloads from the Hugging Face hub into its local cache |
//! | 1 | [`checkpoint`] | config.json and memory-mapped safetensors, checked, never copied |
//! | 0 | [`host`] | memory limits and file systems of the machine and its container |

#![warn(missing_docs)]
// `backend`, `bench` and `checkpoint` have unsafe code: kernels, devices and memory maps.

pub mod backend;
pub mod bench;
pub mod checkpoint;
#[forbid(unsafe_code)]
pub mod engine;
#[forbid(unsafe_code)]
pub mod host;
#[cfg(feature = "hub")]
#[forbid(unsafe_code)]
pub mod hub;
#[forbid(unsafe_code)]
pub mod kv;
#[forbid(unsafe_code)]
pub mod model;
#[forbid(unsafe_code)]
pub mod openai;
#[forbid(unsafe_code)]
pub mod sampling;
#[forbid(unsafe_code)]
pub mod text;
