//! generation_config.json: the author's suggestions for sampling and where to stop.
//!
//! Only types are checked here. Whether `top_p: 7` means anything is for the room that samples to say, and only when
//! a user asks for these values.

use super::error::CheckpointError;
use super::json::Object;

/// The fields of generation_config.json that Rigel knows; all others are ignored. Every field may be absent.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct GenerationConfig {
    /// `eos_token_id`, an id or a list of them. May hold ids at or above the vocabulary size: older revisions of the
    /// published checkpoints say 50256.
    pub eos_token_ids: Vec<u32>,
    /// `bos_token_id`.
    pub bos_token_id: Option<u32>,
    /// `pad_token_id`.
    pub pad_token_id: Option<u32>,
    /// Whether to sample at all; greedy otherwise.
    pub do_sample: Option<bool>,
    /// Softmax temperature.
    pub temperature: Option<f32>,
    /// Sample among this many best tokens.
    pub top_k: Option<u32>,
    /// Sample among the best tokens that together have this probability.
    pub top_p: Option<f32>,
    /// Sample among tokens of at least this probability relative to the best.
    pub min_p: Option<f32>,
    /// Divisor of positive logits, factor of negative ones, of tokens that were seen.
    pub repetition_penalty: Option<f32>,
    /// The most tokens to generate.
    pub max_new_tokens: Option<u32>,
    /// The most tokens, prompt included.
    pub max_length: Option<u32>,
}

impl GenerationConfig {
    /// Reads `bytes`, the content of `file` (a path for messages).
    ///
    /// # Errors
    /// Malformed JSON, or a known field of the wrong type.
    pub fn parse(bytes: &[u8], file: &str) -> Result<GenerationConfig, CheckpointError> {
        let object = Object::parse(bytes, file)?;
        let number = |field: &str| -> Result<Option<f32>, CheckpointError> {
            if object.is_null(field) {
                return Ok(None);
            }
            match object.number(field)? {
                Some(x) if !(x as f32).is_finite() => Err(object.wrong(field, "a number that an f32 holds")),
                x => Ok(x.map(|x| x as f32)),
            }
        };
        let do_sample = if object.is_null("do_sample") { None } else { object.flag("do_sample")? };
        Ok(GenerationConfig {
            eos_token_ids: object.token_ids("eos_token_id")?.unwrap_or_default(),
            bos_token_id: object.natural("bos_token_id")?,
            pad_token_id: object.natural("pad_token_id")?,
            do_sample,
            temperature: number("temperature")?,
            top_k: object.natural("top_k")?,
            top_p: number("top_p")?,
            min_p: number("min_p")?,
            repetition_penalty: number("repetition_penalty")?,
            max_new_tokens: object.natural("max_new_tokens")?,
            max_length: object.natural("max_length")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_published_file_and_a_full_one() {
        let published =
            br#"{"_from_model_config":true,"bos_token_id":0,"eos_token_id":0,"transformers_version":"4.39.0.dev0"}"#;
        let config = GenerationConfig::parse(published, "generation_config.json").unwrap();
        assert_eq!(config.eos_token_ids, [0]);
        assert_eq!(config.bos_token_id, Some(0));
        assert_eq!(config.temperature, None);

        let full = br#"{"eos_token_id":[0,50256],"do_sample":true,"temperature":0.2,"top_k":50,"top_p":1,"min_p":null,
            "repetition_penalty":1.1,"max_new_tokens":256,"pad_token_id":null,"unknown":{"a":1}}"#;
        let config = GenerationConfig::parse(full, "generation_config.json").unwrap();
        assert_eq!(config.eos_token_ids, [0, 50256]);
        assert_eq!((config.do_sample, config.temperature), (Some(true), Some(0.2)));
        assert_eq!((config.top_k, config.top_p, config.min_p), (Some(50), Some(1.0), None));
        assert_eq!((config.repetition_penalty, config.max_new_tokens), (Some(1.1), Some(256)));
    }

    #[test]
    fn wrong_types_name_the_field() {
        for (json, field) in [
            (r#"{"eos_token_id":"</s>"}"#, "eos_token_id"),
            (r#"{"eos_token_id":[0,"a"]}"#, "eos_token_id"),
            (r#"{"temperature":"hot"}"#, "temperature"),
            (r#"{"temperature":1e300}"#, "temperature"),
            (r#"{"top_k":1.5}"#, "top_k"),
            (r#"{"do_sample":1}"#, "do_sample"),
        ] {
            let message = GenerationConfig::parse(json.as_bytes(), "g.json").unwrap_err().to_string();
            assert!(message.starts_with(&format!("g.json: field {field}: found ")), "{message}");
        }
    }
}
