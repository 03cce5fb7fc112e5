//! A row's per-token logit edits as the kernel takes them: one list in ascending order of id.

use super::super::kernels::sample::LogitEdit;
use crate::sampling::SampleRow;
use crate::text::TokenId;

/// Replaces `list` with the row's bans, biases and penalised tokens; ids from `vocabulary` on are dropped. Returns
/// `false` if a token has two biases, which the reference sampler adds one after the other and the kernel cannot.
pub(super) fn gather(row: &SampleRow<'_>, vocabulary: usize, list: &mut Vec<LogitEdit>) -> bool {
    let params = row.params;
    let is_token = |token: TokenId| (token.0 as usize) < vocabulary;
    list.clear();
    list.extend(
        params.logit_bias.iter().filter(|(id, _)| is_token(*id)).map(|(id, bias)| LogitEdit::biased(*id, *bias)),
    );
    let biases = list.len();
    list.sort_unstable_by_key(|change| change.id);
    list.dedup_by_key(|change| change.id);
    if list.len() < biases {
        return false;
    }
    let banned = params.banned_token_ids.iter().chain(row.banned);
    list.extend(banned.filter(|id| is_token(**id)).map(|id| LogitEdit::banned(*id)));
    if params.frequency_penalty != 0.0 || params.presence_penalty != 0.0 {
        let counts = row.history.into_iter().flat_map(|history| history.output_counts());
        list.extend(counts.filter(|(id, _)| is_token(*id)).map(|(id, count)| LogitEdit::generated(id, count)));
    }
    // Stable, and detects ascending runs.
    list.sort_by_key(|change| change.id);
    list.dedup_by(|next, kept| {
        let same = next.id == kept.id;
        if same {
            *kept = kept.and(*next);
        }
        same
    });
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::{SamplingParams, TokenHistory};

    fn gathered(
        params: &SamplingParams,
        banned: &[u32],
        history: Option<&TokenHistory>,
    ) -> Option<Vec<(u32, f32, u32)>> {
        let banned: Vec<TokenId> = banned.iter().map(|id| TokenId(*id)).collect();
        let row = SampleRow { history, banned: &banned, ..SampleRow::new(0, params, 0) };
        let mut list = vec![LogitEdit::banned(TokenId(1))];
        gather(&row, 100, &mut list).then(|| list.iter().map(|c| (c.id, c.bias, c.count)).collect())
    }

    #[test]
    fn each_token_has_one_change() {
        let mut history = TokenHistory::new(100, &[TokenId(4)]);
        [9, 3, 9, 50].into_iter().for_each(|id| history.push(TokenId(id)));
        let params = SamplingParams {
            presence_penalty: 0.5,
            logit_bias: vec![(TokenId(50), 2.0), (TokenId(3), -1.0), (TokenId(100), 7.0), (TokenId(80), 1.0)],
            banned_token_ids: vec![TokenId(60), TokenId(3), TokenId(60), TokenId(200)],
            ..Default::default()
        };
        let no = f32::NEG_INFINITY;
        let expected = [(3, no, 1), (7, no, 0), (9, 0.0, 2), (50, 2.0, 1), (60, no, 0), (80, 1.0, 0)];
        assert_eq!(gathered(&params, &[7, 60], Some(&history)).unwrap(), expected);
        // Counts that no penalty uses are left out.
        let params = SamplingParams { presence_penalty: 0.0, repetition_penalty: 1.5, ..params };
        let expected = [(3, no, 0), (50, 2.0, 0), (60, no, 0), (80, 1.0, 0)];
        assert_eq!(gathered(&params, &[], Some(&history)).unwrap(), expected);
        let twice = SamplingParams { logit_bias: vec![(TokenId(3), 1.0); 2], ..Default::default() };
        assert_eq!(gathered(&twice, &[], None), None);
        assert_eq!(gathered(&SamplingParams::default(), &[], None).unwrap(), []);
    }
}
