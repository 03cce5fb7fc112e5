//! An infill prompt for a file that is longer than its room: what is nearest to the gap stays.

use super::infill::encode;
use super::{Infill, RepoContext, TextError, TokenId, Tokenizer};

/// An infill prompt that fits, and what was left out for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FittedPrompt {
    /// The prompt.
    pub ids: Vec<TokenId>,
    /// Tokens that the prompt has with nothing left out.
    pub whole_tokens: usize,
    /// Bytes left out at the start of the prefix.
    pub prefix_cut: usize,
    /// Bytes left out at the end of the suffix.
    pub suffix_cut: usize,
    /// Context files left out, the last ones.
    pub files_cut: usize,
}

impl FittedPrompt {
    /// Whether the prompt is whole.
    pub fn is_whole(&self) -> bool {
        (self.prefix_cut, self.suffix_cut, self.files_cut) == (0, 0, 0)
    }
}

impl Infill {
    /// The prompt of [`Infill::prompt`] in at most `max_tokens` tokens. Where the whole has more, context files are
    /// left out, the last one first; then the start of the prefix and the end of the suffix. Of the room for code the
    /// prefix has three quarters and the suffix one; what either does not need is the other's. Cuts are at line breaks,
    /// unless a line is so long that half of the code would go with it. Names and paths always stay.
    ///
    /// # Errors
    /// [`TextError::InfillTooLong`] if names, paths and the format's own tokens are more than `max_tokens`, and those
    /// of [`Infill::prompt`].
    pub fn fit(
        &self,
        tokenizer: &Tokenizer,
        prefix: &str,
        suffix: &str,
        context: &RepoContext,
        max_tokens: usize,
    ) -> Result<FittedPrompt, TextError> {
        let mut parts = self.parts(tokenizer, prefix, suffix, context)?;
        let mut ids = self.join(tokenizer, &parts);
        let (whole_tokens, files) = (ids.len(), parts.files.len());
        while ids.len() > max_tokens && parts.files.pop().is_some() {
            ids = self.join(tokenizer, &parts);
        }
        let files_cut = files - parts.files.len();
        let (mut prefix_cut, mut suffix_cut) = (0, 0);
        if ids.len() > max_tokens {
            let around = ids.len() - parts.prefix.len() - parts.suffix.len();
            let too_long = |code: usize| TextError::InfillTooLong { needed: around + code, max_tokens };
            let path = context.path.as_deref();
            let path_tokens = encode(tokenizer, path, "")?.len();
            let room = max_tokens.checked_sub(around).ok_or_else(|| too_long(path_tokens))?;
            if path_tokens > room {
                return Err(too_long(path_tokens));
            }
            // At least the path has room, whatever its share.
            let budget = share(room, parts.prefix.len(), parts.suffix.len()).max(path_tokens);
            (prefix_cut, parts.prefix) = last_lines(tokenizer, path, prefix, &parts.prefix, budget)?;
            let budget = room - parts.prefix.len();
            (suffix_cut, parts.suffix) = first_lines(tokenizer, suffix, &parts.suffix, budget)?;
            ids = self.join(tokenizer, &parts);
        }
        Ok(FittedPrompt { ids, whole_tokens, prefix_cut, suffix_cut, files_cut })
    }
}

/// How many of `room` tokens the prefix may have: three quarters, or what the suffix leaves.
fn share(room: usize, prefix: usize, suffix: usize) -> usize {
    let share = room - room / 4;
    prefix.min(share.max(room.saturating_sub(suffix)))
}

/// The end of `text`, whose ids with its path are `ids`, in at most `budget` tokens, and how many bytes were left out.
fn last_lines(
    tokenizer: &Tokenizer,
    path: Option<&str>,
    text: &str,
    ids: &[TokenId],
    budget: usize,
) -> Result<(usize, Vec<TokenId>), TextError> {
    if ids.len() <= budget {
        return Ok((0, ids.to_vec()));
    }
    let path_tokens = encode(tokenizer, path, "")?.len();
    let tokens = budget.saturating_sub(path_tokens);
    let mut keep = bytes_of(tokenizer, &ids[ids.len() - tokens..]).min(text.len());
    loop {
        let start = line_start(text, text.len() - keep);
        let found = encode(tokenizer, path, &text[start..])?;
        // A path without code was found to fit.
        if found.len() <= budget || start == text.len() {
            return Ok((start, found));
        }
        keep = fewer(text.len() - start, budget, found.len());
    }
}

