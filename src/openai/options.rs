//! What both bodies may say of how tokens are chosen and when a generation ends.

use serde_json::Value;

use super::ApiError;
use super::fields::{Fields, integer};
use crate::engine::MAX_SAMPLES;
use crate::sampling::SamplingParams;
use crate::text::{SpecialOutput, StopText, TokenId};

/// What is meant where a body says nothing.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// `max_tokens` of `/v1/completions`.
    pub max_tokens: u32,
    /// `max_tokens` of `/v1/chat/completions`; none is what the prompt leaves.
    pub chat_max_tokens: Option<u32>,
    /// How tokens are chosen; its seed is not looked at.
    pub sampling: SamplingParams,
    /// Texts that end a generation where the body has no `stop`.
    pub stop: Vec<String>,
    /// Tokens that end a generation where the body has no `stop_token_ids`.
    pub stop_token_ids: Vec<TokenId>,
    /// Whether generation continues after an end-of-sequence token.
    pub ignore_eos: bool,
    /// Log-probabilities of the tokens and of this many best ones, where a body has no `logprobs`.
    pub logprobs: Option<usize>,
}

impl Defaults {
    /// OpenAI's: 16 tokens, temperature 1, nothing else.
    pub fn openai() -> Defaults {
        Defaults {
            max_tokens: 16,
            chat_max_tokens: None,
            sampling: SamplingParams { temperature: 1.0, ..SamplingParams::default() },
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            logprobs: None,
        }
    }
}

/// The fields of both bodies.
#[derive(Debug, Clone)]
pub struct Options {
    /// `model`: whom the client means to talk to.
    pub model: Option<String>,
    /// `n`: samples of each prompt.
    pub n: u32,
    /// How tokens are chosen. Its seed is [`Options::seed`], or 0.
    pub sampling: SamplingParams,
    /// `seed`, where it was given; a negative one stands for its two's complement.
    pub seed: Option<u64>,
    /// `stop`.
    pub stop: Vec<String>,
    /// `stop_token_ids`.
    pub stop_token_ids: Vec<TokenId>,
    /// `include_stop_str_in_output`.
    pub stop_text: StopText,
    /// `skip_special_tokens`. Special tokens count for `stop` in any case.
    pub special_output: SpecialOutput,
    /// `ignore_eos`.
    pub ignore_eos: bool,
    /// `truncate_prompt_tokens`: keep this many tokens of the prompt, its last ones.
    pub truncate_prompt_tokens: Option<u32>,
    /// `cache_salt`: only requests of the same salt share cached prefixes.
    pub cache_salt: Option<String>,
    /// `stream`.
    pub stream: bool,
    /// `stream_options.include_usage`.
    pub include_usage: bool,
}

impl Options {
    pub(super) fn read(fields: &mut Fields, defaults: &Defaults) -> Result<Options, ApiError> {
        refuse_unsupported(fields)?;
        // A negative seed stands for its two's complement.
        let seed = fields.integer("seed", "an integer of 64 bits", i64::MIN.into()..=u64::MAX.into())?;
        let seed = seed.map(|seed| seed as u64);
        let n = fields.integer("n", "an integer from 1 to 1024", 1..=MAX_SAMPLES.into())?;
        let special_output = match fields.flag("skip_special_tokens")? {
            Some(false) => SpecialOutput::Keep,
            _ => SpecialOutput::Skip,
        };
        let stop_text = match fields.flag("include_stop_str_in_output")? {
            Some(true) => StopText::Include,
            _ => StopText::Exclude,
        };
        Ok(Options {
            model: fields.text("model")?,
            n: n.map_or(1, |n| n as u32),
            sampling: SamplingParams { seed: seed.unwrap_or(0), ..sampling(fields, &defaults.sampling)? },
            seed,
            stop: fields.texts("stop")?.unwrap_or_else(|| defaults.stop.clone()),
            stop_token_ids: fields.token_ids("stop_token_ids")?.unwrap_or_else(|| defaults.stop_token_ids.clone()),
            stop_text,
            special_output,
            ignore_eos: fields.flag("ignore_eos")?.unwrap_or(defaults.ignore_eos),
            truncate_prompt_tokens: fields
                .integer("truncate_prompt_tokens", "an integer of at least 1", 1..=i128::MAX)?
                .map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
            cache_salt: fields.text("cache_salt")?,
            stream: fields.flag("stream")?.unwrap_or(false),
            include_usage: include_usage(fields)?,
        })
    }
}

