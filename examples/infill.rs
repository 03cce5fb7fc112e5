//! Code for a gap between two pieces of code.
//!
//!     cargo run --release --example infill

use rigel::engine::{Engine, Request};
use rigel::text::{Infill, RepoContext};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::builder().model("nano").build()?;
    let tokenizer = engine.tokenizer()?;
    let (prefix, suffix) = ("def area(width, height):\n    return ", "\n\n\nprint(area(3, 4))\n");
    let infill = Infill::from_tokenizer(tokenizer)?;
    let prompt = infill.prompt(tokenizer, prefix, suffix, &RepoContext::default())?;
    let request = Request { max_tokens: 24, stop_token_ids: infill.stop_token_ids(), ..Request::new(prompt) };
    let middle = engine.generate(request)?.wait()?.text;
    println!("{prefix}[{middle}]{suffix}");
    Ok(())
}
