//! How tokens are chosen, and when a generation ends.

use clap::Args;
use rigel::checkpoint::{Checkpoint, Config, ModelSource, SamplingSuggestions};
use rigel::engine::{Engine, Request, RequestError};
use rigel::sampling::SamplingParams;
use rigel::text::{TokenId, Tokenizer};

use super::error::CliError;
use super::idle;
use super::numbers::count;

/// Tokens to generate where nothing is said.
pub const DEFAULT_MAX_NEW_TOKENS: u32 = 256;

/// Options of `generate`, `chat`, `infill` and `batch`.
#[derive(Debug, Args)]
pub struct GenerationArgs {
    /// The most tokens to generate [default: 256, or what the model's positions leave]
    #[arg(long, short = 'n', aliases = ["max-tokens", "max-completion-tokens", "n-predict", "predict"])]
    #[arg(value_name = "N", value_parser = count::<u32>, help_heading = "Length and stops", allow_negative_numbers = true)]
    max_new_tokens: Option<u32>,
    /// Tokens to generate before one that ends the generation may be chosen, or a --stop may be complete [default: 0]
    #[arg(long, value_name = "N", value_parser = count::<u32>, help_heading = "Length and stops")]
    #[arg(allow_negative_numbers = true)]
    min_tokens: Option<u32>,
    /// Text that ends the generation, taken as it is and cut from the output; repeatable. Special tokens count as
    /// their text: <file_sep> stops there, shown or not
    #[arg(long, value_name = "TEXT", help_heading = "Length and stops", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Token ids that end the generation, beside the model's own
    #[arg(
        long,
        value_name = "ID,…",
        value_delimiter = ',',
        help_heading = "Length and stops",
        allow_negative_numbers = true
    )]
    stop_token_ids: Vec<u32>,
    /// Go on after the model's end-of-sequence token
    #[arg(long, help_heading = "Length and stops")]
    pub ignore_eos: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
}

/// Options of the sampler.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
struct SamplingArgs {
    /// Logits are divided by it; 0 takes the most probable token [default: 0]
    #[arg(long, short, alias = "temp", value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Sample from the K most probable tokens; 0 is all [default: 0]
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    top_k: Option<u32>,
    /// Sample from the fewest tokens whose probabilities add up to P; 1 is all, 0 the best alone [default: 1]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Sample from tokens at least P times as probable as the best; 0 is all [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Weakens tokens seen in prompt and output; 1 is off [default: 1]
    #[arg(long, alias = "repeat-penalty", value_name = "R", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// Taken off a token's logit for each time that it was generated, -2 to 2; 0 is off [default: 0]
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Taken off the logits of tokens that were generated, -2 to 2; 0 is off [default: 0]
    #[arg(long, value_name = "F", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Adds BIAS to the logit of token ID; repeatable
    #[arg(long, value_name = "ID=BIAS", value_parser = logit_bias, allow_hyphen_values = true)]
    logit_bias: Vec<(TokenId, f32)>,
    /// Random seed: the same seed gives the same tokens [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seed: Option<u64>,
    /// Take what is not given here from the checkpoint's generation_config.json: temperature (where do_sample is true),
    /// top_k, top_p, min_p and repetition_penalty
    #[arg(long)]
    generation_config: bool,
}

/// [`GenerationArgs`] checked and made whole.
#[derive(Debug, Clone)]
pub struct GenerationOptions {
    pub max_new_tokens: Option<u32>,
    pub stop: Vec<String>,
    pub stop_token_ids: Vec<TokenId>,
    pub ignore_eos: bool,
    pub sampling: SamplingParams,
}

impl GenerationArgs {
    /// Checks the options, before a model is loaded for them, and warns of one that does nothing. Reads the
    /// checkpoint's generation_config.json where it is asked for.
    pub fn options(self, source: &ModelSource) -> Result<GenerationOptions, CliError> {
        let given = self.given();
        let options = self.defaults(source)?;
        if let Some(idle) = idle::when_greedy(&given, &options.sampling) {
            tracing::warn!("{idle} at temperature 0; give a --temperature above 0");
        }
        Ok(options)
    }

    /// The same for options that requests of their own may change: which of them do nothing, the caller knows.
    pub fn defaults(self, source: &ModelSource) -> Result<GenerationOptions, CliError> {
        let mut sampling = if self.sampling.generation_config {
            self.sampling.resolve(&Checkpoint::open(source)?.generation_config().sampling()?)
        } else {
            self.sampling.resolve(&SamplingSuggestions::default())
        };
        sampling.min_tokens = self.min_tokens.unwrap_or(sampling.min_tokens);
        sampling.validate().map_err(|invalid| {
            if self.given().contains(&format!("--{}", invalid.name.replace('_', "-")).as_str()) {
                CliError::Sampling(invalid)
            } else {
                CliError::Usage(format!("{}: {invalid}", source.describe("generation_config.json")))
            }
        })?;
        if self.stop.iter().any(String::is_empty) {
            return Err(CliError::Usage("--stop is empty; give at least one character".into()));
        }
        if let Some(stop) = self.stop.iter().find(|stop| stop.contains("\\n") && !stop.contains('\n')) {
            tracing::warn!("--stop '{stop}' has a backslash and an n, and no line break; bash writes one as $'\\n'");
        }
        self.check_model(source)?;
        Ok(GenerationOptions {
            max_new_tokens: self.max_new_tokens,
            stop: self.stop,
            stop_token_ids: self.stop_token_ids.into_iter().map(TokenId).collect(),
            ignore_eos: self.ignore_eos,
            sampling,
        })
    }

