//! The checkpoint that is part of the binary: `models/nano`.

/// Bytes at an address that is a multiple of 64, a cache line. `include_bytes!` alone promises no alignment; with it
/// the data of the bundled weights lies as in a mapped file, which begins at a page.
#[repr(C, align(64))]
struct Aligned<B: ?Sized>(B);

macro_rules! nano {
    ($name:literal) => {{
        const BYTES: &Aligned<[u8]> =
            &Aligned(*include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/models/nano/", $name)));
        ($name, &BYTES.0)
    }};
}

/// Name and content of every file of the bundled checkpoint.
static FILES: [(&str, &[u8]); 6] = [
    nano!("config.json"),
    nano!("generation_config.json"),
    nano!("model.safetensors"),
    nano!("special_tokens_map.json"),
    nano!("tokenizer.json"),
    nano!("tokenizer_config.json"),
];

/// The content of the bundled checkpoint's file `name`.
pub(super) fn file(name: &str) -> Option<&'static [u8]> {
    FILES.iter().find(|(file, _)| *file == name).map(|(_, bytes)| *bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_aligned_and_small_enough_to_ship() {
        let weights = file("model.safetensors").unwrap();
        assert_eq!(weights.as_ptr() as usize % 64, 0);
        let total: usize = FILES.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(total <= 9_000_000, "{total} bytes");
        assert!(file("absent.json").is_none());
    }
}
