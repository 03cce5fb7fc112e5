//! What a command reads whole: stdin or a file, to its last byte.

use std::io::{IsTerminal, Read};
use std::path::Path;

use super::error::CliError;

/// The name that stands for stdin.
pub const STDIN: &str = "-";

/// What some editors put at a file's start.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The name under which messages speak of a file argument.
pub fn origin(path: &str) -> String {
    if path == STDIN { "stdin".to_owned() } else { path.to_owned() }
}

/// All of a file, or of stdin where `path` is `-`, without a byte order mark: that mark is no text, and a model that
/// reads one is led astray.
pub fn read_text(path: &str) -> Result<String, CliError> {
    let text = read_exact(path)?;
    Ok(text.strip_prefix(BYTE_ORDER_MARK).map(str::to_owned).unwrap_or(text))
}

/// The same byte for byte.
pub fn read_exact(path: &str) -> Result<String, CliError> {
    let error = |source| CliError::Read { origin: origin(path), source };
    let bytes = if path == STDIN {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    utf8(bytes.map_err(error)?, &origin(path))
}

/// An argument as it is. Where it is `-`, and where there is none and no person at a terminal writes it, what `read`
/// makes of stdin. None where nobody gave anything. Warns of an argument that is the name of a file.
pub fn text_or_stdin(
    argument: Option<String>,
    read: impl Fn(&str) -> Result<String, CliError>,
) -> Result<Option<String>, CliError> {
    match argument {
        None if std::io::stdin().is_terminal() => Ok(None),
        // Nothing on a stdin that nobody named is no text of nothing.
        None => Ok(Some(read(STDIN)?).filter(|text| !text.is_empty())),
        Some(argument) if argument == STDIN => read(STDIN).map(Some),
        Some(argument) => {
            if is_file_name(&argument) {
                tracing::warn!(
                    "{argument} is a file, and the text is its name alone; to read the file give: - < {argument}"
                );
            }
            Ok(Some(argument))
        }
    }
}

/// Whether a text is one word that names a file: whoever gives it may want what the file holds.
pub fn is_file_name(text: &str) -> bool {
    !text.contains(char::is_whitespace) && Path::new(text).is_file()
}

/// Bytes as text.
pub fn utf8(bytes: Vec<u8>, origin: &str) -> Result<String, CliError> {
    String::from_utf8(bytes)
        .map_err(|error| CliError::NotUtf8 { origin: origin.to_owned(), offset: error.utf8_error().valid_up_to() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_loses_its_byte_order_mark_but_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.py");
        std::fs::write(&path, "\u{feff}\u{feff}x\r\n").unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(read_exact(path).unwrap(), "\u{feff}\u{feff}x\r\n");
        assert_eq!(read_text(path).unwrap(), "\u{feff}x\r\n");
        std::fs::write(path, b"ab\xff").unwrap();
        assert_eq!(
            read_text(path).unwrap_err().line().unwrap(),
            format!("{path}: byte 2 is not valid UTF-8; give UTF-8 text, or token ids")
        );
    }

    #[test]
    fn one_word_may_be_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.py");
        assert!(!is_file_name(path.to_str().unwrap()));
        std::fs::write(&path, "x").unwrap();
        assert!(is_file_name(path.to_str().unwrap()));
        assert!(!is_file_name(&format!("{} ", path.display())));
        assert!(!is_file_name(dir.path().to_str().unwrap()));
        assert!(!is_file_name(""));
    }
}
