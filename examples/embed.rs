//! The engine inside another program: the bundled model continues a prompt, first as a whole and then as it comes.
//!
//!     cargo run --release --example embed

use rigel::engine::{Engine, Event};
use rigel::sampling::SamplingParams;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A directory or a hub id takes the place of "nano".
    let engine = Engine::builder().model("nano").build()?;
    let completion = engine.complete("def fibonacci(n):")?;
    println!("{} ({})", completion.text, completion.reason.as_str());

    let sampling = SamplingParams::default().temperature(0.8).top_p(0.95).seed(7);
    let request = engine.request("def quicksort(xs):")?.max_tokens(64).stop("\ndef ").sampling(sampling);
    for event in engine.generate(request)? {
        match event {
            Event::Token(token) => print!("{}", token.text),
            Event::Finished(finish) => println!("{}", finish.text),
            Event::Failed(failure) => return Err(failure.into()),
            _ => {}
        }
    }
    Ok(())
}
