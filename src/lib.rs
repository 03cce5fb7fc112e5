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
//! [`engine::Engine`] runs any number of requests together; [`checkpoint::Checkpoint`], [`text::Tokenizer`] and
//! [`model::ModelSpec`] are of use alone. More to start from is in `examples/`: embedding, batches, a logits processor,
//! infill.
//!
//! # The house
//!
#![doc = include_str!("../docs/house.svg")]
//!
//! Each floor imports only from those below it (`tests/floors.rs` holds the crate to it):
//!
//! | floor | room | what lives there |
//! |---|---|---|
//! | 6 | `main.rs`, `cli/` | the `rigel` command: arguments, progress bars, printing |
//! | 5 | [`bench`](mod@bench) | measuring: reports, kernels against their limits, models in llama-bench's terms; imports from `engine` |
//! | 5 | [`openai`] | OpenAI's wire types, turned into requests and back; imports from `engine`, on its own floor |
//! | 5 | [`engine`] | [`engine::Engine`], [`engine::Request`], [`engine::Event`]: the only generation loop |
//! | 4 | [`backend`] | one forward pass over a ragged batch: the trait, [`backend::cpu`] and `backend::cuda` |
//! | 3 | [`kv`] | pages, block tables, window eviction; [`sampling`]: parameters, processors, draws |
//! | 2 | [`model`] | what the network is: shapes and counts; [`text`]: tokenizer, chat template, infill, stops |
//! | 2 | `hub` | downloads models from the Hugging Face hub into its local cache |
//! | 1 | [`checkpoint`] | config.json and safetensors over a memory map, checked, never copied |
//! | 0 | [`host`] | what the machine and its container give: memory, and the kind of a file system |

#![warn(missing_docs)]

pub mod backend;
pub mod bench;
pub mod checkpoint;
pub mod engine;
pub mod host;
#[cfg(feature = "hub")]
pub mod hub;
pub mod kv;
pub mod model;
pub mod openai;
pub mod sampling;
pub mod text;