    /// The options that were given, by name.
    pub fn given(&self) -> Vec<&'static str> {
        let GenerationArgs { max_new_tokens, min_tokens, stop, stop_token_ids, ignore_eos, sampling } = self;
        let SamplingArgs {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            logit_bias,
            seed,
            generation_config,
        } = sampling;
        let options = [
            (max_new_tokens.is_some(), "--max-new-tokens"),
            (min_tokens.is_some(), "--min-tokens"),
            (!stop.is_empty(), "--stop"),
            (!stop_token_ids.is_empty(), "--stop-token-ids"),
            (*ignore_eos, "--ignore-eos"),
            (temperature.is_some(), "--temperature"),
            (top_k.is_some(), "--top-k"),
            (top_p.is_some(), "--top-p"),
            (min_p.is_some(), "--min-p"),
            (repetition_penalty.is_some(), "--repetition-penalty"),
            (frequency_penalty.is_some(), "--frequency-penalty"),
            (presence_penalty.is_some(), "--presence-penalty"),
            (!logit_bias.is_empty(), "--logit-bias"),
            (seed.is_some(), "--seed"),
            (*generation_config, "--generation-config"),
        ];
        options.into_iter().filter(|(is_given, _)| *is_given).map(|(_, name)| name).collect()
    }

    /// That the model has the tokens and the tokenizer that the options need: else every request would fail.
    fn check_model(&self, source: &ModelSource) -> Result<(), CliError> {
        let stops = self.stop_token_ids.iter().map(|id| ("stop_token_ids", TokenId(*id)));
        let biases = self.sampling.logit_bias.iter().map(|(id, _)| ("logit_bias", *id));
        let mut ids = stops.chain(biases).enumerate().peekable();
        if ids.peek().is_some() {
            let vocab_size = Config::parse(&source.config_json()?, &source.describe("config.json"))?.vocab_size;
            if let Some((index, (field, token))) = ids.find(|(_, (_, id))| id.0 as usize >= vocab_size) {
                return Err(RequestError::TokenOutOfRange { field, index, token, vocab_size }.into());
            }
        }
        let may_lack_tokenizer = !self.stop.is_empty() && source.read("tokenizer.json")?.is_none();
        if may_lack_tokenizer && Tokenizer::from_source(source)?.is_none() {
            return Err(RequestError::StopWithoutTokenizer.into());
        }
        Ok(())
    }
}

impl SamplingArgs {
    /// The options given, over those of a generation_config.json. As in Hugging Face's `generate`, a temperature
    /// counts only where `do_sample` is true, and is 1 where it is absent.
    fn resolve(&self, config: &SamplingSuggestions) -> SamplingParams {
        let default = SamplingParams::default();
        let config_temperature =
            if config.do_sample == Some(true) { config.temperature.unwrap_or(1.0) } else { default.temperature };
        SamplingParams {
            temperature: self.temperature.unwrap_or(config_temperature),
            top_k: self.top_k.or(config.top_k).unwrap_or(default.top_k),
            top_p: self.top_p.or(config.top_p).unwrap_or(default.top_p),
            min_p: self.min_p.or(config.min_p).unwrap_or(default.min_p),
            repetition_penalty: self
                .repetition_penalty
                .or(config.repetition_penalty)
                .unwrap_or(default.repetition_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
            logit_bias: self.logit_bias.clone(),
            seed: self.seed.unwrap_or(default.seed),
            ..default
        }
    }
}

impl GenerationOptions {
    /// The request for one prompt. Says on stderr where `--max-new-tokens` asks for more than the model's positions
    /// hold.
    pub fn request(&self, engine: &Engine, prompt: Vec<TokenId>) -> Result<Request, CliError> {
        let max_tokens = max_tokens(self.max_new_tokens, prompt.len(), engine.spec().max_positions)?;
        Ok(Request {
            max_tokens,
            sampling: self.sampling.clone(),
            stop: self.stop.clone(),
            stop_token_ids: self.stop_token_ids.clone(),
            ignore_eos: self.ignore_eos,
            ..Request::new(prompt)
        })
    }
}

/// `ID=BIAS`.
fn logit_bias(text: &str) -> Result<(TokenId, f32), String> {
    let bias = text.split_once('=').and_then(|(id, bias)| Some((TokenId(id.parse().ok()?), bias.parse().ok()?)));
    bias.ok_or_else(|| "expected a token id, '=' and a number, as 42=-1.5".to_owned())
}

/// How many tokens fit after the prompt, at most `asked`. A default shrinks in silence, a number that was asked for
/// with a warning.
pub fn max_tokens(asked: Option<u32>, prompt: usize, positions: usize) -> Result<u32, CliError> {
    let Some(room) = positions.checked_sub(prompt) else {
        return Err(RequestError::PromptTooLong { tokens: prompt, positions }.into());
    };
    if room == 0 && asked != Some(0) {
        return Err(CliError::Usage(format!(
            "the prompt's {prompt} tokens take all of the {positions} positions that there is room for: shorten the prompt"
        )));
    }
    let room = u32::try_from(room).unwrap_or(u32::MAX);
    let wanted = asked.unwrap_or(DEFAULT_MAX_NEW_TOKENS);
    if asked.is_some() && wanted > room {
        tracing::warn!(
            "the prompt's {prompt} tokens and --max-new-tokens {wanted} exceed the {positions} positions that there is \
             room for; generating {room} at most"
        );
    }
    Ok(wanted.min(room))
}

#[cfg(test)]
mod tests {
    use rigel::checkpoint::GenerationConfig;

