//! nano: a StarCoder2 checkpoint of 3.9 million parameters, as bytes in the program that uses this crate (7.9 MB).
//!
//! ```
//! let config = rigel_nano::file("config.json").expect("every checkpoint has one");
//! assert!(config.starts_with(b"{"));
//! ```
#![no_std]
#![warn(missing_docs)]

/// Bytes at an address that is a multiple of 64, a cache line. `include_bytes!` alone promises no alignment; with it
/// the data of the weights lies as in a mapped file, which begins at a page.
#[repr(C, align(64))]
struct Aligned<B: ?Sized>(B);

macro_rules! model_file {
    ($name:literal) => {{
        const BYTES: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!("../model/", $name)));
        ($name, &BYTES.0)
    }};
}

/// Name and content of every file of the checkpoint, as it would lie in a directory. Each begins at a multiple of 64
/// bytes.
pub static FILES: [(&str, &[u8]); 6] = [
    model_file!("config.json"),
    model_file!("generation_config.json"),
    model_file!("model.safetensors"),
    model_file!("special_tokens_map.json"),
    model_file!("tokenizer.json"),
    model_file!("tokenizer_config.json"),
];

/// The content of the checkpoint's file `name`; `None` if it has no such file.
pub fn file(name: &str) -> Option<&'static [u8]> {
    FILES.iter().find(|(file, _)| *file == name).map(|(_, bytes)| *bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_aligned_and_small_enough_to_ship() {
        for (name, bytes) in FILES {
            assert_eq!(bytes.as_ptr() as usize % 64, 0, "{name}");
        }
        let total: usize = FILES.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(total <= 9_000_000, "{total} bytes");
        assert!(file("absent.json").is_none());
    }
}
