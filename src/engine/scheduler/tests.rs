//! The scheduler without a backend: every step it plans is possible, and everybody comes to an end.

use std::num::NonZeroU32;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::checkpoint::{Config, Dtype};
use crate::engine::generation::{EventSinks, Generation};
use crate::engine::output::Verdict;
use crate::engine::{Limits, Request};
use crate::kv::{CacheGroup, KvFormat, PrefixCache};
use crate::model::ModelSpec;
use crate::sampling::{Sampled, TokenLogprobs};
use crate::text::TokenId;

const POSITIONS: usize = 120;

fn limits(cache: CacheGeometry) -> Limits {
    let json = serde_json::json!({
        "model_type": "starcoder2", "vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 64,
        "max_position_embeddings": POSITIONS, "eos_token_id": 49, "bos_token_id": 49,
    });
    let spec = ModelSpec::from_config(&Config::parse(json.to_string().as_bytes(), "config.json").unwrap()).unwrap();
    Limits {
        spec,
        cache,
        tokenizer: None,
        tokenizer_origin: String::new(),
        eos_token_ids: [TokenId(49)].into(),
        chat_eos_token_ids: [TokenId(49)].into(),
    }
}

#[derive(Debug, Clone)]
struct Asked {
    prompt: usize,
    max_tokens: u32,
    n: u32,
    scored: bool,
}

fn asked() -> impl Strategy<Value = Asked> {
    (1usize..60, 0u32..50, prop::sample::select(vec![1u32, 1, 3]), prop::sample::select(vec![false, false, true]))
        .prop_map(|(prompt, max_tokens, n, scored)| Asked { prompt, max_tokens, n, scored })
}

/// A pending under way: whose, and how many drafts come before it.
struct InFlight {
    id: SequenceId,
    drafted: usize,
}

fn sampled(token: u32) -> Sampled {
    Sampled { token: TokenId(token), logprobs: None }
}

