//! What the environment says, in huggingface_hub's variables: HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME,
//! HF_HUB_OFFLINE, and SSL_CERT_FILE or REQUESTS_CA_BUNDLE for networks with a certificate authority of their own.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::HubError;
use super::url::Endpoint;
use crate::checkpoint::hub::{home_in, path_variable};

const ENDPOINT: &str = "https://huggingface.co";

/// Longer ones are no tokens.
const MAX_TOKEN_BYTES: usize = 4096;

/// What the environment says about the hub.
#[derive(Clone)]
pub(super) struct Settings {
    pub endpoint: Endpoint,
    pub token: Option<Token>,
    /// PEM certificates to trust in place of the built-in ones.
    pub certificates: Option<PathBuf>,
}

/// A secret: has no `Debug`, so that no message shows it.
#[derive(Clone)]
pub(super) struct Token(String);

impl Token {
    /// The header that carries it.
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    /// A variable that cannot be used; one that forbids the network.
    pub fn read(env: impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Result<Settings, HubError> {
        for variable in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
            let value = env(variable).map(|value| value.to_string_lossy().to_ascii_uppercase());
            if value.is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.as_str())) {
                return Err(HubError::Offline { variable });
            }
        }
        let endpoint = env("HF_ENDPOINT").filter(|value| !value.is_empty());
        let endpoint = endpoint.map_or_else(|| ENDPOINT.to_owned(), |value| value.to_string_lossy().into_owned());
        let wrong = || HubError::Setting {
            name: "HF_ENDPOINT".to_owned(),
            found: "is no address of a hub".to_owned(),
            expected: "one such as https://huggingface.co",
        };
        let certificates = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"]
            .iter()
            .find_map(|name| path_variable(&env, name, home.as_deref()))
            .filter(|path| path.is_file());
        Ok(Settings {
            endpoint: Endpoint::parse(&endpoint).ok_or_else(wrong)?,
            token: token(&env, home)?,
            certificates,
        })
    }
}

fn token(env: &impl Fn(&str) -> Option<OsString>, home: Option<PathBuf>) -> Result<Option<Token>, HubError> {
    for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
        if let Some(value) = env(name).filter(|value| !value.is_empty()) {
            return checked(name, value.to_string_lossy().as_bytes());
        }
    }
    let file = path_variable(env, "HF_TOKEN_PATH", home.as_deref());
    let Some(file) = file.or_else(|| Some(home_in(env, home)?.join("token"))) else { return Ok(None) };
    match fs::read(&file) {
        Ok(bytes) => checked(&file.display().to_string(), &bytes),
        // Only a file that is there and cannot be read is worth a word: nobody has to have a token.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(unreadable(&file, &error)),
        Err(_) => Ok(None),
    }
}

fn unreadable(file: &Path, error: &io::Error) -> HubError {
    let (name, found) = (file.display().to_string(), format!("cannot be read: {error}"));
    HubError::Setting { name, found, expected: "a file with a token of the hub" }
}

/// The token in `bytes`, without white space around it; none where nothing else is there.
fn checked(name: &str, bytes: &[u8]) -> Result<Option<Token>, HubError> {
    let bytes = bytes.trim_ascii();
    if bytes.is_empty() {
        return Ok(None);
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if text.len() <= MAX_TOKEN_BYTES && text.bytes().all(|b| b.is_ascii_graphic()) => {
            Ok(Some(Token(text.to_owned())))
        }
        _ => Err(HubError::Setting {
            name: name.to_owned(),
            found: "has characters that no token has".to_owned(),
            expected: "one word, such as hf_…",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Settings, String> {
        let env = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
        Settings::read(env, None).map_err(|error| error.to_string())
    }

    fn token(vars: &[(&str, &str)]) -> Option<String> {
        read(vars).unwrap().token.map(|token| token.authorization())
    }

    #[test]
    fn the_token_is_a_variable_or_a_file() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().to_str().unwrap();
        assert_eq!(token(&[]), None);
        assert_eq!(token(&[("HF_HOME", path)]), None);
        fs::write(home.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(token(&[("HF_HOME", path)]).unwrap(), "Bearer hf_file");
        assert_eq!(token(&[("HF_HOME", path), ("HF_TOKEN", " hf_variable\n")]).unwrap(), "Bearer hf_variable");
        assert_eq!(token(&[("HF_HOME", path), ("HF_TOKEN", "")]).unwrap(), "Bearer hf_file");
        fs::write(home.path().join("other"), "hf_other").unwrap();
        let other = home.path().join("other");
        let vars = [("HF_HOME", path), ("HF_TOKEN_PATH", other.to_str().unwrap())];
        assert_eq!(token(&vars).unwrap(), "Bearer hf_other");
        // A line break in a header would begin another one.
        let message = read(&[("HF_TOKEN", "hf_secret\r\nX: y")]).err().unwrap();
        assert_eq!(message, "HF_TOKEN has characters that no token has; expected one word, such as hf_…");
    }

    #[test]
    fn the_hub_s_address_and_offline() {
        assert_eq!(read(&[]).unwrap().endpoint.join("x"), "https://huggingface.co/x");
        assert_eq!(read(&[("HF_ENDPOINT", "http://localhost:1/")]).unwrap().endpoint.join("x"), "http://localhost:1/x");
        assert!(read(&[("HF_ENDPOINT", "localhost")]).err().unwrap().starts_with("HF_ENDPOINT is no address"));
        assert!(read(&[("HF_HUB_OFFLINE", "true")]).err().unwrap().starts_with("HF_HUB_OFFLINE is set"));
        assert!(read(&[("HF_HUB_OFFLINE", "0")]).is_ok());
    }
}