    use super::*;

    fn args() -> SamplingArgs {
        SamplingArgs {
            temperature: None,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: None,
            frequency_penalty: None,
            presence_penalty: None,
            logit_bias: Vec::new(),
            seed: None,
            generation_config: true,
        }
    }

    fn config(json: &str) -> SamplingSuggestions {
        GenerationConfig::parse(json.as_bytes(), "generation_config.json").unwrap().sampling().unwrap()
    }

    #[test]
    fn nothing_said_is_greedy() {
        assert_eq!(args().resolve(&SamplingSuggestions::default()), SamplingParams::default());
        // A temperature without do_sample is what transformers warns of and ignores.
        assert!(args().resolve(&config(r#"{"temperature": 0.7}"#)).is_greedy());
        assert!(args().resolve(&config(r#"{"do_sample": false, "temperature": 0.7}"#)).is_greedy());
    }

    #[test]
    fn options_win_over_the_config() {
        let config = config(r#"{"do_sample": true, "temperature": 0.5, "top_k": 40, "repetition_penalty": 1.5}"#);
        let params = args().resolve(&config);
        assert_eq!((params.temperature, params.top_k, params.repetition_penalty), (0.5, 40, 1.5));
        let params = SamplingArgs { temperature: Some(0.0), top_k: Some(5), ..args() }.resolve(&config);
        assert_eq!((params.temperature, params.top_k, params.repetition_penalty), (0.0, 5, 1.5));
    }

    #[test]
    fn a_sampling_config_without_temperature_has_one() {
        assert_eq!(args().resolve(&config(r#"{"do_sample": true}"#)).temperature, 1.0);
    }

    #[test]
    fn options_given_are_named() {
        let given = |sampling: SamplingArgs| {
            let (stop, stop_token_ids) = (vec!["x".to_owned()], Vec::new());
            let args = GenerationArgs {
                max_new_tokens: Some(0),
                min_tokens: None,
                stop,
                stop_token_ids,
                ignore_eos: false,
                sampling,
            };
            args.given()
        };
        let sampling = SamplingArgs { seed: Some(0), generation_config: false, ..args() };
        assert_eq!(given(sampling), ["--max-new-tokens", "--stop", "--seed"]);
        assert_eq!(given(args()), ["--max-new-tokens", "--stop", "--generation-config"]);
    }

    #[test]
    fn biases_are_an_id_and_a_number() {
        assert_eq!(logit_bias("42=-1.5"), Ok((TokenId(42), -1.5)));
        assert_eq!(logit_bias("0=1e3"), Ok((TokenId(0), 1000.0)));
        for bad in ["42", "=3", "42=", "-1=2", "42:3", "x=1", "42=1=2", "4294967296=1"] {
            assert!(logit_bias(bad).is_err(), "{bad}");
        }
        let biases = vec![(TokenId(3), 1.0), (TokenId(3), 2.0)];
        let params = SamplingArgs { logit_bias: biases, ..args() }.resolve(&SamplingSuggestions::default());
        assert_eq!(params.validate().unwrap_err().name, "logit_bias");
    }

    #[test]
    fn new_tokens_fit_the_positions() {
        assert_eq!(max_tokens(None, 10, 2048).unwrap(), 256);
        assert_eq!(max_tokens(None, 2000, 2048).unwrap(), 48);
        assert_eq!(max_tokens(Some(300), 10, 2048).unwrap(), 300);
        assert_eq!(max_tokens(Some(u32::MAX), 10, 2048).unwrap(), 2038);
        assert_eq!(max_tokens(Some(0), 2048, 2048).unwrap(), 0);
        assert!(max_tokens(None, 2048, 2048).is_err());
        assert!(max_tokens(Some(0), 2049, 2048).is_err());
    }
}
