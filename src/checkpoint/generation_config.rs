//! generation_config.json: where to stop, and the author's suggestions for sampling.
//!
//! The end ids are read with the model; a suggestion is read when somebody asks for it
//! ([`GenerationConfig::sampling`]). Only types are checked here. Whether `top_p: 7` means anything is for the room
//! that samples to say.

use std::sync::Arc;

use serde_json::Value;

use super::error::CheckpointError;
use super::json::Object;

/// generation_config.json as it is, with its end ids. Fields that nobody asks for are not looked at.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct GenerationConfig {
    /// `eos_token_id`, an id or a list of them. May hold ids at or above the vocabulary size: older revisions of the
    /// published checkpoints say 50256.
    pub eos_token_ids: Vec<u32>,
    object: Object,
    /// Why the file could not be read, if it could not.
    fault: Option<Arc<CheckpointError>>,
}

/// The suggestions of a generation_config.json for sampling. Every field may be absent.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct SamplingSuggestions {
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
}

impl GenerationConfig {
    /// Reads `bytes`, the content of `file` (a path for messages).
    ///
    /// # Errors
    /// Malformed JSON, or end ids that are none.
    pub fn parse(bytes: &[u8], file: &str) -> Result<GenerationConfig, CheckpointError> {
        let object = Object::parse(bytes, file)?;
        let eos_token_ids = object.token_ids("eos_token_id")?.unwrap_or_default();
        Ok(GenerationConfig { eos_token_ids, object, fault: None })
    }

    /// [`GenerationConfig::parse`] of a file that may also be malformed: transformers then takes the end ids of
    /// config.json, as if there were no file. The fault is an error for [`GenerationConfig::sampling`] alone.
    pub(super) fn lenient(bytes: &[u8], file: &str) -> Result<GenerationConfig, CheckpointError> {
        GenerationConfig::parse(bytes, file).or_else(GenerationConfig::unreadable)
    }

    /// The file that `fault` keeps from being read.
    ///
    /// # Errors
    /// `fault` itself, where it is not about the whole file's content.
    pub(super) fn unreadable(fault: CheckpointError) -> Result<GenerationConfig, CheckpointError> {
        match fault {
            CheckpointError::File { .. } => {
                Ok(GenerationConfig { fault: Some(Arc::new(fault)), ..GenerationConfig::default() })
            }
            fault => Err(fault),
        }
    }

    /// Why the file could not be read, if it could not: worth a warning.
    pub fn fault(&self) -> Option<&CheckpointError> {
        self.fault.as_deref()
    }

    /// The suggestions for sampling; all absent where there is no file.
    ///
    /// # Errors
    /// A file that could not be read; a suggestion of the wrong type.
    pub fn sampling(&self) -> Result<SamplingSuggestions, CheckpointError> {
        if let Some(CheckpointError::File { file, found, expected, advice }) = self.fault() {
            let (file, found, expected) = (file.clone(), found.clone(), expected.clone());
            return Err(CheckpointError::File { file, found, expected, advice });
        }
        let object = &self.object;
        let number = |field: &str| -> Result<Option<f32>, CheckpointError> {
            if object.is_null(field) {
                return Ok(None);
            }
            match object.number(field)? {
                Some(x) if !(x as f32).is_finite() => Err(object.wrong(field, "a number that an f32 holds")),
                x => Ok(x.map(|x| x as f32)),
            }
        };
        Ok(SamplingSuggestions {
            do_sample: if object.is_null("do_sample") { None } else { object.flag("do_sample")? },
            temperature: number("temperature")?,
            // vLLM writes -1 for "all".
            top_k: match object.get("top_k").and_then(Value::as_i64) {
                Some(-1) => Some(0),
                _ => object.natural("top_k")?,
            },
            top_p: number("top_p")?,
            min_p: number("min_p")?,
            repetition_penalty: number("repetition_penalty")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> GenerationConfig {
        GenerationConfig::parse(json.as_bytes(), "g.json").unwrap()
    }

    #[test]
    fn reads_the_published_file_and_a_full_one() {
        let config = read(
            r#"{"_from_model_config":true,"bos_token_id":0,"eos_token_id":0,"transformers_version":"4.39.0.dev0"}"#,
        );
        assert_eq!(config.eos_token_ids, [0]);
        assert_eq!(config.sampling().unwrap(), SamplingSuggestions::default());
        assert_eq!(GenerationConfig::default().sampling().unwrap(), SamplingSuggestions::default());

        let config = read(
            r#"{"eos_token_id":[0,50256.0],"do_sample":true,"temperature":0.2,"top_k":50.0,"top_p":1,"min_p":null,
            "repetition_penalty":1.1,"max_new_tokens":256,"pad_token_id":null,"unknown":{"a":NaN}}"#,
        );
        assert_eq!(config.eos_token_ids, [0, 50256]);
        let sampling = config.sampling().unwrap();
        assert_eq!((sampling.do_sample, sampling.temperature), (Some(true), Some(0.2)));
        assert_eq!((sampling.top_k, sampling.top_p, sampling.min_p), (Some(50), Some(1.0), None));
        assert_eq!(sampling.repetition_penalty, Some(1.1));
        assert_eq!(read(r#"{"top_k":-1}"#).sampling().unwrap().top_k, Some(0));
    }

    #[test]
    fn a_suggestion_of_the_wrong_type_is_named_when_it_is_asked_for() {
        for (json, field) in [
            (r#"{"temperature":"hot"}"#, "temperature"),
            (r#"{"temperature":1e300}"#, "temperature"),
            (r#"{"top_p":NaN}"#, "top_p"),
            (r#"{"top_k":1.5}"#, "top_k"),
            (r#"{"top_k":-2}"#, "top_k"),
            (r#"{"do_sample":1}"#, "do_sample"),
        ] {
            let message = read(json).sampling().unwrap_err().to_string();
            assert!(message.starts_with(&format!("g.json: field {field}: found ")), "{message}");
        }
    }

    #[test]
    fn end_ids_are_always_read() {
        for json in [r#"{"eos_token_id":"</s>"}"#, r#"{"eos_token_id":[0,"a"]}"#, r#"{"eos_token_id":0.5}"#] {
            let message = GenerationConfig::parse(json.as_bytes(), "g.json").unwrap_err().to_string();
            assert!(message.starts_with("g.json: field eos_token_id: found "), "{message}");
        }
        // As ids beyond the vocabulary, one below 0 ends nothing.
        assert_eq!(read(r#"{"eos_token_id":-1}"#).eos_token_ids, [0u32; 0]);
        assert_eq!(read(r#"{"eos_token_id":[-1,7,4294967296]}"#).eos_token_ids, [7]);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_a_fault_for_those_who_ask() {
        // Meta's published file of Llama 2 had `true.`.
        for bytes in [&b""[..], b"{\"do_sample\": true.\n}", b"[]", b"\xff\xfe{}", b"null"] {
            let config = GenerationConfig::lenient(bytes, "g.json").unwrap();
            assert_eq!(config.eos_token_ids, [0u32; 0]);
            let fault = config.fault().unwrap().to_string();
            assert!(fault.starts_with("g.json: found "), "{fault}");
            assert_eq!(config.sampling().unwrap_err().to_string(), fault);
        }
        assert!(GenerationConfig::lenient(br#"{"top_k":-2}"#, "g.json").unwrap().fault().is_none());
        assert!(GenerationConfig::lenient(br#"{"eos_token_id":"x"}"#, "g.json").is_err());
    }
}
