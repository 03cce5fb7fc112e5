//! A name for each token, for those who can only read text. Knows nothing of log-probabilities.

use std::collections::{HashMap, HashSet};

use super::{TokenId, Tokenizer};

/// Names of tokens in JSON: different ids have different names.
///
/// | token | name |
/// |---|---|
/// | one that is text by itself | its text |
/// | part of a character, or bytes that are no UTF-8 | `bytes:\xf0\x9f`, as OpenAI's completions have it |
/// | an id without a token (logits may be wider than the tokenizer), or any without a tokenizer | `token_id:7`, as vLLM has it |
/// | one whose name a lower id has already | that name and `#id` |
#[derive(Debug, Clone)]
pub struct TokenNames {
    tokenizer: Option<Tokenizer>,
    /// The names of the last row.
    numbered: HashMap<TokenId, String>,
}

impl TokenNames {
    /// The names of the ids below `vocab_size`, which is that of the logits. Looks at every token once.
    pub fn new(tokenizer: Option<Tokenizer>, vocab_size: usize) -> TokenNames {
        let mut names = TokenNames { tokenizer, numbered: HashMap::new() };
        // Without a tokenizer the ids themselves are the names.
        let Some(tokenizer) = &names.tokenizer else { return names };
        // Ids fit u32.
        let ids = vocab_size.max(tokenizer.vocab_size()) as u32;
        let mut taken = HashSet::new();
        for id in (0..ids).map(TokenId) {
            let mut name = names.shared(id);
            let is_first = !taken.contains(&name);
            while taken.contains(&name) {
                name = format!("{name}#{id}");
            }
            if !is_first {
                names.numbered.insert(id, name.clone());
            }
            taken.insert(name);
        }
        names
    }

    /// The name of a token, which no other id has.
    pub fn unique(&self, id: TokenId) -> String {
        self.numbered.get(&id).cloned().unwrap_or_else(|| self.shared(id))
    }

    /// The name of a token without `#id`: ids with the same bytes share it.
    pub fn shared(&self, id: TokenId) -> String {
        TokenNames::shared_name(self.tokenizer.as_ref(), id)
    }

    /// The same without looking at any other token.
    pub fn shared_name(tokenizer: Option<&Tokenizer>, id: TokenId) -> String {
        match tokenizer.and_then(|tokenizer| tokenizer.token_bytes(id)).map(String::from_utf8) {
            Some(Ok(text)) => text,
            Some(Err(error)) => {
                error.as_bytes().iter().fold("bytes:".to_owned(), |name, byte| name + &format!("\\x{byte:02x}"))
            }
            None => format!("token_id:{id}"),
        }
    }

    /// What the token adds to a text; none for an id without a token.
    pub fn bytes(&self, id: TokenId) -> Option<Vec<u8>> {
        self.tokenizer.as_ref().and_then(|tokenizer| tokenizer.token_bytes(id))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing;
    use super::*;

    #[test]
    fn each_kind_of_token_has_its_name() {
        let t = testing::byte_level();
        let names = TokenNames::new(Some(t.clone()), t.vocab_size() + 2);
        assert_eq!(names.unique(testing::byte_id(b'a')), "a");
        assert_eq!(names.unique(TokenId(0)), "<|endoftext|>");
        assert_eq!(names.unique(testing::byte_id(0xF0)), "bytes:\\xf0");
        // Two of the three bytes of 你.
        assert_eq!(names.unique(t.id("ä½").expect("in the vocabulary")), "bytes:\\xe4\\xbd");
        let beyond = t.vocab_size() as u32;
        assert_eq!(names.unique(TokenId(beyond + 1)), format!("token_id:{}", beyond + 1));
        assert_eq!(TokenNames::new(None, 9).unique(TokenId(7)), "token_id:7");
    }

    /// A vocabulary full of tokens that are named alike, or look like the names of others.
    #[test]
    fn no_two_ids_share_a_name() {
        let mut json = testing::byte_level_json();
        let first = testing::byte_level().vocab_size() as u32;
        // Entries outside GPT-2's alphabet stand for their own UTF-8: a second "a b" beside the one of byte tokens.
        let entries = ["bytes:\\xf0", "token_id:9999", "aĠb", "a b"];
        for (id, entry) in (first..).zip(entries) {
            json["model"]["vocab"][entry] = json!(id);
        }
        for (id, content) in (first..).zip(&entries[..2]) {
            let token = json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true});
            json["added_tokens"].as_array_mut().expect("a list").push(token);
        }
        let t = Tokenizer::from_bytes(json.to_string().as_bytes(), "t").expect("valid");
        let [alike, second] = [TokenId(first + 2), TokenId(first + 3)];
        assert_eq!(t.token_bytes(alike), t.token_bytes(second));
        let names = TokenNames::new(Some(t), 10_001);
        let unique: HashSet<String> = (0..10_001).map(|id| names.unique(TokenId(id))).collect();
        assert_eq!(unique.len(), 10_001);
        assert_eq!(names.unique(TokenId(first)), format!("bytes:\\xf0#{first}"));
        assert_eq!(names.shared(TokenId(first)), "bytes:\\xf0");
        assert_eq!(names.unique(alike), "a b");
        assert_eq!((names.unique(second), names.shared(second)), (format!("a b#{second}"), "a b".to_owned()));
        assert_eq!(names.unique(TokenId(9999)), "token_id:9999#9999");
    }
}