fn include_usage(fields: &mut Fields) -> Result<bool, ApiError> {
    match fields.take("stream_options") {
        None => Ok(false),
        Some(options) => {
            let mut options = Fields::of(options)
                .map_err(|_| ApiError::invalid("stream_options: expected an object").of("stream_options"))?;
            Ok(options.flag("include_usage")?.unwrap_or(false))
        }
    }
}

fn sampling(fields: &mut Fields, defaults: &SamplingParams) -> Result<SamplingParams, ApiError> {
    // As it was written: an f32 shows 1e99 as inf.
    const NUMBERS: [&str; 6] =
        ["temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"];
    let written = NUMBERS.map(|name| fields.shown(name));
    // -1 is vLLM's "all".
    let top_k = fields.integer("top_k", "an integer of at least -1 (0 and -1 keep every token)", -1..=i128::MAX)?;
    let top_k = top_k.map(|k| u32::try_from(k.max(0)).unwrap_or(u32::MAX));
    let params = SamplingParams {
        temperature: fields.number("temperature")?.unwrap_or(defaults.temperature),
        top_k: top_k.unwrap_or(defaults.top_k),
        top_p: fields.number("top_p")?.unwrap_or(defaults.top_p),
        min_p: fields.number("min_p")?.unwrap_or(defaults.min_p),
        repetition_penalty: fields.number("repetition_penalty")?.unwrap_or(defaults.repetition_penalty),
        frequency_penalty: fields.number("frequency_penalty")?.unwrap_or(defaults.frequency_penalty),
        presence_penalty: fields.number("presence_penalty")?.unwrap_or(defaults.presence_penalty),
        logit_bias: logit_bias(fields)?.unwrap_or_else(|| defaults.logit_bias.clone()),
        allowed_token_ids: fields.token_ids("allowed_token_ids")?.or_else(|| defaults.allowed_token_ids.clone()),
        min_tokens: fields.natural("min_tokens")?.unwrap_or(defaults.min_tokens),
        ..defaults.clone()
    };
    params.validate().map_err(|invalid| {
        let index = NUMBERS.iter().position(|name| *name == invalid.name);
        let found = index.and_then(|index| written[index].clone()).unwrap_or(invalid.found);
        ApiError::field(invalid.name, found, invalid.expected)
    })?;
    Ok(params)
}

/// `{"50256": -100}`: token ids, as JSON's keys must be strings, to what is added to their logits.
fn logit_bias(fields: &mut Fields) -> Result<Option<Vec<(TokenId, f32)>>, ApiError> {
    const EXPECTED: &str = "an object of token ids and numbers from -100 to 100";
    let read = |(id, bias): (&String, &Value)| {
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias))?;
        Some((TokenId(id.parse().ok()?), bias as f32))
    };
    fields.read("logit_bias", EXPECTED, |value| value.as_object()?.iter().map(read).collect())
}

/// Fields of OpenAI's and vLLM's bodies that ask for what there is none of.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    const LEAVE_OUT: &str = "leave it out";
    let never = |_: &Value| false;
    fields.refuse("use_beam_search", "use n samples", never)?;
    fields.refuse("bad_words", "use logit_bias with token ids", never)?;
    fields.refuse("prompt_logprobs", "use logprobs with echo on /v1/completions", never)?;
    for name in ["structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"] {
        fields.refuse(name, "ask for the format in the prompt", never)?;
    }
    let text_format = |value: &Value| value.get("type").is_some_and(|kind| kind == "text");
    fields.refuse("response_format", "ask for the format in the prompt", text_format)?;
    fields.refuse("priority", "requests are taken in their order", |value| integer(value) == Some(0))?;
    fields.refuse("logits_processors", LEAVE_OUT, never)?;
    fields.refuse("prompt_embeds", "give token ids", never)?;
    fields.refuse("length_penalty", "it belongs to beam search", |value| value.as_f64() == Some(1.0))
}

