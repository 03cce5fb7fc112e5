//! The library names fields and settings; whoever typed an option reads its name.

use std::borrow::Cow;

use rigel::engine::{MAX_LOGPROBS, RequestError};

use super::running;

/// The option, how the library's messages name its setting, and how the command line says the same.
const SETTINGS: [(&str, &str, &str); 10] = [
    ("device", "the device cpu", "--device cpu"),
    ("device", "the device cuda", "--device cuda"),
    ("device", "device cuda: ", "--device cuda: "),
    ("dtype", "the dtype bf16", "--dtype bf16"),
    ("dtype", "the dtype f16", "--dtype f16"),
    ("dtype", "leave the dtype at auto", "leave --dtype at auto"),
    ("context", "a lower context ", "a lower --context "),
    ("prefill-chunk", "a lower prefill chunk", "a lower --prefill-chunk"),
    ("memory", "more memory for the engine", "more --memory"),
    ("no-mmap", "read the weights into memory instead", "read the weights into memory instead with --no-mmap"),
];

/// The library names Hugging Face's command where a model has to be downloaded; the command of its own that takes the
/// same arguments needs the feature `hub`.
const DOWNLOAD: (&str, &str) = ("`hf download ", if cfg!(feature = "hub") { "`rigel pull " } else { "`hf download " });

/// A message of the library with its settings under the names of their options, where the command that runs has them,
/// and its commands under those of this program.
pub fn of_settings(message: &str) -> String {
    let settings =
        SETTINGS.iter().filter(|(name, ..)| running::has(name)).map(|&(_, setting, option)| (setting, option));
    let renamed = settings.chain([DOWNLOAD]).fold(Cow::Borrowed(message), |message, (setting, option)| {
        // An option that is there already stays: `--device cuda: …` is no setting.
        if message.contains(option) { message } else { message.replace(setting, option).into() }
    });
    renamed.into_owned()
}

/// The message of a request's error with the names of options; `None` if it names no field.
pub fn of_request(error: &RequestError) -> Option<String> {
    let advice = |largest: Option<usize>| {
        let to = largest.map(|tokens| format!(" to {tokens}")).unwrap_or_default();
        format!("lower --max-new-tokens{to} or shorten the prompt")
    };
    Some(match error {
        RequestError::TokenOutOfRange { field, index, token, vocab_size } => {
            let subject = match *field {
                "prompt" => format!("token {} of the prompt has the id {token}", index + 1),
                field => format!("--{} names the id {token}", field.replace('_', "-")),
            };
            format!("{subject}; expected an id below the vocabulary size {vocab_size}")
        }
        RequestError::TooManyLogprobs { field, found } => {
            let option = if *field == "prompt_logprobs" { "--top" } else { "--logprobs" };
            format!("{option} is {found}; expected at most {MAX_LOGPROBS} best tokens at each position")
        }
        RequestError::TooManyTokens { prompt, max_tokens, positions } => format!(
            "the prompt's {prompt} tokens and --max-new-tokens {max_tokens} exceed the {positions} positions that there \
             is room for: {}",
            advice(Some(positions - prompt))
        ),
        RequestError::LargerThanCache { positions, needed, pages } => format!(
            "{positions} positions need {needed} pages of the cache, which has {pages}: {}, or give more --memory",
            advice(None)
        ),
        RequestError::StopWithoutTokenizer => {
            "--stop needs the checkpoint's tokenizer, and it has no tokenizer.json; use --stop-token-ids".to_owned()
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #[cfg(feature = "cuda")]
    use rigel::backend::BackendError;
    #[cfg(feature = "cuda")]
    use rigel::engine::EngineError;

    use super::super::error::CliError;
    use super::*;

    #[test]
    fn fields_of_a_request_are_named_as_options() {
        let token = rigel::text::TokenId(99_999);
        let said = |error: RequestError| CliError::from(error).line().unwrap_or_default();
        let of = |field| said(RequestError::TokenOutOfRange { field, index: 2, token, vocab_size: 4096 });
        assert_eq!(of("logit_bias"), "--logit-bias names the id 99999; expected an id below the vocabulary size 4096");
        assert_eq!(
            of("stop_token_ids"),
            "--stop-token-ids names the id 99999; expected an id below the vocabulary size 4096"
        );
        assert!(of("prompt").starts_with("token 3 of the prompt has the id 99999; expected"));
        assert!(said(RequestError::TooManyLogprobs { field: "logprobs", found: 99 }).starts_with("--logprobs is 99; "));
        let error = RequestError::TooManyTokens { prompt: 10, max_tokens: 9, positions: 16 };
        assert!(said(error).ends_with("lower --max-new-tokens to 6 or shorten the prompt"));
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn settings_are_named_as_options() {
        let error = BackendError::NoGpu(rigel::backend::cuda::CudaError::NoDriver);
        assert!(!error.to_string().contains("--"), "{error}");
        let said = CliError::from(error).line().unwrap_or_default();
        assert!(said.starts_with("--device cuda: no CUDA driver") && said.ends_with("or use --device cpu"), "{said}");
        let error = rigel::backend::BackendError::OutOfMemory {
            needed: 1,
            what: "activations".to_owned(),
            advice: "a lower context makes the cache smaller, a lower prefill chunk the activations".to_owned(),
        };
        let said = CliError::from(EngineError::Backend(error)).line().unwrap_or_default();
        assert!(said.ends_with("a lower --context makes the cache smaller, a lower --prefill-chunk the activations"));
    }
}
