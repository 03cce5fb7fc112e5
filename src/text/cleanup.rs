//! Hugging Face's clean-up of spaces, for callers that must print what transformers printed. Knows nothing of tokens.

/// `clean_up_tokenization_spaces` of transformers ≤ 4.x (`PreTrainedTokenizerBase.clean_up_tokenization`): ten
/// replacements, one after the other. It changes code (`x != y` becomes `x!= y`), so nothing here applies it unasked.
pub fn clean_up_spaces(text: &str) -> String {
    const REPLACEMENTS: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    REPLACEMENTS.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::clean_up_spaces;

    #[test]
    fn replaces_as_transformers_does() {
        // Left and right: str.replace chains run by hand from the list in reference §3.
        for (before, after) in [
            ("if x != y :", "if x!= y :"),
            ("a , b . c ? d", "a, b. c? d"),
            ("do n't I 'm he 's we 've you 're", "don't I'm he's we've you're"),
            ("x = ' a'", "x ='a'"),
            ("foo(*args , ** kw)", "foo(*args, ** kw)"),
            ("", ""),
        ] {
            assert_eq!(clean_up_spaces(before), after);
        }
    }

    #[test]
    fn order_matters() {
        // " ' " is replaced before " 's": the quote swallows both spaces first.
        assert_eq!(clean_up_spaces("a ' s"), "a's");
        // " ." fires before " ?" can see its own space.
        assert_eq!(clean_up_spaces("a . ?"), "a.?");
    }
}
