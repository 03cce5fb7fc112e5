//! Which cases a word on the command line means.

use super::case::Case;

/// The words of a filter: a case is meant where each of them is part of its kernel, model or sizes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter(Vec<String>);

/// A filter that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no kernel is called \"{word}\"; {}", suggestion(.nearest, .known))]
pub struct UnknownKernel {
    /// The word that no case has.
    pub word: String,
    /// Names that are like it, the likest first; empty where none is.
    pub nearest: Vec<String>,
    /// All names of kernels.
    pub known: Vec<String>,
}

fn suggestion(nearest: &[String], known: &[String]) -> String {
    match nearest {
        [] => format!("there are {}", known.join(", ")),
        nearest => format!("did you mean {}?", nearest.join(" or ")),
    }
}

impl Filter {
    /// Of words between spaces; none means every case.
    pub fn new(text: &str) -> Filter {
        Filter(text.split_whitespace().map(str::to_lowercase).collect())
    }

    /// The cases that are meant.
    ///
    /// # Errors
    /// [`UnknownKernel`] where there is none.
    pub fn select(&self, cases: Vec<Case>) -> Result<Vec<Case>, UnknownKernel> {
        let texts: Vec<Vec<String>> = cases.iter().map(words).collect();
        let means = |texts: &[String]| self.0.iter().all(|word| texts.iter().any(|text| matches(text, word)));
        if !texts.iter().any(|texts| means(texts)) {
            return Err(self.unknown(&cases, &texts));
        }
        Ok(cases.into_iter().zip(&texts).filter(|(_, texts)| means(texts)).map(|(case, _)| case).collect())
    }

    fn unknown(&self, cases: &[Case], texts: &[Vec<String>]) -> UnknownKernel {
        let missing = |word: &&String| !texts.iter().flatten().any(|text| matches(text, word));
        // Each word may be there, and no case have all of them.
        let word = self.0.iter().find(missing).cloned().unwrap_or_else(|| self.0.join(" "));
        let mut known: Vec<String> = Vec::new();
        for name in cases.iter().map(Case::name) {
            if !known.contains(&name) {
                known.push(name);
            }
        }
        let parts = known.iter().flat_map(|name| name.split(' ').chain([name.as_str()]));
        let mut near: Vec<(usize, &str)> = parts.map(|part| (edits(&word, part), part)).collect();
        // A third of the letters may be others.
        near.retain(|(edits, part)| *edits <= word.chars().count().max(part.chars().count()) / 3);
        near.sort();
        near.dedup();
        let nearest = near.into_iter().take(3).map(|(_, part)| part.to_owned()).collect();
        UnknownKernel { word, nearest, known }
    }
}

/// Texts that words are looked for in.
fn words(case: &Case) -> Vec<String> {
    let sizes = case.sizes_for_filter();
    let mut texts = vec![case.name(), case.model.clone()];
    texts.extend(sizes);
    texts
}

/// Names by a part of them, sizes as a whole: `rows=1` is not `rows=16`.
fn matches(text: &str, word: &str) -> bool {
    if word.contains('=') { text == word } else { text.contains(word) }
}

/// The least number of letters to put in, leave out or change that makes one word of another (Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let change = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::super::case::What;
    use super::*;
    use crate::backend::cuda::kernels::embed::EmbedShape;
    use crate::backend::cuda::kernels::linear::GemmShape;

    fn cases() -> Vec<Case> {
        let shape = |rows| GemmShape { m: rows, n: 64, k: 64 };
        let case = |model: &str, what| Case { model: model.to_owned(), what };
        vec![
            case("starcoder2-3b", What::Head(shape(1))),
            case("starcoder2-3b", What::Head(shape(64))),
            case("starcoder2-15b", What::Head(shape(64))),
            case("starcoder2-15b", What::Embed(EmbedShape { rows: 1, vocabulary: 8, width: 8 })),
        ]
    }

    fn selected(text: &str) -> usize {
        Filter::new(text).select(cases()).unwrap().len()
    }

    #[test]
    fn all_words_must_be_there() {
        assert_eq!(
            [selected(""), selected("head"), selected("GEMM"), selected("gemm 15b"), selected("rows=1")],
            [4, 3, 2, 1, 2]
        );
    }

    #[test]
    fn the_nearest_names_are_suggested() {
        let error = Filter::new("gemn").select(cases()).unwrap_err();
        assert_eq!(error.to_string(), "no kernel is called \"gemn\"; did you mean gemm or gemv?");
        let error = Filter::new("embed 3b").select(cases()).unwrap_err();
        assert_eq!(error.word, "embed 3b");
        let error = Filter::new("zzzzzzzz").select(cases()).unwrap_err();
        assert_eq!(error.to_string(), "no kernel is called \"zzzzzzzz\"; there are gemv head, gemm head, embed");
        assert_eq!([edits("kitten", "sitting"), edits("", "abc"), edits("abc", "abc")], [3, 3, 0]);
    }
}
