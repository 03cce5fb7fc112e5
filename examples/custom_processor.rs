//! A program's own rule over the logits: here every token with an upper-case letter is forbidden, and the text is held
//! to a number of lines.
//!
//!     cargo run --release --example custom_processor

use std::sync::Arc;

use rigel::engine::{Engine, Request};
use rigel::sampling::{LogitsContext, LogitsProcessor};
use rigel::text::{SpecialOutput, SpecialTokens, TokenId, Tokenizer};

/// Forbids tokens, and ends the text after some lines.
#[derive(Debug)]
struct House {
    forbidden: Vec<TokenId>,
    newlines: Vec<TokenId>,
    max_lines: usize,
    end: TokenId,
}

impl House {
    fn new(tokenizer: &Tokenizer, max_lines: usize, end: TokenId) -> House {
        let with = |wanted: fn(char) -> bool| -> Vec<TokenId> {
            let ids = (0..tokenizer.vocab_size() as u32).map(TokenId);
            let text = |id: TokenId| tokenizer.decode(&[id], SpecialOutput::Keep).unwrap_or_default();
            ids.filter(|id| text(*id).contains(wanted)).collect()
        };
        House { forbidden: with(char::is_uppercase), newlines: with(|c| c == '\n'), max_lines, end }
    }
}

impl LogitsProcessor for House {
    fn process(&self, context: &LogitsContext<'_>, logits: &mut [f32]) {
        for id in &self.forbidden {
            logits[id.0 as usize] = f32::NEG_INFINITY;
        }
        // Lines are counted from the output itself, so one processor serves any number of requests.
        if context.output.iter().filter(|id| self.newlines.contains(id)).count() >= self.max_lines {
            logits.fill(f32::NEG_INFINITY);
            logits[self.end.0 as usize] = 0.0;
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::builder().model("nano").build()?;
    let tokenizer = engine.tokenizer()?;
    let end = *engine.eos_token_ids().first().ok_or("the model has no end-of-sequence token")?;
    let processor = Arc::new(House::new(tokenizer, 3, end));
    let prompt = tokenizer.encode_prompt("class Stack:\n    def push(self, item):", SpecialTokens::AsText)?;
    let request = Request { max_tokens: 80, processor: Some(processor), ..Request::new(prompt) };
    let completion = engine.generate(request)?.wait()?;
    println!("{}", completion.text);
    Ok(())
}
