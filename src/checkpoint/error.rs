//! What can be wrong with a checkpoint, said in one line each: where, what was found, what was expected, what to do.

use std::fmt::Write as _;
use std::io;

use super::json::with_non_finite;
use crate::host::{MemoryLimit, Size};

/// Why a checkpoint cannot be used.
///
/// Every message is a single line that names the file, tensor or field, what was found, what was expected, and
/// what to do about it. Text that comes from the files is shortened and its control characters are escaped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A model's name that is neither a path nor anything that could be a hub id.
    #[error(
        "no such model: {model}; expected a checkpoint directory, a hub id such as bigcode/starcoder2-3b, nano, or for \
         shapes without weights 3b, 7b, 15b or a config.json"
    )]
    NoSuchModel {
        /// What was asked for, quoted.
        model: String,
    },
    /// A path that does not exist.
    #[error("no such directory: {path}; expected a checkpoint directory")]
    NoSuchDirectory {
        /// The path, quoted.
        path: String,
    },
    /// A text that is no hub id where one was expected.
    #[error("\"{text}\" is no hub id; {advice}")]
    NotAHubId {
        /// What was given, shortened.
        text: String,
        /// What to give.
        advice: String,
    },
    /// An address of the hub where a hub id was expected.
    #[error("{url} is an address; give {id}")]
    HubAddress {
        /// What was requested.
        url: String,
        /// The hub id in it.
        id: String,
    },
    /// Weights are needed, and the model's name stands for a configuration alone.
    #[error("{model} is a shape without weights; give a checkpoint")]
    NoWeights {
        /// What was requested.
        model: String,
    },
    /// The path exists, but is no directory.
    #[error("{path} is {found}; {advice}")]
    NotADirectory {
        /// The path.
        path: String,
        /// What it is.
        found: &'static str,
        /// What to do about it.
        advice: &'static str,
    },
    /// The weights are not those of a plain network: quantised, an adapter's, or in another program's layout.
    #[error("{model}: {found}; {advice}")]
    OtherForm {
        /// The checkpoint.
        model: String,
        /// What it is, and what gives it away.
        found: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// The bundled model, in a program that was built without it.
    #[error("nano is not in this program: it was built without the cargo feature `nano`; give another model")]
    NoBundledModel,
    /// A hub id that the local Hugging Face cache does not hold.
    #[error("{id} is neither a directory nor in the local Hugging Face cache ({looked}); download it with `{command}`")]
    NotInCache {
        /// The hub id, with the revision where one was asked for.
        id: String,
        /// Where was looked, and what was found there.
        looked: String,
        /// Hugging Face's command that downloads it.
        command: String,
    },
    /// The operating system would not let a file or directory of the cache be removed.
    #[error("{path} cannot be removed: {source}")]
    NotRemoved {
        /// Its path.
        path: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file that the checkpoint needs is not there.
    #[error("{file} is missing; {advice}")]
    MissingFile {
        /// Path of the file.
        file: String,
        /// How to get it.
        advice: String,
    },
    /// The operating system would not let the file be read.
    #[error("{file} cannot be read: {source}")]
    Io {
        /// Path of the file.
        file: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Weights that are to be read into memory and do not fit.
    #[error(
        "{model}: its weights take {}, and {} are left in {limit}; map them, or use a smaller model",
        Size(*.needed),
        Size(*.left)
    )]
    OutOfMemory {
        /// The model.
        model: String,
        /// Bytes of the weights.
        needed: u64,
        /// Bytes that this process can have.
        left: u64,
        /// What allows no more.
        limit: MemoryLimit,
    },
    /// A file whose content is not what its name promises.
    #[error("{file}: found {found}, expected {expected}; {advice}")]
    File {
        /// Path of the file.
        file: String,
        /// What it holds.
        found: String,
        /// What it should hold.
        expected: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// A field with an impossible value.
    #[error("{file}: field {field}: found {found}, expected {expected}; correct the field or download the file again")]
    Field {
        /// Path of the file.
        file: String,
        /// Name of the field.
        field: String,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// A field with a valid value that this version of Rigel does not implement.
    #[error("{file}: field {field}: {found} is not supported; supported: {supported}")]
    Unsupported {
        /// Path of the file.
        file: String,
        /// Name of the field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What is implemented, or what to use in place of this checkpoint.
        supported: String,
    },
    /// A tensor that is absent, or is not what config.json makes it.
    #[error("{file}: tensor {tensor}: found {found}, expected {expected}; {advice}")]
    Tensor {
        /// Path of the weight file, or of the checkpoint where no file has the tensor.
        file: String,
        /// Name of the tensor.
        tensor: String,
        /// What the file holds.
        found: String,
        /// What it should hold.
        expected: String,
        /// What to do about it.
        advice: &'static str,
    },
}

/// What to do about a file that is damaged.
pub(super) const DOWNLOAD_AGAIN: &str = "the file is damaged: download it again";

/// The most characters of foreign text that a message shows.
const SHOWN: usize = 96;

/// `text` for a message: escaped so that it stays on one line, and shortened.
pub(super) fn shown(text: &str) -> String {
    let mut out = String::new();
    for (n, c) in text.chars().enumerate() {
        if n == SHOWN {
            out.push('…');
            break;
        }
        // Not `escape_debug`: quotes and letters of any script stay readable.
        if c.is_control() {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// A JSON value for a message: compact, shortened, on one line.
pub(super) fn shown_value(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Array(items) if items.len() > 16 => format!("a list of {} items", items.len()),
        serde_json::Value::Object(fields) if fields.len() > 16 => format!("an object of {} fields", fields.len()),
        value => shown(&with_non_finite(value.to_string())),
    }
}

/// A shape for a message: `[2, 3]`, shortened.
pub(super) fn shown_shape(shape: &[usize]) -> String {
    if shape.len() > 16 { format!("a shape of {} dimensions", shape.len()) } else { format!("{shape:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_stays_on_one_line_and_short() {
        assert_eq!(shown("a\nb\u{1b}[31m é"), "a\\nb\\u{1b}[31m é");
        let long = shown(&"x".repeat(1000));
        assert_eq!(long.chars().count(), SHOWN + 1);
        assert!(long.ends_with('…'));
        assert_eq!(shown_value(&serde_json::json!(["a", 1, null])), r#"["a",1,null]"#);
        assert_eq!(shown_value(&serde_json::json!(vec![0; 1000])), "a list of 1000 items");
        assert_eq!(shown_shape(&[2, 3]), "[2, 3]");
        assert_eq!(shown_shape(&[1; 99]), "a shape of 99 dimensions");
    }
}