/// Checks a step that was just planned.
fn check(scheduler: &Scheduler, limits: StepLimits, in_flight: &[InFlight]) -> Result<(), TestCaseError> {
    let (mut rows, mut logits) = (0, 0);
    for part in scheduler.parts() {
        let sequence = scheduler.get(part.id).expect("a live sequence");
        let wanted = sequence.logits_positions(&part.rows);
        rows += part.rows.len();
        logits += wanted.len();
        prop_assert!(!part.rows.is_empty() && part.rows.start == sequence.computed());
        prop_assert!(part.drafted == 0 || sequence.in_flight.is_none() && !sequence.is_scoring());
        // Nobody goes on from drafts that are not verified.
        prop_assert!(in_flight.iter().all(|pending| pending.id != part.id || pending.drafted == 0));
        let targets = sequence.targets(&part.rows).len();
        prop_assert!(targets == 0 || targets == wanted.len());
        prop_assert!(
            sequence.tokens().len() + part.drafted
                <= sequence.request.prompt.len() + sequence.request.max_tokens as usize
        );
        // Every position that a row sees has a page in each group, and so has every row.
        let size = scheduler.cache.page_size().get();
        prop_assert_eq!(sequence.blocks.as_slice().len(), scheduler.cache.pools().len());
        for (table, pool) in sequence.blocks.as_slice().iter().zip(scheduler.cache.pools()) {
            let first = crate::kv::first_visible(part.rows.start as u32, pool.window()) / size;
            for block in first..=(part.rows.end as u32 - 1) / size {
                prop_assert!(table.page(block).is_some(), "block {block} of {part:?}");
            }
        }
    }
    prop_assert!(rows <= limits.rows && logits <= limits.logits_rows && scheduler.parts().len() <= limits.sequences);
    let scores: Vec<bool> = scheduler
        .parts()
        .iter()
        .map(|part| scheduler.get(part.id).is_some_and(|sequence| sequence.is_scoring()))
        .collect();
    prop_assert!(scores.is_sorted_by_key(|scores| !scores), "those that score come first");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_step_is_possible_and_all_end(
        windows in prop::collection::vec(prop::option::of(1u32..50), 1..3),
        page_size in 1u32..9,
        room in prop::option::of(0.2f64..2.0),
        rows in 1usize..30,
        prompt_rows in 1usize..30,
        logits_rows in 1usize..30,
        sequences in 1usize..12,
        ahead in any::<bool>(),
        drafts in any::<bool>(),
        requests in prop::collection::vec((asked(), 0usize..30), 1..30),
        luck in prop::collection::vec(0u32..3, 64),
        cancelled in prop::collection::vec(0usize..400, 0..6),
    ) {
        // Any number of pages, or exactly those of the largest request.
        let largest = requests.iter().map(|(asked, _)| {
            asked.prompt + (asked.max_tokens as usize).min(POSITIONS - asked.prompt).saturating_sub(1)
        });
        let largest = largest.max().unwrap_or(1) as u32;
        let group = |window: &Option<u32>| {
            let window = window.and_then(NonZeroU32::new);
            let needed = |positions| CacheGeometry::pages_for_sequence(page_size, positions, window, 1);
            let pages = match room {
                Some(room) => ((f64::from(needed(POSITIONS as u32)) * room) as u32).max(1),
                None => needed(largest),
            };
            CacheGroup { window, pages, format: KvFormat::Dense(Dtype::F32), page_bytes: 0 }
        };
        let page_size = NonZeroU32::new(page_size).unwrap();
        let geometry = CacheGeometry { page_size, groups: windows.iter().map(group).collect() };
        let cache = PageCache::new(&geometry, PrefixCache::On);
        let limits = limits(geometry);
        let of_step = StepLimits { rows, prompt_rows, logits_rows, sequences: sequences.min(rows).min(logits_rows) };
        let speculation = if drafts { Speculation::PromptLookup } else { Speculation::Off };
        let mut scheduler = Scheduler::new(of_step, cache, speculation);
        let sinks = EventSinks::default();
        let mut luck = luck.into_iter().cycle();
        let mut coming: VecDeque<(Asked, usize)> = requests.into();
        let mut waiting_for: Vec<Generation> = Vec::new();
        let mut in_flight: Vec<InFlight> = Vec::new();
        for step in 0.. {
            prop_assert!(step < 40_000, "no end");
            while coming.front().is_some_and(|(_, after)| *after <= step) {
                let Some((asked, _)) = coming.pop_front() else { break };
                let prompt = (0..asked.prompt).map(|i| TokenId(i as u32 * 7 % 5)).collect();
                let request = Request {
                    max_tokens: asked.max_tokens.min((POSITIONS - asked.prompt) as u32),
                    n: asked.n,
                    prompt_logprobs: asked.scored.then_some(0),
                    ..Request::new(prompt)
                };
                if request.check(&limits.spec, &limits.cache).is_err() {
                    continue;
                }
                let (request, now) = (Arc::new(request), Instant::now());
                let (sink, generation) = sinks.open(asked.n);
                waiting_for.push(generation);
                scheduler.submit(
                    (0..asked.n).map(|i| Sequence::new(request.clone(), i, &limits, None, sink.clone(), now)),
                );
            }
            if cancelled.contains(&step) && !waiting_for.is_empty() {
                drop(waiting_for.swap_remove(step % waiting_for.len()));
                scheduler.sweep_closed();
            }
            if scheduler.is_idle() {
                if coming.is_empty() {
                    break;
                }
                in_flight.clear();
                continue;
            }
            // As the worker does: tokens that are being drawn are waited for where they have to be known.
            let waited = !in_flight.is_empty();
            let finish = |scheduler: &mut Scheduler, in_flight: &mut Vec<InFlight>, luck: &mut dyn Iterator<Item = u32>| {
                for InFlight { id, drafted } in in_flight.drain(..) {
                    let Some(sequence) = scheduler.get_mut(id) else { continue };
                    sequence.in_flight = None;
                    // Some drafts are right.
                    let right = (luck.next().unwrap_or(0) as usize).min(drafted);
                    let draft = sequence.lookup.as_ref().map_or(Vec::new(), |lookup| lookup.last_draft().to_vec());
                    let mut verdict = Verdict::GoOn;
                    for token in draft.iter().take(right).map(|id| id.0).chain([luck.next().unwrap_or(0)]) {
                        if verdict == Verdict::GoOn {
                            verdict = sequence.accept(sampled(token), Instant::now());
                        }
                    }
                    let computed = sequence.tokens().len() - 1;
                    if verdict == Verdict::Ended {
                        scheduler.remove(id);
                    } else if drafted > 0 {
                        scheduler.advance(id, computed);
                    }
                }
            };
            if !ahead || scheduler.speculates() || in_flight.iter().any(|pending| pending.drafted > 0) {
                finish(&mut scheduler, &mut in_flight, &mut luck);
            }
            if scheduler.is_idle() {
                continue;
            }
            scheduler.plan();
            check(&scheduler, of_step, &in_flight)?;
            prop_assert!(waited || !scheduler.parts().is_empty(), "no sequence can go on");
            let parts = scheduler.parts().to_vec();
            let samples_after: Vec<bool> = parts
                .iter()
                .map(|part| scheduler.get(part.id).is_some_and(|s| s.samples_after(&part.rows)))
                .collect();
            for part in &parts {
                scheduler.on_submitted(part.id, part.rows.clone(), part.drafted);
            }
            finish(&mut scheduler, &mut in_flight, &mut luck);
            for (part, samples_after) in parts.iter().zip(samples_after) {
                let Some(sequence) = scheduler.get_mut(part.id) else { continue };
                let targets = sequence.targets(&part.rows).len();
                if targets > 0 {
                    sequence.report_prompt(vec![TokenLogprobs { target: None, top: Vec::new() }; targets]);
                }
                if samples_after {
                    sequence.in_flight = Some(in_flight.len() as u32);
                    in_flight.push(InFlight { id: part.id, drafted: part.drafted });
                } else if sequence.request.max_tokens == 0 && sequence.has_prompt() && !sequence.is_scoring() {
                    sequence.output.prompt_done(Instant::now());
                    scheduler.remove(part.id);
                }
            }
        }
        prop_assert_eq!(scheduler.cache.available(), scheduler.cache.pages());
        sinks.flush();
        for generation in waiting_for {
            prop_assert!(generation.wait_all().is_ok());
        }
    }
}