/// The beginning of `text`, whose ids are `ids`, in at most `budget` tokens, and how many bytes were left out.
fn first_lines(
    tokenizer: &Tokenizer,
    text: &str,
    ids: &[TokenId],
    budget: usize,
) -> Result<(usize, Vec<TokenId>), TextError> {
    if ids.len() <= budget {
        return Ok((0, ids.to_vec()));
    }
    let mut keep = bytes_of(tokenizer, &ids[..budget]).min(text.len());
    loop {
        let end = line_end(text, keep);
        let found = encode(tokenizer, None, &text[..end])?;
        if found.len() <= budget || end == 0 {
            return Ok((text.len() - end, found));
        }
        keep = fewer(end, budget, found.len());
    }
}

/// Bytes to try next where `kept` bytes have `found` tokens, more than the budget: tokens at a cut may be shorter than
/// they were in the whole.
fn fewer(kept: usize, budget: usize, found: usize) -> usize {
    let expected = kept as u128 * budget as u128 / found.max(1) as u128;
    (expected as usize).min(kept - 1)
}

fn bytes_of(tokenizer: &Tokenizer, ids: &[TokenId]) -> usize {
    ids.iter().map(|id| tokenizer.token_bytes(*id).map_or(0, |bytes| bytes.len())).sum()
}