/// The most log-probabilities that a body may ask for at each token.
pub(super) fn count_of_logprobs(name: &str, count: u32) -> Result<usize, ApiError> {
    const LIMIT: u32 = 100;
    if count <= LIMIT { Ok(count as usize) } else { Err(ApiError::field(name, count, "an integer from 0 to 100")) }
}

/// That a completion and a chat body have `max_tokens` but once.
pub(super) fn one_of(first: (&str, Option<u32>), second: (&str, Option<u32>)) -> Result<Option<u32>, ApiError> {
    match (first.1, second.1) {
        (Some(a), Some(b)) if a != b => {
            let message = format!("{} is {a} and {} is {b}; give one of them", first.0, second.0);
            Err(ApiError::invalid(message).of(second.0))
        }
        (a, b) => Ok(a.or(b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(body: Value) -> Result<Options, ApiError> {
        Options::read(&mut Fields::of(body).unwrap(), &Defaults::openai())
    }

    #[test]
    fn nothing_said_is_openai_s_default() {
        let options = read(json!({})).unwrap();
        assert_eq!((options.n, options.seed, options.stream), (1, None, false));
        assert_eq!((options.sampling.temperature, options.sampling.top_p), (1.0, 1.0));
        assert_eq!((options.stop_text, options.special_output), (StopText::Exclude, SpecialOutput::Skip));
    }

    #[test]
    fn every_field_is_read() {
        let options = read(json!({
            "model": "m", "n": 3, "seed": -1, "temperature": 0.5, "top_p": 0.9, "top_k": -1, "min_p": 0.1,
            "repetition_penalty": 1.5, "frequency_penalty": 0.25, "presence_penalty": -0.5,
            "logit_bias": {"7": -100, "3": 1.5}, "allowed_token_ids": [3, 7], "min_tokens": 2,
            "stop": "x", "stop_token_ids": [4], "include_stop_str_in_output": true, "skip_special_tokens": false,
            "ignore_eos": true, "truncate_prompt_tokens": 5, "cache_salt": "s", "stream": true,
            "stream_options": {"include_usage": true, "include_obfuscation": false}, "unknown": {"a": 1}
        }))
        .unwrap();
        let SamplingParams { seed, top_k, min_p, repetition_penalty, frequency_penalty, presence_penalty, .. } =
            options.sampling;
        assert_eq!((options.n, options.seed, seed, top_k, min_p), (3, Some(u64::MAX), u64::MAX, 0, 0.1));
        assert_eq!((repetition_penalty, frequency_penalty, presence_penalty), (1.5, 0.25, -0.5));
        let mut bias = options.sampling.logit_bias;
        bias.sort_by_key(|(id, _)| *id);
        assert_eq!(bias, [(TokenId(3), 1.5), (TokenId(7), -100.0)]);
        assert_eq!(options.sampling.allowed_token_ids, Some(vec![TokenId(3), TokenId(7)]));
        assert_eq!((options.sampling.min_tokens, options.stop, options.ignore_eos), (2, vec!["x".to_owned()], true));
        assert_eq!((options.stop_text, options.special_output), (StopText::Include, SpecialOutput::Keep));
        assert_eq!((options.truncate_prompt_tokens, options.cache_salt.as_deref()), (Some(5), Some("s")));
        assert!(options.stream && options.include_usage);
    }

    /// What clients send whose language has one type of number.
    #[test]
    fn integers_may_be_written_as_floats() {
        let options = read(json!({
            "n": 3.0, "seed": -1.0, "top_k": -1.0, "min_tokens": 2.0, "allowed_token_ids": [3.0], "stop_token_ids": [4.0],
            "truncate_prompt_tokens": 5.0, "priority": 0.0
        }))
        .unwrap();
        assert_eq!((options.n, options.seed, options.sampling.top_k), (3, Some(u64::MAX), 0));
        assert_eq!((options.sampling.min_tokens, options.truncate_prompt_tokens), (2, Some(5)));
        assert_eq!(options.sampling.allowed_token_ids, Some(vec![TokenId(3)]));
        assert_eq!(options.stop_token_ids, [TokenId(4)]);
        // More than any vocabulary has is every token.
        assert_eq!(read(json!({"top_k": 1e10})).unwrap().sampling.top_k, u32::MAX);
    }

    #[test]
    fn top_p_0_is_the_best_token() {
        for zero in [json!(0), json!(0.0), json!(-0.0), json!(1e-60)] {
            let sampling = read(json!({"top_p": zero, "temperature": 1.5})).unwrap().sampling;
            assert!(sampling.is_greedy(), "{zero}");
        }
        assert!(!read(json!({"top_p": 1e-30})).unwrap().sampling.is_greedy());
    }

    #[test]
    fn nulls_are_defaults() {
        let fields = [
            "model",
            "n",
            "seed",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "frequency_penalty",
            "presence_penalty",
            "logit_bias",
            "allowed_token_ids",
            "min_tokens",
            "stop",
            "stop_token_ids",
            "include_stop_str_in_output",
            "skip_special_tokens",
            "ignore_eos",
            "truncate_prompt_tokens",
            "cache_salt",
            "stream",
            "stream_options",
            "use_beam_search",
            "bad_words",
            "structured_outputs",
            "response_format",
            "priority",
            "prompt_logprobs",
        ];
        let body: serde_json::Map<String, Value> =
            fields.iter().map(|name| ((*name).to_owned(), json!(null))).collect();
        assert_eq!(read(Value::Object(body)).unwrap().sampling, Defaults::openai().sampling);
    }

    #[test]
    fn numbers_out_of_range_are_shown_as_they_were_written() {
        for (body, message) in [
            (
                json!({"temperature": 1e99}),
                "temperature is 1e+99; expected a finite number from 0 to 3.4e38 (0 is greedy)",
            ),
            (json!({"top_p": 1.0000000001e1}), "top_p is 10.000000001; expected a number from 0 to 1"),
            (json!({"presence_penalty": -1e300}), "presence_penalty is -1e+300; expected a number from -2 to 2"),
            (json!({"temperature": "hot"}), "temperature is \"hot\"; expected a number"),
        ] {
            let said = read(body).unwrap_err().message;
            assert!(said.starts_with(message), "{said}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (name, value) in [
            ("n", json!(0)),
            ("seed", json!(1.5)),
            ("temperature", json!(-1)),
            ("top_p", json!(2)),
            ("top_p", json!(-0.5)),
            ("n", json!(1.5)),
            ("top_k", json!(1e300)),
            ("seed", json!(1e300)),
            ("min_tokens", json!(0.5)),
            ("stop_token_ids", json!([4.5])),
            ("top_k", json!(-2)),
            ("min_p", json!("x")),
            ("logit_bias", json!({"a": 1})),
            ("logit_bias", json!({"1": 101})),
            ("stop", json!(1)),
            ("stop_token_ids", json!([-1])),
            ("truncate_prompt_tokens", json!(0)),
            ("stream_options", json!(3)),
            ("use_beam_search", json!(true)),
            ("bad_words", json!(["x"])),
            ("response_format", json!({"type": "json_object"})),
            ("structured_outputs", json!({"json": {}})),
            ("guided_regex", json!("a*")),
            ("priority", json!(3)),
            ("prompt_logprobs", json!(1)),
        ] {
            let error = read(json!({name: value})).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name), "{error}");
            assert!(error.message.contains(name), "{error}");
        }
        assert!(read(json!({"priority": 0, "response_format": {"type": "text"}})).is_ok());
    }
}
