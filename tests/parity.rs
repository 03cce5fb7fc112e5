//! The CPU backend against Hugging Face transformers in float32: token log-probabilities, best tokens, and greedy
//! continuations far past the window, on every checkpoint of `tests/goldens` (made by `tools/goldens`).
//!
//! The last test turns this one on its head: a checkpoint changed in one place must fail it.

#[path = "common/goldens.rs"]
mod goldens;

use std::path::Path;

use goldens::{Cut, Scored, WHOLE};
use rigel::backend::Device;
use rigel::engine::Completion;

/// Largest |Δ log-probability| allowed.
const TOLERANCE: f32 = 2e-3;
/// Greedy tokens must be equal where the reference's two best logits lie further apart than this.
const CLEAR_MARGIN: f32 = 1e-2;

/// The largest |Δ log-probability| over the sequence's tokens, and over the five best at each position.
fn largest_difference(expected: &Scored, found: &Completion) -> f32 {
    let mut largest = 0f32;
    for (i, token) in found.prompt.iter().enumerate() {
        if let (Some(found), Some(expected)) = (token.logprob, expected.logprobs[i]) {
            largest = largest.max((found - expected).abs());
        }
        for (rank, &(id, logprob)) in token.top.iter().enumerate() {
            // By rank, not by id: tokens that tie may change places.
            largest = largest.max((logprob - expected.next_top_logprobs[i][rank]).abs());
            if let Some(place) = expected.next_top_ids[i].iter().position(|&other| other == id) {
                largest = largest.max((logprob - expected.next_top_logprobs[i][place]).abs());
            }
        }
    }
    largest
}

#[test]
fn log_probabilities_and_greedy_tokens_agree_with_transformers() {
    let (mut scored, mut greedy_tokens) = (0, 0);
    for (name, directory) in goldens::checkpoints() {
        let golden = goldens::read_golden(&name);
        let mut largest = 0f32;
        // The results may not depend on how the engine cuts its work.
        for cut in [WHOLE, Cut { page_size: 7, prefill_chunk: 5 }] {
            let engine = goldens::engine(&directory, Device::Cpu, cut);
            for (sequence, found) in golden.sequences.iter().zip(goldens::score(&engine, &golden.sequences)) {
                let difference = largest_difference(sequence, &found);
                assert!(difference <= TOLERANCE, "{name}, {}, {cut:?}: off by {difference}", sequence.name);
                largest = largest.max(difference);
                scored += sequence.ids.len() - 1;
            }
            for (greedy, found) in golden.greedy.iter().zip(goldens::continue_greedily(&engine, &golden.greedy)) {
                let place = format!("{name}, {}, {cut:?}", greedy.name);
                greedy_tokens +=
                    goldens::agreement(&found.token_ids, &greedy.ids, &greedy.margins, CLEAR_MARGIN, &place);
            }
        }
        println!("{name}: largest |Δ log-probability| {largest:.2e}");
    }
    assert!(scored > 2 * 2500 && greedy_tokens > 2000, "only {scored} tokens scored, {greedy_tokens} greedy");
}

/// Does the changed checkpoint fail its golden by at least twice the tolerance?
fn is_caught(name: &str, directory: &Path) -> bool {
    let engine = goldens::engine(directory, Device::Cpu, WHOLE);
    let sequences = goldens::read_golden(name).sequences;
    let found = goldens::score(&engine, &sequences);
    sequences.iter().zip(&found).any(|(sequence, found)| largest_difference(sequence, found) >= 2.0 * TOLERANCE)
}

#[test]
fn a_change_in_one_place_is_caught() {
    for mutation in goldens::mutations() {
        let caught = goldens::random_checkpoints()
            .iter()
            .any(|(name, _)| mutation.of(name).is_some_and(|copy| is_caught(name, copy.path())));
        assert!(caught, "{}: no golden notices", mutation.name);
    }
}
