//! Whether a checkpoint holds what a network needs; what it is and what to do where it does not; and what is worth a
//! warning where it does.

use std::collections::HashSet;

use super::error::{shown, shown_shape};
use super::marks::{self, Mark};
use super::{CONFIG, Checkpoint, CheckpointError, ExpectedTensor, INDEX, ModelSource, SINGLE, Stored};

/// Stored names that "no such tensor" shows.
const SHOWN_NAMES: usize = 3;

impl Checkpoint {
    /// Checks that every expected tensor is there, with its shape and in a supported dtype. Returns the names of the
    /// tensors that nobody expects, sorted: worth a warning, no error (a tied checkpoint may carry `lm_head.weight`).
    ///
    /// The tensors alone decide: what config.json says about a quantisation is an error only where they are not those
    /// of a plain network.
    ///
    /// # Errors
    /// The first expected tensor that is missing, misshaped, or of another dtype: as the form that the checkpoint is
    /// in, where its tensors give that away.
    pub fn check(&self, expected: &[ExpectedTensor]) -> Result<Vec<String>, CheckpointError> {
        for expected in expected {
            self.check_one(expected).map_err(|error| self.other_form(error))?;
        }
        let names: HashSet<&str> = expected.iter().map(|expected| expected.name.as_str()).collect();
        Ok(self.tensors.keys().filter(|name| !names.contains(name.as_str())).cloned().collect())
    }

    /// What is worth a warning about a checkpoint that [`Checkpoint::check`] found complete, one line each.
    pub fn notices(&self) -> Vec<String> {
        let mut notices = Vec::new();
        if let Some(how) = self.renaming.described() {
            notices.push(format!("tensors are read {how}"));
        }
        if let Some(adapter) = marks::adapter(&self.source) {
            notices.push(format!(
                "{} says that {adapter} is in the same directory: it is not applied; merge it first if it is wanted",
                marks::ADAPTER_CONFIG
            ));
        }
        if let Some((mark, name)) = self.mark() {
            notices.push(format!("{} is of {}: it is not used; {}", shown(name), mark.what, mark.advice));
        }
        if let Some(quantization) = &self.config.quantization {
            notices.push(format!(
                "{CONFIG} speaks of quantised weights ({quantization}), but all tensors are there unquantised: using them \
                 as they are stored"
            ));
        }
        if let Some(fault) = self.generation_config.fault() {
            notices.push(format!("{fault}; going on without it"));
        }
        notices
    }

    /// The first mark of another program's form that a tensor carries, and its name.
    fn mark(&self) -> Option<(&'static Mark, &str)> {
        Mark::of_tensors(self.tensors.keys().map(String::as_str))
    }

    /// The form that the checkpoint is in, where it is not that of a plain network; `error` is what it lacks of one.
    fn other_form(&self, error: CheckpointError) -> CheckpointError {
        let by_config = self.config.quantization.as_ref().map(|quantization| format!("{CONFIG}: {quantization}"));
        let (found, advice) = match (self.mark(), by_config, &error) {
            (Some((mark, name)), None, _) => (format!("{}, such as {}", mark.what, shown(name)), mark.advice),
            (Some((mark, name)), Some(by_config), _) => {
                (format!("{}, such as {} ({by_config})", mark.what, shown(name)), mark.advice)
            }
            (None, Some(by_config), CheckpointError::Tensor { tensor, found, .. }) => (
                format!("quantised weights, which are not supported ({by_config}; tensor {tensor}: found {found})"),
                "use the model that this one was quantised from, in F32, F16 or BF16",
            ),
            (None, ..) => return error,
        };
        CheckpointError::OtherForm { model: self.source.to_string(), found, advice }
    }

    fn check_one(&self, expected: &ExpectedTensor) -> Result<(), CheckpointError> {
        let stored = self.tensors.get(&expected.name);
        if let (None, Some(shard)) = (stored, self.absent.get(&expected.name)) {
            return Err(self.missing_shard(shard));
        }
        let belong = "check that config.json and the weights belong together";
        let (found, advice) = match stored {
            None => (format!("no such tensor {}", self.among()), self.advice_for_missing().unwrap_or(belong)),
            Some(stored) if stored.shape() != expected.shape => {
                (format!("shape {}", shown_shape(stored.shape())), belong)
            }
            Some(Stored::Opaque(tensor)) => {
                (format!("dtype {}", tensor.dtype), "use the checkpoint that this one was quantised or converted from")
            }
            Some(Stored::Usable(_) | Stored::Wide(_)) => match self.contested.get(&expected.name) {
                None => return Ok(()),
                Some(second) => (
                    format!("a second one in {second}, and {INDEX} names neither"),
                    "the shards do not belong together: download them again",
                ),
            },
        };
        Err(CheckpointError::Tensor {
            file: stored.map_or_else(|| self.source.to_string(), |stored| stored.file().to_owned()),
            tensor: expected.name.clone(),
            found,
            expected: format!("shape {} in F32, F16 or BF16", shown_shape(&expected.shape)),
            advice,
        })
    }

    /// What is there in place of a missing tensor.
    fn among(&self) -> String {
        let names: Vec<String> = self.tensors.keys().take(SHOWN_NAMES).map(|name| shown(name)).collect();
        let more = if self.tensors.len() > names.len() { ", …" } else { "" };
        match self.tensors.len() {
            0 => "(there are none)".to_owned(),
            count => format!("among the {count} that are there ({}{more})", names.join(", ")),
        }
    }

    /// Where both are there, the shards may have what `model.safetensors` lacks.
    fn advice_for_missing(&self) -> Option<&'static str> {
        let both = self.source.has(SINGLE).is_ok_and(|has| has) && self.source.has(INDEX).is_ok_and(|has| has);
        both.then_some("model.safetensors.index.json is there too: delete model.safetensors to use its shards")
    }

    /// That the shard `name` of the index is not there.
    pub(super) fn missing_shard(&self, name: &str) -> CheckpointError {
        CheckpointError::MissingFile { file: self.source.describe(name), advice: self.source.how_to_get(name) }
    }
}

/// What to do about a checkpoint that has neither `model.safetensors` nor its index.
pub(super) fn no_weights(source: &ModelSource) -> CheckpointError {
    let names = source.file_names();
    let shard = names.iter().find(|name| name.ends_with(".safetensors"));
    let pickle = names.iter().find(|name| name.starts_with("pytorch_model") && name.ends_with(".bin"));
    let advice = if let Some(form) = marks::of_files(source) {
        form
    } else if let Some(shard) = shard {
        format!("{} is there, but not {INDEX}, which says what it holds: {}", shown(shard), source.how_to_get(INDEX))
    } else if let Some(bin) = pickle {
        // One process, all shards into one file; `clone` parts tensors that share memory, which safetensors refuses.
        format!(
            "only PyTorch weights are there ({}); convert them with: python3 -c 'import sys,glob,torch,\
             safetensors.torch as s; d=sys.argv[1]; w={{}}; [w.update(torch.load(f,map_location=\"cpu\",\
             weights_only=True)) for f in sorted(glob.glob(d+\"/pytorch_model*.bin\"))]; \
             s.save_file({{k:t.clone().contiguous() for k,t in w.items()}},d+\"/{SINGLE}\",{{\"format\":\"pt\"}})' '{}'",
            shown(bin),
            source.describe("").trim_end_matches(std::path::MAIN_SEPARATOR),
        )
    } else {
        marks::of_pickles(source).unwrap_or_else(|| source.how_to_get(SINGLE))
    };
    CheckpointError::MissingFile { file: source.describe(SINGLE), advice }
}
