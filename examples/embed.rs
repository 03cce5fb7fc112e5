//! The engine inside another program: the bundled model continues a prompt, printed as it comes.
//!
//!     cargo run --release --example embed

use rigel::engine::{Engine, Event, Request};
use rigel::text::SpecialTokens;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A directory or a hub id takes the place of "nano".
    let engine = Engine::builder().model("nano").build()?;
    let prompt = engine.tokenizer()?.encode_prompt("def fibonacci(n):", SpecialTokens::AsText)?;
    for event in engine.generate(Request { max_tokens: 64, ..Request::new(prompt) })? {
        match event {
            Event::Token(token) => print!("{}", token.text),
            Event::Finished(finish) => println!("{}", finish.text),
            Event::Failed(failure) => return Err(failure.into()),
            _ => {}
        }
    }
    Ok(())
}