/// The start of the first line at or after `start`, or of the first character where the line is most of what follows.
fn line_start(text: &str, start: usize) -> usize {
    let start = (start..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    if start == 0 || text.as_bytes()[start - 1] == b'\n' {
        return start;
    }
    let next = text[start..].find('\n').map_or(text.len(), |index| start + index + 1);
    if text.len() - next >= (text.len() - start).div_ceil(2) { next } else { start }
}

/// The end of the last line that ends at or before `end`, or of the last character where the line is most of the text.
fn line_end(text: &str, end: usize) -> usize {
    let end = (0..=end).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let last = text[..end].rfind('\n').map_or(0, |index| index + 1);
    if last >= end.div_ceil(2) { last } else { end }
}

#[cfg(test)]
mod tests {
    use super::super::{ContextFile, testing};
    use super::*;
    use proptest::prelude::*;

    fn code(lines: usize) -> String {
        (0..lines).map(|line| format!("line {line}\n")).collect()
    }

    fn context(path: Option<&str>, repo: Option<&str>, files: &[&str]) -> RepoContext {
        let files = files.iter().map(|text| ContextFile { path: None, text: (*text).to_owned() }).collect();
        RepoContext { repo_name: repo.map(str::to_owned), files, path: path.map(str::to_owned) }
    }

    #[test]
    fn what_is_near_the_gap_stays_in_whole_lines() {
        let t = testing::byte_level();
        let infill = Infill::from_tokenizer(&t).unwrap();
        let text = code(100);
        let whole = infill.prompt(&t, &text, &text, &RepoContext::default()).unwrap();
        let fitted = infill.fit(&t, &text, &text, &RepoContext::default(), whole.len() / 2).unwrap();
        assert!(fitted.ids.len() <= whole.len() / 2 && fitted.whole_tokens == whole.len());
        let (prefix, suffix) = (&text[fitted.prefix_cut..], &text[..text.len() - fitted.suffix_cut]);
        assert!(prefix.starts_with("line ") && suffix.ends_with('\n'), "{prefix:?} {suffix:?}");
        assert_eq!(fitted.ids, infill.prompt(&t, prefix, suffix, &RepoContext::default()).unwrap());
        // Three quarters and one, to within a line.
        let ratio = prefix.len() as f64 / suffix.len() as f64;
        assert!((2.5..3.6).contains(&ratio), "{ratio}");
        // What one does not need is the other's.
        let short = infill.fit(&t, "x\n", &text, &RepoContext::default(), whole.len() / 3).unwrap();
        assert_eq!(short.prefix_cut, 0);
        assert!(short.ids.len() + 12 > whole.len() / 3, "{}", short.ids.len());
        let short = infill.fit(&t, &text, "\nx", &RepoContext::default(), whole.len() / 3).unwrap();
        assert!(short.suffix_cut == 0 && short.ids.len() + 12 > whole.len() / 3, "{}", short.ids.len());
    }

    #[test]
    fn context_files_go_first_and_the_last_of_them() {
        let t = testing::byte_level();
        let infill = Infill::from_tokenizer(&t).unwrap();
        let (a, b) = (code(10), code(10));
        let context = context(Some("c.py"), Some("me/app"), &[&a, &b]);
        let whole = infill.prompt(&t, "p\n", "s\n", &context).unwrap().len();
        let fitted = infill.fit(&t, "p\n", "s\n", &context, whole).unwrap();
        assert!(fitted.is_whole());
        let fitted = infill.fit(&t, "p\n", "s\n", &context, whole - 1).unwrap();
        assert_eq!((fitted.files_cut, fitted.prefix_cut, fitted.suffix_cut), (1, 0, 0));
        let first = RepoContext { files: context.files[..1].to_vec(), ..context.clone() };
        assert_eq!(fitted.ids, infill.prompt(&t, "p\n", "s\n", &first).unwrap());
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let t = testing::byte_level();
        let infill = Infill::from_tokenizer(&t).unwrap();
        let line = "é".repeat(200);
        let fitted = infill.fit(&t, &line, &line, &RepoContext::default(), 100).unwrap();
        assert!(fitted.ids.len() <= 100 && fitted.ids.len() > 90, "{}", fitted.ids.len());
        assert!(line.is_char_boundary(fitted.prefix_cut) && fitted.prefix_cut < line.len());
    }

    #[test]
    fn names_alone_may_be_too_long() {
        let t = testing::byte_level();
        let infill = Infill::from_tokenizer(&t).unwrap();
        let context = context(Some("a/long/path/of/a/file.py"), None, &[]);
        let needed = infill.prompt(&t, "", "", &context).unwrap().len();
        assert_eq!(infill.fit(&t, "x", "y", &context, needed).unwrap().ids.len(), needed);
        let error = infill.fit(&t, "x", "y", &context, needed - 1).unwrap_err();
        assert!(
            matches!(error, TextError::InfillTooLong { needed: n, max_tokens } if n == needed && max_tokens == needed - 1)
        );
        assert!(infill.fit(&t, "", "", &RepoContext::default(), 0).is_err());
    }

    proptest! {
        /// For every room: never more tokens than it has, the end of the prefix and the beginning of the suffix, and
        /// everything where it fits.
        #[test]
        fn a_prompt_fits_every_room(
            prefix in "[a-e \\né🙂]{0,80}",
            suffix in "[a-e \\n\\r日]{0,80}",
            files in prop::collection::vec("[a-c\\n]{0,20}", 0..3),
            path in prop::option::of("[a-c/]{1,8}"),
            room in 0usize..300,
        ) {
            let t = testing::byte_level();
            let infill = Infill::from_tokenizer(&t).unwrap();
            let files: Vec<&str> = files.iter().map(String::as_str).collect();
            let context = context(path.as_deref(), None, &files);
            let whole = infill.prompt(&t, &prefix, &suffix, &context).unwrap();
            let bare = RepoContext { files: Vec::new(), ..context.clone() };
            let least = infill.prompt(&t, "", "", &bare).unwrap().len();
            match infill.fit(&t, &prefix, &suffix, &context, room) {
                Err(_) => prop_assert!(room < least),
                Ok(fitted) => {
                    prop_assert!(fitted.ids.len() <= room);
                    prop_assert_eq!(fitted.whole_tokens, whole.len());
                    prop_assert_eq!(fitted.is_whole(), whole.len() <= room);
                    let kept = RepoContext { files: context.files[..files.len() - fitted.files_cut].to_vec(), ..bare };
                    let (prefix, suffix) = (&prefix[fitted.prefix_cut..], &suffix[..suffix.len() - fitted.suffix_cut]);
                    prop_assert_eq!(&fitted.ids, &infill.prompt(&t, prefix, suffix, &kept).unwrap());
                    // Code is cut only where no other file is left.
                    let code_cut = fitted.prefix_cut + fitted.suffix_cut > 0;
                    prop_assert!(!code_cut || kept.files.is_empty());
                }
            }
        }
    }
}
