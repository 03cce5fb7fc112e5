//! The inputs of one step: everything that varies from step to step, as one run of 32-bit words that is copied to the
//! device ahead of the kernels, which read lengths and tables from it. So their grids and scalar arguments depend on
//! the shape of a step alone, and a recorded step can be replayed for any batch of that shape.

use std::ops::Range;

use crate::backend::cuda::kernels::embed::DRAWN;
use crate::backend::cuda::kernels::paged::{PADDING, Sequence};
use crate::backend::Batch;
use crate::backend::places::Places;
use crate::kv::{CacheGeometry, first_visible};
use crate::model::ModelSpec;

/// How much of everything a step has, padding included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct StepShape {
    /// Rows.
    pub rows: usize,
    /// Sequences.
    pub sequences: usize,
    /// Query tiles of sequences of several rows.
    pub tiles: usize,
    /// Entries of all block tables together.
    pub blocks: usize,
    /// Rows with logits.
    pub logits_rows: usize,
}

/// Where each array of a step lies among its words; each begins at a multiple of 256 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StepLayout {
    /// u32 `[rows]`: ids, or [`DRAWN`] and the place of a draw.
    pub token_ids: Range<usize>,
    /// u32 `[rows]`.
    pub positions: Range<usize>,
    /// u32 `[rows]`: the page of each row's key and value, [`PADDING`] for none.
    pub row_pages: Range<usize>,
    /// u32 `[logits_rows]`: rows.
    pub logits_rows: Range<usize>,
    /// [`Sequence`] `[sequences]`.
    pub sequences: Range<usize>,
    /// `[u32; 2]` `[tiles]`: a sequence, [`PADDING`] for none, and the tile's first row in it.
    pub tiles: Range<usize>,
    /// u32 `[blocks]`: pages.
    pub block_tables: Range<usize>,
}

const SEQUENCE_WORDS: usize = size_of::<Sequence>() / 4;
const TILE_WORDS: usize = 2;
/// 256 bytes.
const ALIGNMENT_WORDS: usize = 64;

impl StepLayout {
    pub(super) fn new(shape: StepShape) -> StepLayout {
        let mut end = 0;
        let mut place = |words: usize| {
            let start = usize::next_multiple_of(end, ALIGNMENT_WORDS);
            end = start + words;
            start..end
        };
        StepLayout {
            token_ids: place(shape.rows),
            positions: place(shape.rows),
            row_pages: place(shape.rows),
            logits_rows: place(shape.logits_rows),
            sequences: place(shape.sequences * SEQUENCE_WORDS),
            tiles: place(shape.tiles * TILE_WORDS),
            block_tables: place(shape.blocks),
        }
    }

    /// Words of the whole.
    pub(super) fn words(&self) -> usize {
        self.block_tables.end
    }
}

/// What of a batch decides how its step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchShape {
    pub step: StepShape,
    /// Sequences of exactly one row.
    pub single_rows: usize,
}

/// The shape of a batch that [`Places::make`] has accepted. A query tile has at most `tile_rows` rows.
pub(super) fn shape_of(batch: &Batch<'_>, spec: &ModelSpec, cache: CacheGeometry, tile_rows: usize) -> BatchShape {
    let mut step = StepShape {
        rows: batch.token_ids.len(),
        sequences: batch.sequences.len(),
        tiles: 0,
        blocks: 0,
        logits_rows: batch.logits_rows.len(),
    };
    let mut single_rows = 0;
    for sequence in batch.sequences {
        step.blocks += visible_blocks(sequence.start, sequence.rows.len(), spec, cache).len();
        match sequence.rows.len() {
            0 => {}
            1 => single_rows += 1,
            rows => step.tiles += rows.div_ceil(tile_rows),
        }
    }
    BatchShape { step, single_rows }
}

/// Logical blocks that `rows` rows from position `start` see or write.
fn visible_blocks(start: u32, rows: usize, spec: &ModelSpec, cache: CacheGeometry) -> Range<u32> {
    if rows == 0 {
        return 0..0;
    }
    // Positions fit u32: the batch was checked.
    let last = start + (rows - 1) as u32;
    first_visible(start, spec.window) / cache.page_size..last / cache.page_size + 1
}

