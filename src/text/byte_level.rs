//! The byte alphabet of GPT-2's byte-level BPE: one printable character for each of the 256 bytes. Knows nothing of
//! vocabularies.

/// The byte that `c` stands for; `None` outside the alphabet.
///
/// Inverse of `bytes_to_unicode` in openai/gpt-2 `src/encoder.py`: printable Latin-1 stands for itself, the other 68
/// bytes are U+0100 onwards in ascending order.
pub(super) fn byte_of(c: char) -> Option<u8> {
    let code = c as u32;
    let byte = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// The bytes that a vocabulary entry stands for. An entry with any character outside the alphabet is not byte-level
/// at all (an added token such as `<｜fim▁begin｜>`) and stands for its own UTF-8, as the `tokenizers` crate has it.
pub(super) fn bytes_of(entry: &str) -> Vec<u8> {
    entry.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_else(|| entry.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `bytes_to_unicode` as GPT-2's encoder.py writes it, to check the closed form against.
    fn bytes_to_unicode() -> Vec<(u8, char)> {
        let printable = |b: u8| (b'!'..=b'~').contains(&b) || (0xA1..=0xAC).contains(&b) || (0xAE..=0xFF).contains(&b);
        let mut next = 256u32;
        (0..=255u8)
            .map(|b| {
                let code = if printable(b) {
                    u32::from(b)
                } else {
                    next += 1;
                    next - 1
                };
                (b, char::from_u32(code).expect("below 0x144"))
            })
            .collect()
    }

    #[test]
    fn inverts_gpt2s_table() {
        for (byte, c) in bytes_to_unicode() {
            assert_eq!(byte_of(c), Some(byte), "{c:?}");
        }
        let alphabet = (0..0x11_0000).filter_map(char::from_u32).filter(|c| byte_of(*c).is_some()).count();
        assert_eq!(alphabet, 256);
    }

    #[test]
    fn entries_outside_the_alphabet_are_their_own_utf8() {
        assert_eq!(bytes_of("Ġa"), b" a");
        assert_eq!(bytes_of("<｜fim▁begin｜>"), "<｜fim▁begin｜>".as_bytes());
        assert_eq!(bytes_of("ĠĠ▁"), "ĠĠ▁".as_bytes());
    }
}
