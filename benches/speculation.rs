//! What prompt lookup would have drafted of real answers: published completions are replayed token by token after their
//! prompts, with the tokenizer they were made with. No model runs; what counts is how many steps are saved.
//!
//!     cargo bench --bench speculation -- TOKENIZER.json COMPLETIONS.jsonl
//!
//! A line of COMPLETIONS.jsonl has the fields `prompt_ids_no_bos` (ids) and `expected_completion` (text).

use std::fs::File;
use std::io::{BufRead, BufReader};

use rigel::engine::PromptLookup;
use rigel::text::{SpecialTokens, TokenId, Tokenizer};

#[derive(serde::Deserialize)]
struct Line {
    task_id: String,
    prompt_ids_no_bos: Vec<TokenId>,
    expected_completion: String,
}

/// What became of the drafts of some texts.
#[derive(Default)]
struct Tally {
    texts: u64,
    tokens: u64,
    steps: u64,
    drafted_steps: u64,
    drafted: u64,
    accepted: u64,
}

fn main() {
    // Cargo adds an option of its own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let [tokenizer, completions] = &arguments[..] else {
        println!("speculation: skipped, no files; cargo bench --bench speculation -- TOKENIZER.json COMPLETIONS.jsonl");
        return;
    };
    let tokenizer = Tokenizer::from_bytes(&std::fs::read(tokenizer).expect("a readable tokenizer.json"), tokenizer)
        .expect("a tokenizer");
    let lines = BufReader::new(File::open(completions).expect("a readable file of completions")).lines();
    println!("most drafted  text         texts   tokens  tokens/step  drafted steps  accepted of drafted");
    let lines: Vec<Line> =
        lines.map(|line| serde_json::from_str(&line.expect("a line")).expect("the fields of a line")).collect();
    for most in [3, 7, 15] {
        for family in ["HumanEval", "Mbpp", ""] {
            let mut tally = Tally::default();
            for line in lines.iter().filter(|line| line.task_id.starts_with(family)) {
                let completion = tokenizer
                    .encode(&line.expected_completion, SpecialTokens::AsText)
                    .expect("text that can be encoded");
                tally.replay(&line.prompt_ids_no_bos, &completion, most);
            }
            if tally.texts > 0 {
                tally.print(most, if family.is_empty() { "all" } else { family });
            }
        }
    }
}

impl Tally {
    /// Goes through `completion` as the engine does: each step computes the last token and a draft, and yields the
    /// drafted tokens that were right and one more.
    fn replay(&mut self, prompt: &[TokenId], completion: &[TokenId], most: usize) {
        let mut lookup = PromptLookup::default();
        let mut tokens = prompt.to_vec();
        let end = prompt.len() + completion.len();
        let truth: Vec<TokenId> = prompt.iter().chain(completion).copied().collect();
        // The first token comes with the prompt.
        tokens.extend(completion.first());
        while tokens.len() < end {
            let draft = lookup.draft(&tokens, most.min(end - tokens.len() - 1));
            let (drafted, right) =
                (draft.len(), draft.iter().zip(&truth[tokens.len()..]).take_while(|(a, b)| a == b).count());
            tokens.extend_from_slice(&truth[tokens.len()..tokens.len() + right + 1]);
            if drafted > 0 {
                lookup.verified(drafted, right, tokens.len());
            }
            self.steps += 1;
            self.drafted_steps += u64::from(drafted > 0);
            self.drafted += drafted as u64;
            self.accepted += right as u64;
        }
        self.texts += 1;
        self.tokens += completion.len().saturating_sub(1) as u64;
    }

    fn print(&self, most: usize, family: &str) {
        let Tally { texts, tokens, steps, drafted_steps, drafted, accepted } = *self;
        println!(
            "{most:>12}  {family:<11}  {texts:>5}  {tokens:>7}  {:>11.2}  {:>11.0} %  {:>17.0} %",
            tokens as f64 / steps as f64,
            100.0 * drafted_steps as f64 / steps as f64,
            100.0 * accepted as f64 / drafted as f64,
        );
    }
}
