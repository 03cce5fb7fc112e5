//! Kernel inputs of a step: everything that varies between steps of one shape, as a run of 32-bit words that is copied
//! to the device before the kernels, which read lengths and block tables from it. Grids and scalar arguments thus
//! depend on the shape alone, and a CUDA graph can be replayed for any batch of its shape.

use std::num::NonZeroU32;
use std::ops::Range;

use super::super::kernels::attention_prefill::Tile;
use super::super::kernels::embed::SAMPLED;
use super::super::kernels::paged::Sequence;
use super::attention::{AttentionPlan, StepTiles};
use super::shapes::window_len;
use crate::backend::slot_mapping::SlotMapping;
use crate::backend::{Batch, SequenceRows, Token};
use crate::kv::{BlockTable, CacheGeometry, CacheGroup, first_visible};
use crate::model::ModelSpec;

/// Page of a padding row; its key and value are not written.
const NO_PAGE: u32 = u32::MAX;
const SEQUENCE_WORDS: usize = size_of::<Sequence>() / 4;
const TILE_WORDS: usize = size_of::<Tile>() / 4;
/// 256 bytes.
const ALIGNMENT_WORDS: usize = 64;

/// Sizes of a step, padding included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StepShape {
    /// Rows.
    pub rows: usize,
    /// Sequences.
    pub sequences: usize,
    /// Whole query tiles, one block each; 0 if there are none.
    pub tiles: usize,
    /// Split query tiles, one block per split.
    pub split_tiles: usize,
    /// Most rows of a split tile.
    pub split_rows: usize,
    /// Entries of all block tables.
    pub blocks: usize,
    /// Rows with logits.
    pub logits_rows: usize,
    /// Whether decode attention takes any sequence.
    pub decodes: bool,
}

/// Location of each array among the words of a step, each at a multiple of 256 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StepLayout {
    /// u32 `[rows]`: an id, or [`SAMPLED`] and the index of a sampled token.
    pub token_ids: Range<usize>,
    /// u32 `[rows]`.
    pub positions: Range<usize>,
    /// u32 `[logits_rows]`: row indices.
    pub logits_rows: Range<usize>,
    /// One per cache group.
    pub groups: Vec<GroupLayout>,
    /// u32 `[blocks]`: pages. Block tables of all sequences and groups; each [`Sequence`] has the offset of its own.
    pub block_tables: Range<usize>,
}

/// Inputs of the layers of one cache group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GroupLayout {
    /// u32 `[rows]`: page of each row's key and value, all ones for padding.
    pub row_pages: Range<usize>,
    /// [`Sequence`] `[sequences]`.
    pub sequences: Range<usize>,
    /// [`Tile`] `[tiles]`.
    pub tiles: Range<usize>,
    /// [`Tile`] `[split_tiles]`.
    pub split_tiles: Range<usize>,
}

impl StepLayout {
    /// Layout for a cache with this many groups.
    pub(super) fn new(shape: StepShape, groups: usize) -> StepLayout {
        let mut end = 0;
        let mut place = |words: usize| {
            let start = usize::next_multiple_of(end, ALIGNMENT_WORDS);
            end = start + words;
            start..end
        };
        let (token_ids, positions) = (place(shape.rows), place(shape.rows));
        let row_pages: Vec<Range<usize>> = (0..groups).map(|_| place(shape.rows)).collect();
        let logits_rows = place(shape.logits_rows);
        let group = |row_pages| GroupLayout {
            row_pages,
            sequences: place(shape.sequences * SEQUENCE_WORDS),
            tiles: place(shape.tiles * TILE_WORDS),
            split_tiles: place(shape.split_tiles * TILE_WORDS),
        };
        let groups = row_pages.into_iter().map(group).collect();
        StepLayout { token_ids, positions, logits_rows, groups, block_tables: place(shape.blocks) }
    }

    /// Number of words.
    pub(super) fn words(&self) -> usize {
        self.block_tables.end
    }
}

/// A batch in the form the kernels read, accepted by [`SlotMapping::make`].
pub(super) struct Step {
    /// One per cache group.
    groups: Vec<GroupStep>,
    blocks: Vec<u32>,
}

/// A batch as one cache group sees it.
struct GroupStep {
    sequences: Vec<Sequence>,
    tiles: StepTiles,
}

