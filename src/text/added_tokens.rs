//! Tokens that stand outside of tokenizer.json: those of `added_tokens_decoder` and the named special ones are added
//! after the vocabulary, as transformers adds them. Knows nothing of text.

use tokenizers::{AddedToken, Tokenizer};

use super::config::TokensWithIds;
use super::tokenizer::guarded;
use super::{TextError, TokenId, TokenizerConfig};

/// Adds the tokens of `config` to `tokenizer`, which came from the file `vocabulary`. Returns the texts of those that
/// got a new id because a field names them, and no file states their id: no model was trained on them. An unusable
/// field is a warning.
///
/// The same as `PreTrainedTokenizerFast.__init__` (transformers 4.57, 5.23), but for ids: transformers ignores the ids
/// of `added_tokens_decoder`, and then the model is given other tokens than it was trained on.
///
/// # Errors
/// [`TextError::IdClash`], [`TextError::InvalidField`] in the list of tokens with ids, and the reason why a token
/// cannot be added.
pub(super) fn add(
    tokenizer: &mut Tokenizer,
    config: &TokenizerConfig,
    vocabulary: &str,
) -> Result<Vec<String>, TextError> {
    let TokensWithIds { tokens: with_ids, origin, with_flags } = config.tokens_with_ids()?;
    let clash = |id: u32, token: &AddedToken, other: String| TextError::IdClash {
        file: origin.to_owned(),
        token: token.content.clone(),
        id: TokenId(id),
        vocabulary: vocabulary.to_owned(),
        other,
    };
    for (id, token) in &with_ids {
        match (tokenizer.token_to_id(&token.content), tokenizer.id_to_token(*id)) {
            (Some(there), _) if there != *id => return Err(clash(*id, token, format!("it has id {there}"))),
            (None, Some(there)) => return Err(clash(*id, token, format!("id {id} is {there:?}"))),
            _ => {}
        }
    }
    let known: Vec<AddedToken> = tokenizer.get_added_tokens_decoder().into_values().collect();
    let changes = |token: &AddedToken| match with_flags {
        true => !known.contains(token),
        false => !known.iter().any(|other| other.content == token.content),
    };
    let mut tokens: Vec<AddedToken> =
        with_ids.iter().map(|(_, token)| token).filter(|token| changes(token)).cloned().collect();
    let (mut named, mut new_by_name) = (Vec::new(), Vec::new());
    for token in config.named_tokens() {
        let token = match token {
            Ok(named) => named,
            Err(problem) => {
                tracing::warn!("{problem}; taken as absent");
                continue;
            }
        };
        let new = !known.iter().chain(&tokens).any(|other| other.content == token.token.content);
        if token.field.is_some() {
            named.push(token.token.content.clone());
        }
        if new {
            if tokenizer.token_to_id(&token.token.content).is_none() {
                new_by_name.push(token.token.content.clone());
            }
            tokens.push(token.token);
        }
    }
    for token in &mut tokens {
        token.special |= named.contains(&token.content);
    }
    guarded(|| tokenizer.add_tokens(tokens)).map_err(|reason| TextError::InvalidTokenizer {
        file: vocabulary.to_owned(),
        reason: format!("a token cannot be added: {reason}"),
    })?;
    for (id, token) in &with_ids {
        match tokenizer.token_to_id(&token.content) {
            Some(there) if there != *id => {
                return Err(clash(*id, token, format!("the next free id, which it gets, is {there}")));
            }
            // Without an id only where its text is empty: nothing can mean it.
            _ => {}
        }
    }
    Ok(new_by_name)
}
