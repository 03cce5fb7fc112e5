//! The `rigel` binary from outside: what it prints, where, and how it exits. Runs on the bundled nano and on broken
//! copies of it, and depends on the text of neither.

mod bad_input;
mod batch;
mod batch_kill;
mod bench;
mod chat;
mod checkpoints;
mod common;
mod completions;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod doctor;
mod environment;
mod generate;
mod help;
#[cfg(feature = "hub")]
mod hub;
mod infill;
mod inspect;
#[cfg(unix)]
mod mapping;
mod models;
#[cfg(feature = "cuda")]
mod plan;
#[cfg(feature = "cuda")]
mod profile;
mod respond;
mod score;
#[cfg(unix)]
mod signals;
mod start;
mod synth;
mod tokenize;