impl Step {
    pub(super) fn new(batch: &Batch<'_>, spec: &ModelSpec, cache: &CacheGeometry, attention: AttentionPlan) -> Step {
        let mut blocks = Vec::new();
        let group = |(index, group): (usize, &CacheGroup)| {
            let sequence = |rows: &SequenceRows<'_>| {
                sequence_of(rows, &rows.tables[index], group.window, cache.page_size, &mut blocks)
            };
            let sequences: Vec<Sequence> = batch.sequences.iter().map(sequence).collect();
            let tiles = attention.tiles(&sequences, spec, group.window);
            GroupStep { sequences, tiles }
        };
        let groups = cache.groups.iter().enumerate().map(group).collect();
        Step { groups, blocks }
    }

    /// The shape of this step without padding.
    pub(super) fn shape(&self, batch: &Batch<'_>) -> StepShape {
        // All groups have equally many tiles.
        let none = StepTiles::default();
        let tiles = self.groups.first().map_or(&none, |group| &group.tiles);
        StepShape {
            rows: batch.tokens.len(),
            sequences: batch.sequences.len(),
            tiles: tiles.whole.len(),
            split_tiles: tiles.split.len(),
            split_rows: tiles.split_rows,
            blocks: self.blocks.len(),
            logits_rows: batch.logits_rows.len(),
            decodes: tiles.decodes,
        }
    }

    /// Writes the inputs into `words` in the layout of this shape or a larger one; the rest is padding.
    pub(super) fn write(&self, words: &mut [u32], layout: &StepLayout, batch: &Batch<'_>, slots: &SlotMapping) {
        let ids = batch.tokens.iter().map(|token| match token {
            Token::Known(id) => id.0,
            Token::Sampled(place) => SAMPLED | place,
        });
        put(words, &layout.token_ids, ids, 0);
        put(words, &layout.positions, slots.positions.iter().copied(), 0);
        put(words, &layout.logits_rows, batch.logits_rows.iter().map(|row| *row as u32), 0);
        for (index, (group, layout)) in self.groups.iter().zip(&layout.groups).enumerate() {
            put(words, &layout.row_pages, slots.rows(index).iter().map(|row| row.page), NO_PAGE);
            group.write(words, layout);
        }
        put(words, &layout.block_tables, self.blocks.iter().copied(), 0);
    }
}

impl GroupStep {
    fn write(&self, words: &mut [u32], layout: &GroupLayout) {
        let sequences: &[u32] = bytemuck::cast_slice(&self.sequences);
        put(words, &layout.sequences, sequences.iter().copied(), 0);
        for (range, tiles) in [(&layout.tiles, &self.tiles.whole), (&layout.split_tiles, &self.tiles.split)] {
            let no_tile = [Tile::PADDING.sequence, Tile::PADDING.first_row];
            let tiles: &[u32] = bytemuck::cast_slice(tiles);
            let padding = std::iter::repeat(no_tile).flatten();
            put(words, range, tiles.iter().copied().chain(padding), 0);
        }
    }
}

/// A sequence as the layers with a window see it. Appends its pages to `blocks`.
fn sequence_of(
    rows: &SequenceRows<'_>,
    table: &BlockTable,
    window: Option<NonZeroU32>,
    page_size: NonZeroU32,
    blocks: &mut Vec<u32>,
) -> Sequence {
    // Rows and positions fit in u32: the batch was checked.
    let first_block = first_visible(rows.start, window) / page_size;
    let sequence = Sequence {
        first_row: rows.rows.start as u32,
        rows: rows.rows.len() as u32,
        start: rows.start,
        first_block,
        table: blocks.len() as u32,
        ..Sequence::PADDING
    };
    let visible = sequence.visible_blocks(window_len(window), page_size.get() as usize) as usize;
    // Pages before the first visible block may still be held; kernels do not get them.
    let hidden = first_block.saturating_sub(table.first_block()) as usize;
    blocks.extend(table.pages().iter().skip(hidden).take(visible).map(|page| page.0));
    sequence
}