/// Writes the inputs of `batch`, accepted by `places`, into `words`, which have the layout of `shape`: at least that of
/// the batch. What is beyond the batch is padding. Row `r`'s token is the one that was drawn in place `drawn[r]`, where
/// there is such an entry, and `batch.token_ids[r]` elsewhere.
pub(super) fn fill(
    words: &mut [u32],
    layout: &StepLayout,
    batch: &Batch<'_>,
    drawn: &[Option<u32>],
    places: &Places,
    (spec, cache, tile_rows): (&ModelSpec, CacheGeometry, usize),
) {
    let row_words = |range: &Range<usize>| range.start..range.start + batch.token_ids.len();
    words[layout.token_ids.clone()].fill(0);
    for (row, (word, id)) in words[row_words(&layout.token_ids)].iter_mut().zip(batch.token_ids).enumerate() {
        *word = drawn.get(row).copied().flatten().map_or(id.0, |place| DRAWN | place);
    }
    words[layout.positions.clone()].fill(0);
    words[layout.row_pages.clone()].fill(PADDING);
    for (row, place) in places.rows.iter().enumerate() {
        words[layout.positions.start + row] = place.position;
        words[layout.row_pages.start + row] = place.page;
    }
    words[layout.logits_rows.clone()].fill(0);
    for (word, row) in words[layout.logits_rows.clone()].iter_mut().zip(batch.logits_rows) {
        *word = *row as u32;
    }
    words[layout.sequences.clone()].fill(0);
    words[layout.tiles.clone()].fill(PADDING);
    words[layout.block_tables.clone()].fill(0);
    let (mut tile, mut table) = (layout.tiles.start, 0);
    for (index, sequence) in batch.sequences.iter().enumerate() {
        let rows = sequence.rows.len();
        let blocks = visible_blocks(sequence.start, rows, spec, cache);
        let entry = Sequence {
            first_row: sequence.rows.start as u32,
            rows: rows as u32,
            start: sequence.start,
            first_block: blocks.start,
            table: table as u32,
            reserved: [0; 3],
        };
        let at = layout.sequences.start + index * SEQUENCE_WORDS;
        words[at..at + SEQUENCE_WORDS].copy_from_slice(bytemuck::cast_slice(&[entry]));
        for block in blocks {
            words[layout.block_tables.start + table] = sequence.pages[(block - sequence.first_block) as usize].0;
            table += 1;
        }
        if rows > 1 {
            for first in (0..rows).step_by(tile_rows) {
                words[tile..tile + TILE_WORDS].copy_from_slice(&[index as u32, first as u32]);
                tile += TILE_WORDS;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::SequenceRows;
    use crate::checkpoint::Config;
    use crate::kv::PageId;
    use crate::text::TokenId;

    fn spec() -> ModelSpec {
        let json = br#"{"model_type":"starcoder2","vocab_size":50,"sliding_window":20,"max_position_embeddings":200,
            "eos_token_id":1,"bos_token_id":1}"#;
        ModelSpec::from_config(&Config::parse(json, "config.json").unwrap()).unwrap()
    }

    const CACHE: CacheGeometry = CacheGeometry { page_size: 16, pages: 40 };
    const TILE_ROWS: usize = 4;

    #[test]
    fn a_ragged_batch_with_room_to_spare() {
        let spec = spec();
        let ids: Vec<TokenId> = (10..17).map(TokenId).collect();
        // Positions 40 sees 21..=40, in blocks 1 and 2; block 0 is held still, and does not go into the table.
        let pages = [[9, 5, 7].map(PageId).to_vec(), vec![PageId(3)], Vec::new()];
        let sequences = [
            SequenceRows { rows: 0..1, start: 40, first_block: 0, pages: &pages[0] },
            SequenceRows { rows: 1..7, start: 2, first_block: 0, pages: &pages[1] },
            SequenceRows { rows: 7..7, start: 0, first_block: 0, pages: &pages[2] },
        ];
        let batch = Batch { token_ids: &ids, sequences: &sequences, logits_rows: &[0, 6] };
        let mut places = Places::new(7, CACHE.pages);
        places.make(&batch, &spec, CACHE).unwrap();
        let shape = shape_of(&batch, &spec, CACHE, TILE_ROWS);
        let exact = StepShape { rows: 7, sequences: 3, tiles: 2, blocks: 3, logits_rows: 2 };
        assert_eq!(shape, BatchShape { step: exact, single_rows: 1 });

        let padded = StepShape { rows: 9, sequences: 4, tiles: 3, blocks: 5, logits_rows: 3 };
        let layout = StepLayout::new(padded);
        let mut words = vec![0xdead; layout.words()];
        let drawn = [None, Some(2)];
        fill(&mut words, &layout, &batch, &drawn, &places, (&spec, CACHE, TILE_ROWS));
        assert_eq!(words[layout.token_ids.clone()], [10, DRAWN | 2, 12, 13, 14, 15, 16, 0, 0]);
        assert_eq!(words[layout.positions.clone()], [40, 2, 3, 4, 5, 6, 7, 0, 0]);
        assert_eq!(words[layout.row_pages.clone()], [7, 3, 3, 3, 3, 3, 3, PADDING, PADDING]);
        assert_eq!(words[layout.logits_rows.clone()], [0, 6, 0]);
        let sequence = |words: [u32; 5]| [&words[..], &[0; 3]].concat();
        let expected = [[0, 1, 40, 1, 0], [1, 6, 2, 0, 2], [7, 0, 0, 0, 3], [0; 5]].map(sequence).concat();
        assert_eq!(words[layout.sequences.clone()], expected);
        assert_eq!(words[layout.tiles.clone()], [1, 0, 1, 4, PADDING, PADDING]);
        assert_eq!(words[layout.block_tables.clone()], [5, 7, 3, 0, 0]);
    }

    #[test]
    fn arrays_are_apart_and_aligned() {
        let shape = StepShape { rows: 65, sequences: 3, tiles: 0, blocks: 1, logits_rows: 64 };
        let StepLayout { token_ids, positions, row_pages, logits_rows, sequences, tiles, block_tables } =
            StepLayout::new(shape);
        let ranges = [token_ids, positions, row_pages, logits_rows, sequences, tiles, block_tables];
        for pair in ranges.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{pair:?}");
        }
        assert!(ranges.iter().all(|range| range.start % ALIGNMENT_WORDS == 0));
        assert_eq!(ranges.map(|range| range.len()), [65, 65, 65, 64, 24, 0, 1]);
    }
}
