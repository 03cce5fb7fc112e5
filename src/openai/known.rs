//! The names of the fields that bodies have, to tell a misspelt one from one that is the caller's own.

/// What is to be continued.
const INPUTS: [&str; 2] = ["messages", "prompt"];

/// What changes an answer.
const OPTIONS: [&str; 26] = [
    "suffix",
    "add_generation_prompt",
    "allowed_token_ids",
    "cache_salt",
    "echo",
    "frequency_penalty",
    "ignore_eos",
    "include_stop_str_in_output",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "min_p",
    "min_tokens",
    "n",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "skip_special_tokens",
    "stop",
    "stop_token_ids",
    "temperature",
    "top_k",
    "top_logprobs",
    "top_p",
    "truncate_prompt_tokens",
];

/// What is read, and changes no answer or is refused where it asks for something.
const OTHERS: [&str; 33] = [
    "best_of",
    "model",
    "stream",
    "stream_options",
    "audio",
    "bad_words",
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
    "documents",
    "function_call",
    "functions",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "length_penalty",
    "logits_processors",
    "modalities",
    "prediction",
    "priority",
    "prompt_embeds",
    "prompt_logprobs",
    "reasoning_effort",
    "response_format",
    "service_tier",
    "store",
    "structured_outputs",
    "tool_choice",
    "tools",
    "use_beam_search",
    "verbosity",
    "web_search_options",
];

/// What clients send besides, and what is passed over on purpose.
const PASSED_OVER: [&str; 6] = [
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
    "user",
    "spaces_between_special_tokens",
];

/// What other programs call some of the fields: the other name, and the field's.
pub const SYNONYMS: [(&str, &str); 26] = [
    ("candidate_count", "n"),
    ("do_sample", "temperature"),
    ("eos_token_id", "stop_token_ids"),
    ("max_gen_len", "max_tokens"),
    ("max_gen_tokens", "max_tokens"),
    ("max_gen_toks", "max_tokens"),
    ("max_length", "max_tokens"),
    ("max_new_tokens", "max_tokens"),
    ("max_output_tokens", "max_tokens"),
    ("max_tokens_to_sample", "max_tokens"),
    ("min_length", "min_tokens"),
    ("min_new_tokens", "min_tokens"),
    ("n_predict", "max_tokens"),
    ("n_probs", "logprobs"),
    ("num_generations", "n"),
    ("num_predict", "max_tokens"),
    ("num_return_sequences", "n"),
    ("num_samples", "n"),
    ("random_seed", "seed"),
    ("repeat_penalty", "repetition_penalty"),
    ("return_full_text", "echo"),
    ("stop_sequences", "stop"),
    ("stop_strings", "stop"),
    ("stop_words", "stop"),
    ("temp", "temperature"),
    ("until", "stop"),
];

/// The names of the fields beside the input that change an answer.
pub fn option_fields() -> &'static [&'static str] {
    &OPTIONS
}

/// Returns `true` if a body may have a field of this name: it is read, refused by name, or passed over on purpose.
pub fn is_known_field(name: &str) -> bool {
    [&INPUTS[..], &OPTIONS, &OTHERS, &PASSED_OVER].iter().any(|names| names.contains(&name))
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;
    use crate::openai::{ChatBody, CompletionBody, Defaults};

    thread_local! {
        /// The names of the fields that this thread's readers asked for.
        pub static TAKEN: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
    }

    #[test]
    fn the_fields_that_are_read_are_the_known_ones() {
        TAKEN.with_borrow_mut(BTreeSet::clear);
        CompletionBody::read(json!({"prompt": "x"}), &Defaults::openai()).unwrap();
        let messages = json!([{"role": "user", "content": "x"}]);
        ChatBody::read(json!({"messages": messages}), &Defaults::openai()).unwrap();
        let read = TAKEN.take();
        let of_messages = ["content", "role", "tool_calls"];
        let expected = [&INPUTS[..], &OPTIONS, &OTHERS, &of_messages].concat();
        let expected: BTreeSet<&str> = expected.into_iter().collect();
        assert_eq!(read.iter().map(String::as_str).collect::<BTreeSet<_>>(), expected);
    }

    #[test]
    fn synonyms_stand_for_fields() {
        for (other, field) in SYNONYMS {
            assert!(is_known_field(field) && !is_known_field(other), "{other}");
        }
    }
}
