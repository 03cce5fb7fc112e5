//! The checkpoint that is part of the program: the crate `rigel-nano`, with the cargo feature `nano`.

use super::error::CheckpointError;

/// The content of the bundled checkpoint's file `name`; `None` if it has no such file.
///
/// # Errors
/// [`CheckpointError::NoBundledModel`] without the feature.
#[cfg(feature = "nano")]
pub(super) fn file(name: &str) -> Result<Option<&'static [u8]>, CheckpointError> {
    Ok(rigel_nano::file(name))
}

#[cfg(not(feature = "nano"))]
pub(super) fn file(_name: &str) -> Result<Option<&'static [u8]>, CheckpointError> {
    Err(CheckpointError::NoBundledModel)
}

#[cfg(all(test, not(feature = "nano")))]
mod tests {
    use super::super::{Checkpoint, ModelSource};

    #[test]
    fn without_the_feature_its_name_is_known_and_the_feature_is_named() {
        let source = ModelSource::resolve("nano").unwrap();
        let error = Checkpoint::open(&source).unwrap_err().to_string();
        assert_eq!(
            error,
            "nano is not in this program: it was built without the cargo feature `nano`; give another model"
        );
        assert_eq!(source.read("tokenizer.json").unwrap_err().to_string(), error);
    }
}
