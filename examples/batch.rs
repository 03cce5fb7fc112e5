//! Many prompts through one engine: it computes as many at a time as it has room for, and hands each event over as it
//! comes. The list may be longer than memory, and samples of one prompt share its keys and values.
//!
//!     cargo run --release --example batch

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use rigel::engine::{Engine, Event, Request};
use rigel::sampling::SamplingParams;
use rigel::text::SpecialTokens;

const IN_FLIGHT: NonZeroUsize = NonZeroUsize::new(64).unwrap();
const SAMPLES: u32 = 2;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::builder().model("nano").build()?;
    let prompts: Vec<String> = (0..20).map(|i| format!("def function_{i}(x):\n    return x")).collect();
    let tokenizer = engine.tokenizer()?;
    let encoded: Vec<_> = prompts
        .iter()
        .map(|prompt| tokenizer.encode_prompt(prompt, SpecialTokens::AsText))
        .collect::<Result<_, _>>()?;
    let requests = encoded.into_iter().map(|prompt| Request {
        max_tokens: 12,
        n: SAMPLES,
        sampling: SamplingParams { temperature: 0.8, top_p: 0.95, seed: 7, ..SamplingParams::default() },
        stop: vec!["\n\n".to_owned()],
        ..Request::new(prompt)
    });
    let mut texts: BTreeMap<(usize, u32), String> = BTreeMap::new();
    engine.generate_all(IN_FLIGHT, requests, |number, event| match event {
        Event::Token(token) => texts.entry((number, token.sample)).or_default().push_str(&token.text),
        Event::Finished(finish) => texts.entry((number, finish.sample)).or_default().push_str(&finish.text),
        Event::Failed(failure) => eprintln!("prompt {number}: {failure}"),
        _ => {}
    });
    for ((number, sample), text) in texts {
        println!("{:?} #{sample}: {text:?}", prompts[number]);
    }
    let statistics = engine.statistics();
    println!("{} tokens in {} steps", statistics.completion_tokens, statistics.steps);
    Ok(())
}