/// Fills the words of `range` with `values`, then `padding`.
fn put(words: &mut [u32], range: &Range<usize>, values: impl Iterator<Item = u32>, padding: u32) {
    for (word, value) in words[range.clone()].iter_mut().zip(values.chain(std::iter::repeat(padding))) {
        *word = value;
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::kernels::{attention_decode, attention_prefill};
    use super::*;
    use crate::checkpoint::{Config, Dtype};
    use crate::kv::{KvFormat, PageId};
    use crate::text::TokenId;

    /// 40 pages of 16 positions for each of these windows.
    fn cache(windows: &[Option<u32>]) -> CacheGeometry {
        let group = |window: &Option<u32>| CacheGroup {
            window: window.and_then(NonZeroU32::new),
            pages: 40,
            format: KvFormat::Dense(Dtype::Bf16),
            page_bytes: 0,
        };
        CacheGeometry { page_size: NonZeroU32::new(16).unwrap(), groups: windows.iter().map(group).collect() }
    }

    fn table(first_block: u32, pages: &[u32]) -> BlockTable {
        BlockTable::from_pages(first_block, pages.iter().copied().map(PageId).collect())
    }

    /// Groups of 43 query heads: a tile holds 2 rows.
    fn spec() -> ModelSpec {
        let json = br#"{"model_type":"starcoder2","vocab_size":50,"sliding_window":20,"max_position_embeddings":200,
            "hidden_size":2752,"num_attention_heads":43,"num_key_value_heads":1,"eos_token_id":1,"bos_token_id":1}"#;
        ModelSpec::from_config(&Config::parse(json, "config.json").unwrap()).unwrap()
    }

    #[test]
    fn a_ragged_batch_with_room_to_spare() {
        let spec = spec();
        let ids: Vec<TokenId> = (10..16).map(TokenId).collect();
        // Position 40 sees 21..=40, in blocks 1 and 2; block 0 is held still, and does not go into the table.
        let tables = [[table(0, &[9, 5, 7])], [table(0, &[3, 4])], [table(0, &[])]];
        let sequences = [
            SequenceRows { rows: 0..1, start: 40, tables: &tables[0] },
            SequenceRows { rows: 1..6, start: 2, tables: &tables[1] },
            SequenceRows { rows: 6..6, start: 0, tables: &tables[2] },
        ];
        let cache = cache(&[Some(20)]);
        let mut tokens = Token::known(&ids);
        tokens[1] = Token::Sampled(2);
        let batch = Batch { tokens: &tokens, sequences: &sequences, logits_rows: &[0, 5] };
        let mut slots = SlotMapping::new(7, &cache);
        slots.make(&batch, &spec, &cache).unwrap();
        let (decode, prefill) = (attention_decode::Variant::Split, attention_prefill::Variant::Warp);
        let step = Step::new(&batch, &spec, &cache, AttentionPlan::Fast { decode, prefill });
        let exact = StepShape {
            rows: 6,
            sequences: 3,
            tiles: 3,
            split_tiles: 0,
            split_rows: 0,
            blocks: 3,
            logits_rows: 2,
            decodes: true,
        };
        assert_eq!(step.shape(&batch), exact);

        let padded = StepShape { rows: 8, sequences: 4, tiles: 4, split_tiles: 2, blocks: 5, logits_rows: 3, ..exact };
        let layout = StepLayout::new(padded, 1);
        let group = &layout.groups[0];
        let mut words = vec![0xdead; layout.words()];
        step.write(&mut words, &layout, &batch, &slots);
        assert_eq!(words[layout.token_ids.clone()], [10, SAMPLED | 2, 12, 13, 14, 15, 0, 0]);
        assert_eq!(words[layout.positions.clone()], [40, 2, 3, 4, 5, 6, 0, 0]);
        assert_eq!(words[group.row_pages.clone()], [7, 3, 3, 3, 3, 3, NO_PAGE, NO_PAGE]);
        assert_eq!(words[layout.logits_rows.clone()], [0, 5, 0]);
        let sequence = |words: [u32; 5]| [&words[..], &[0; 3]].concat();
        let expected = [[0, 1, 40, 1, 0], [1, 5, 2, 0, 2], [6, 0, 0, 0, 3], [0; 5]].map(sequence).concat();
        assert_eq!(words[group.sequences.clone()], expected);
        // The tiles with the most keys first.
        assert_eq!(words[group.tiles.clone()], [1, 4, 1, 2, 1, 0, u32::MAX, 0]);
        assert_eq!(words[group.split_tiles.clone()], [u32::MAX, 0, u32::MAX, 0]);
        assert_eq!(words[layout.block_tables.clone()], [5, 7, 3, 0, 0]);

        // With batch-invariant attention the sequence of one row is a short one, and a tile holds one row.
        let plan = AttentionPlan::BatchInvariant { max_split: 4, split_room: 4 };
        let step = Step::new(&batch, &spec, &cache, plan);
        let exact = StepShape { tiles: 5, split_tiles: 1, split_rows: 1, decodes: false, ..exact };
        assert_eq!(step.shape(&batch), exact);
        let padded = StepShape { split_tiles: 2, ..exact };
        let layout = StepLayout::new(padded, 1);
        let group = &layout.groups[0];
        let mut words = vec![0xdead; layout.words()];
        step.write(&mut words, &layout, &batch, &slots);
        assert_eq!(words[group.tiles.clone()], [1, 4, 1, 3, 1, 2, 1, 1, 1, 0]);
        assert_eq!(words[group.split_tiles.clone()], [0, 0, u32::MAX, 0]);
    }

    #[test]
    fn each_group_has_tables_of_its_own() {
        // A layer of the network sees 20 positions, another all.
        let (spec, cache) = (spec(), cache(&[Some(20), None]));
        let tables = [[table(1, &[5, 7]), table(0, &[1, 2, 6])], [table(0, &[9]), table(0, &[3])]];
        let sequences = [
            SequenceRows { rows: 0..1, start: 40, tables: &tables[0] },
            SequenceRows { rows: 1..2, start: 3, tables: &tables[1] },
        ];
        let tokens = Token::known(&[TokenId(10), TokenId(11)]);
        let batch = Batch { tokens: &tokens, sequences: &sequences, logits_rows: &[0, 1] };
        let mut slots = SlotMapping::new(2, &cache);
        slots.make(&batch, &spec, &cache).unwrap();
        let plan = AttentionPlan::BatchInvariant { max_split: 4, split_room: 4 };
        let step = Step::new(&batch, &spec, &cache, plan);
        let shape = step.shape(&batch);
        assert_eq!((shape.rows, shape.blocks, shape.split_tiles), (2, 3 + 4, 2));
        let layout = StepLayout::new(shape, 2);
        let mut words = vec![0xdead; layout.words()];
        step.write(&mut words, &layout, &batch, &slots);
        let sequence = |words: [u32; 5]| [&words[..], &[0; 3]].concat();
        let expected = [[[0, 1, 40, 1, 0], [1, 1, 3, 0, 2]], [[0, 1, 40, 0, 3], [1, 1, 3, 0, 6]]];
        for (group, expected) in layout.groups.iter().zip(expected) {
            assert_eq!(words[group.sequences.clone()], expected.map(sequence).concat());
        }
        assert_eq!(words[layout.block_tables.clone()], [5, 7, 9, 1, 2, 6, 3]);
        let row_pages = [&layout.groups[0], &layout.groups[1]].map(|group| &words[group.row_pages.clone()]);
        assert_eq!(row_pages, [[7, 9], [6, 3]]);
    }

    #[test]
    fn arrays_are_apart_and_aligned() {
        let shape = StepShape {
            rows: 65,
            sequences: 3,
            tiles: 0,
            split_tiles: 33,
            split_rows: 1,
            blocks: 1,
            logits_rows: 64,
            decodes: true,
        };
        // In one group, the order in which they have always lain.
        let StepLayout { token_ids, positions, logits_rows, groups, block_tables } = StepLayout::new(shape, 1);
        let [GroupLayout { row_pages, sequences, tiles, split_tiles }] = groups.try_into().unwrap();
        let ranges = [token_ids, positions, row_pages, logits_rows, sequences, tiles, split_tiles, block_tables];
        for pair in ranges.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{pair:?}");
        }
        assert!(ranges.iter().all(|range| range.start % ALIGNMENT_WORDS == 0));
        assert_eq!(ranges.map(|range| range.len()), [65, 65, 65, 64, 24, 0, 66, 1]);

        let StepLayout { token_ids, positions, logits_rows, groups, block_tables } = StepLayout::new(shape, 2);
        let mut ranges = vec![token_ids, positions, logits_rows, block_tables];
        for GroupLayout { row_pages, sequences, tiles, split_tiles } in groups {
            ranges.extend([row_pages, sequences, tiles, split_tiles]);
        }
        ranges.sort_by_key(|range| (range.start, range.end));
        assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{ranges:?}");
        assert_eq!(ranges.len(), 12);
    }
}
