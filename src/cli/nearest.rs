//! The name that was probably meant: of fields and of what users write for them.

/// No field's name is nearly as long. Longer names are the caller's own: they are not compared.
pub const MAX_NAME_BYTES: usize = 64;

/// A name's letters and digits in lower case: `maxTokens`, `max-tokens` and `MAX_TOKENS` are one name.
pub fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// The candidate that a name is spelt almost like, if there is one; the first of those that are equally near.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > MAX_NAME_BYTES {
        return None;
    }
    let written = plain(name);
    let distances =
        candidates.into_iter().map(|candidate| (strsim::osa_distance(&written, &plain(candidate)), candidate));
    let (distance, candidate) = distances.min_by_key(|(distance, _)| *distance)?;
    // Of short words another letter makes another word: mine, step.
    let letters = |word: &str| {
        let mut letters: Vec<char> = word.chars().collect();
        letters.sort_unstable();
        letters
    };
    let (of_word, of_candidate) = (letters(&written), letters(&plain(candidate)));
    let has_another_letter = of_word.len() == of_candidate.len() && of_word != of_candidate;
    let is_near = match of_word.len() {
        0..4 => distance == 0,
        4..6 => distance <= usize::from(!has_another_letter),
        6..8 => distance <= 1,
        _ => distance <= 2,
    };
    is_near.then_some(candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_near_those_it_is_spelt_almost_like() {
        let of = |name| nearest(name, ["prompt", "text", "token_ids", "messages"]);
        for (name, near) in [
            ("promt", "prompt"),
            ("Prompt", "prompt"),
            ("prompts", "prompt"),
            ("tokens_ids", "token_ids"),
            ("tokenIds", "token_ids"),
            ("message", "messages"),
            ("texts", "text"),
        ] {
            assert_eq!(of(name), Some(near), "{name}");
        }
        for name in ["input", "content", "question", "test", "context", "tokens", "id", "", "-"] {
            assert_eq!(of(name), None, "{name}");
        }
        assert_eq!(nearest("x", []), None);
        // Nothing but its length tells it from prompt.
        assert_eq!(of(&format!("prompt{}", "-".repeat(MAX_NAME_BYTES))), None);
    }
}
