//! Where each weight lies in device memory: pure arithmetic on a [`ModelSpec`], no device.
//!
//! All weights share one allocation, the arena, of bytes. [`Layout`] says where in it each matrix and vector starts, in
//! which [`WeightFormat`] it is kept, how it is padded, and which rows of which checkpoint tensors it is made of. The
//! memory plan prints [`Layout::bytes`], and as much is allocated.
//!
//! * Rows and columns are padded with zeros to a multiple of [`PADDING`], so that every row starts at 16 bytes and
//!   every product has a depth and a width that the kernels take. Padding of one layer meets padding of the next: a
//!   padded row of a matrix makes an activation of 0, which a padded column of zeros then reads.
//! * Each tensor starts at a multiple of [`ALIGNMENT_BYTES`].
//! * Queries, keys and values are one matrix, and the rows of a query or key head are interleaved ([`RowOrder`]).
//! * A tied head is the embedding matrix, once.

use std::ops::Range;

use crate::checkpoint::Dtype;
use crate::model::{Layer, Linear, ModelSpec, Norm, TensorRows, WeightFormat};

/// Rows and columns are multiples of this: elements of a 16-byte access.
pub const PADDING: usize = 8;
/// Bytes of an element of either dtype that the kernels take.
pub const ELEMENT_BYTES: usize = 2;
/// Tensors start at multiples of this, in bytes from the start of the arena.
pub const ALIGNMENT_BYTES: usize = 256;

/// `size` with its padding.
pub fn padded(size: usize) -> usize {
    size.next_multiple_of(PADDING)
}

/// A matrix `[rows, columns]` of the arena, row-major, padding included; a vector is one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Region {
    /// The arena's byte that it starts at.
    pub offset: usize,
    /// Rows, padded; 1 for a vector.
    pub rows: usize,
    /// Elements of a row, padded.
    pub columns: usize,
    /// How they are kept; dense for a vector.
    pub format: WeightFormat,
}

impl Region {
    /// Bytes, padding included.
    pub fn bytes(self) -> usize {
        self.format.bytes(self.rows, self.columns) as usize
    }

    /// The arena's bytes that it is.
    pub fn range(self) -> Range<usize> {
        self.offset..self.offset + self.bytes()
    }
}

/// A matrix and its bias `[rows]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearLayout {
    /// `[rows, columns]`
    pub weight: Region,
    /// `[rows]`
    pub bias: Option<Region>,
}

/// A norm's gain and shift, each `[hidden]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormLayout {
    /// Factors.
    pub weight: Region,
    /// Terms; LayerNorm alone has them.
    pub bias: Option<Region>,
}

/// One transformer block. Sizes are the padded ones.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerLayout {
    /// `[hidden]`
    pub attention_norm: NormLayout,
    /// `[(heads + 2 * kv_heads) * head_dim, hidden]`: all query heads, all key heads, all value heads.
    pub qkv: LinearLayout,
    /// `[hidden, heads * head_dim]`
    pub o_proj: LinearLayout,
    /// `[hidden]`
    pub mlp_norm: NormLayout,
    /// In the order of [`Mlp::linears`](crate::model::Mlp::linears).
    pub mlp: Vec<LinearLayout>,
}

/// In which order the rows of a checkpoint tensor lie in the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// As in the checkpoint.
    Natural,
    /// Inside each head, the two rows that RoPE turns together are neighbours: rows `p` and `p + head_dim / 2` of the
    /// checkpoint's head become rows `2p` and `2p + 1`, so that a pair meets in one thread whatever the tile.
    Interleaved {
        /// Rows of a head; even.
        head_dim: usize,
    },
}

impl RowOrder {
    /// The checkpoint's row that becomes row `row`.
    pub fn source(self, row: usize) -> usize {
        match self {
            RowOrder::Natural => row,
            RowOrder::Interleaved { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                head * head_dim + within / 2 + within % 2 * (head_dim / 2)
            }
        }
    }
}

/// Rows of a checkpoint tensor and the rows of a region that they fill. A vector is a matrix of one column.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The checkpoint's name for it.
    pub tensor: String,
    /// Rows that the whole tensor has.
    pub tensor_rows: usize,
    /// The first of them that is used.
    pub first: usize,
    /// How many are used.
    pub rows: usize,
    /// Elements of a row.
    pub columns: usize,
    /// Where they go.
    pub region: Region,
    /// The row of the region that the first row becomes; of a vector, the element.
    pub row: usize,
    /// How the rows are permuted.
    pub order: RowOrder,
}

/// Elements that follow each other both in a checkpoint tensor and in a dense region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The tensor's element that it starts at.
    pub source: usize,
    /// The region's element that it starts at.
    pub destination: usize,
    /// How many.
    pub elements: usize,
}

impl Part {
    /// Elements from a row to the next in its region.
    pub fn stride(&self) -> usize {
        // A vector's elements are the rows.
        if self.region.rows == 1 { 1 } else { self.region.columns }
    }

    /// The region's elements from its first to its last, the padding between its rows included.
    pub fn range(&self) -> Range<usize> {
        let start = self.row * self.stride();
        start..start + (self.rows - 1) * self.stride() + self.columns
    }

    /// What of it lies in `range` of its region's elements, in the region's order, in runs as long as can be.
    pub fn runs(&self, range: Range<usize>) -> impl Iterator<Item = Run> {
        // Rows without padding in their natural order are one long row.
        let whole = self.order == RowOrder::Natural && self.columns == self.stride();
        let elements = self.rows * self.columns;
        let (rows, columns, stride) =
            if whole { (1, elements, elements) } else { (self.rows, self.columns, self.stride()) };
        let (order, offset, skipped) = (self.order, self.range().start, self.first * self.columns);
        let first = (range.start.saturating_sub(offset) / stride).min(rows);
        let end = range.end.saturating_sub(offset).div_ceil(stride).min(rows);
        (first..end).filter_map(move |row| {
            let start = offset + row * stride;
            let (from, to) = (start.max(range.start), (start + columns).min(range.end));
            // A range may begin or end in the padding behind a row.
            (from < to).then(|| Run {
                source: skipped + order.source(row) * columns + (from - start),
                destination: from,
                elements: to - from,
            })
        })
    }
}

/// The arena of one network.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// `[vocab, hidden]`
    pub embedding: Region,
    /// The transformer blocks, first to last.
    pub layers: Vec<LayerLayout>,
    /// `[hidden]`
    pub final_norm: NormLayout,
    /// `[vocab, hidden]`; the embedding where the two are tied.
    pub head: Region,
    parts: Vec<Part>,
    bytes: usize,
}

impl Layout {
    /// Lays out the weights of `spec`, in `dtype` where they are not quantised. The numbers of a checked configuration
    /// cannot overflow: it allows 2^56
    /// parameters, which padding makes at most 64 times as many, and 128 elements more for each of few tensors.
    pub fn new(spec: &ModelSpec, dtype: Dtype) -> Layout {
        let mut arena = Arena { parts: Vec::new(), end: 0, dense: WeightFormat::dense(dtype) };
        let embedding = arena.matrix(&spec.embedding.tokens, None);
        let layers = spec.layers.iter().map(|layer| arena.layer(layer, spec.head_dim)).collect();
        let final_norm = arena.norm(&spec.final_norm);
        let head =
            if spec.tied_head() { embedding } else { arena.matrix(&spec.head.linear.weight, spec.head.linear.format) };
        Layout { embedding, layers, final_norm, head, bytes: arena.end, parts: arena.parts }
    }

    /// Bytes of the arena, a multiple of [`ALIGNMENT_BYTES`].
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Every checkpoint tensor that is used, once, in the order of the arena; no two overlap. What lies between and
    /// behind them is zero.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }
}

/// An arena that grows.
struct Arena {
    parts: Vec<Part>,
    end: usize,
    /// Of what is not quantised.
    dense: WeightFormat,
}

impl Arena {
    fn layer(&mut self, layer: &Layer, head_dim: usize) -> LayerLayout {
        let attention = &layer.attention;
        let pairs = RowOrder::Interleaved { head_dim };
        LayerLayout {
            attention_norm: self.norm(&layer.attention_norm),
            qkv: self.stack([
                (&attention.query, pairs),
                (&attention.key, pairs),
                (&attention.value, RowOrder::Natural),
            ]),
            o_proj: self.linear(&attention.output),
            mlp_norm: self.norm(&layer.mlp_norm),
            mlp: layer.mlp.linears().into_iter().map(|linear| self.linear(linear)).collect(),
        }
    }

    fn linear(&mut self, linear: &Linear) -> LinearLayout {
        self.stack([(linear, RowOrder::Natural)])
    }

    /// Linears of the same inputs as one matrix, whose rows follow each other. All have biases, or none has, and one
    /// format.
    fn stack<const N: usize>(&mut self, linears: [(&Linear, RowOrder); N]) -> LinearLayout {
        let rows = padded(linears.iter().map(|(linear, _)| linear.outputs()).sum());
        let first = linears.first().map(|(linear, _)| *linear);
        let format = first.and_then(|linear| linear.format);
        let weight = self.region(rows, padded(first.map_or(0, Linear::inputs)), format);
        self.fill(weight, linears.iter().map(|(linear, order)| (&linear.weight, *order)));
        let has_bias = linears.iter().any(|(linear, _)| linear.bias.is_some());
        let bias = has_bias.then(|| {
            let bias = self.region(1, rows, None);
            let biases = linears.iter().filter_map(|(linear, order)| Some((linear.bias.as_ref()?, *order)));
            self.fill(bias, biases);
            bias
        });
        LinearLayout { weight, bias }
    }

    fn norm(&mut self, norm: &Norm) -> NormLayout {
        NormLayout { weight: self.vector(&norm.weight), bias: norm.bias.as_ref().map(|bias| self.vector(bias)) }
    }

    fn matrix(&mut self, rows: &TensorRows, format: Option<WeightFormat>) -> Region {
        let region = self.region(padded(rows.rows), padded(rows.columns()), format);
        self.fill(region, std::iter::once((rows, RowOrder::Natural)));
        region
    }

    fn vector(&mut self, rows: &TensorRows) -> Region {
        let region = self.region(1, padded(rows.rows), None);
        self.fill(region, std::iter::once((rows, RowOrder::Natural)));
        region
    }

    /// Rows of tensors that follow each other from the region's first on.
    fn fill<'a>(&mut self, region: Region, rows: impl Iterator<Item = (&'a TensorRows, RowOrder)>) {
        let mut row = 0;
        for (of, order) in rows {
            self.parts.push(Part {
                tensor: of.tensor.clone(),
                tensor_rows: of.tensor_rows(),
                first: of.first,
                rows: of.rows,
                columns: of.columns(),
                region,
                row,
                order,
            });
            row += of.rows;
        }
    }

    /// The next free place. What it leaves behind it up to the next is zero.
    fn region(&mut self, rows: usize, columns: usize, format: Option<WeightFormat>) -> Region {
        let region = Region { offset: self.end, rows, columns, format: format.unwrap_or(self.dense) };
        self.end += region.bytes().next_multiple_of(ALIGNMENT_BYTES);
        region
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::checkpoint::Config;

    fn config(json: &str) -> Config {
        Config::parse(json.as_bytes(), "config.json").unwrap()
    }

    fn spec(json: &str) -> ModelSpec {
        ModelSpec::from_config(&config(json)).unwrap()
    }

    fn published() -> [ModelSpec; 3] {
        [
            include_str!("../../../models/configs/starcoder2-3b.json"),
            include_str!("../../../models/configs/starcoder2-7b.json"),
            include_str!("../../../models/configs/starcoder2-15b.json"),
        ]
        .map(spec)
    }

    /// Networks of every shape, small and odd.
    fn odd_specs() -> impl Strategy<Value = ModelSpec> {
        let sizes = (1usize..40, 1usize..40, 1usize..40, 0usize..3, (1usize..4, 1usize..4), 1usize..10);
        (sizes, any::<bool>(), any::<bool>()).prop_map(
            |((vocab, hidden, intermediate, layers, heads, half), bias, tied)| {
                let mut config = config(include_str!("../../../models/configs/starcoder2-3b.json"));
                (config.vocab_size, config.hidden_size, config.intermediate_size) = (vocab, hidden, intermediate);
                (config.num_hidden_layers, config.head_dim) = (layers, 2 * half);
                (config.num_key_value_heads, config.num_attention_heads) = (heads.0, heads.0 * heads.1);
                (config.use_bias, config.tie_word_embeddings) = (bias, tied);
                ModelSpec::from_config(&config).unwrap()
            },
        )
    }

    fn regions(layout: &Layout) -> Vec<Region> {
        let mut all = vec![layout.embedding];
        let norm = |norm: NormLayout| [Some(norm.weight), norm.bias].into_iter().flatten();
        let linear = |linear: LinearLayout| [Some(linear.weight), linear.bias].into_iter().flatten();
        for layer in &layout.layers {
            all.extend(norm(layer.attention_norm).chain(linear(layer.qkv)).chain(linear(layer.o_proj)));
            all.extend(norm(layer.mlp_norm).chain(layer.mlp.iter().copied().flat_map(linear)));
        }
        all.extend(norm(layout.final_norm));
        if layout.head != layout.embedding {
            all.push(layout.head);
        }
        all
    }

    proptest! {
        #[test]
        fn interleaving_permutes_each_head_and_makes_partners_adjacent(half in 1usize..80, heads in 1usize..5) {
            let head_dim = 2 * half;
            let order = RowOrder::Interleaved { head_dim };
            let mut seen = HashSet::new();
            for row in 0..heads * head_dim {
                let source = order.source(row);
                prop_assert_eq!(source / head_dim, row / head_dim, "the head stays");
                prop_assert!(seen.insert(source));
            }
            for head in 0..heads {
                for p in 0..half {
                    let row = head * head_dim + 2 * p;
                    prop_assert_eq!(order.source(row), head * head_dim + p);
                    prop_assert_eq!(order.source(row + 1), order.source(row) + half);
                }
            }
        }

        #[test]
        fn regions_are_aligned_padded_and_apart(spec in odd_specs()) {
            let layout = Layout::new(&spec, Dtype::Bf16);
            let mut end = 0;
            for region in regions(&layout) {
                prop_assert!(region.offset >= end, "{:?} overlaps what ends at {}", region, end);
                prop_assert!(region.offset - end < ALIGNMENT_BYTES);
                prop_assert!(region.offset.is_multiple_of(ALIGNMENT_BYTES));
                prop_assert!(region.columns.is_multiple_of(PADDING));
                prop_assert!(region.rows == 1 || region.rows.is_multiple_of(PADDING));
                end = region.range().end;
            }
            prop_assert_eq!(layout.bytes(), end.next_multiple_of(ALIGNMENT_BYTES) as u64);
        }

        #[test]
        fn parts_are_the_tensors_that_the_network_needs_each_inside_one_region(spec in odd_specs()) {
            let layout = Layout::new(&spec, Dtype::Bf16);
            let regions = regions(&layout);
            let mut end = 0;
            for part in layout.parts() {
                let at = |element: usize| part.region.offset + element * ELEMENT_BYTES;
                prop_assert!(at(part.range().start) >= end);
                end = at(part.range().end);
                prop_assert!(end <= part.region.range().end && regions.contains(&part.region), "{part:?}");
            }
            let size = |shape: &[usize]| (shape[0], shape.get(1).copied().unwrap_or(1));
            let needed: HashSet<_> = spec.tensors().into_iter().map(|t| (t.name, size(&t.shape))).collect();
            let laid: HashSet<_> = layout.parts().iter().map(|p| (p.tensor.clone(), (p.rows, p.columns))).collect();
            prop_assert_eq!(laid.len(), layout.parts().len());
            prop_assert_eq!(laid, needed);
        }

        /// However the arena is cut, the runs of its pieces are each element of a part once, and the right one.
        #[test]
        fn runs_are_every_element_once(
            (rows, half, columns, gap, row) in (1usize..5, 1usize..5, 1usize..9, 0usize..4, 0usize..20),
            interleaved in any::<bool>(),
            first in 0usize..3,
            piece in 1usize..60,
        ) {
            let head_dim = 2 * half;
            let rows = rows * head_dim;
            let order = if interleaved { RowOrder::Interleaved { head_dim } } else { RowOrder::Natural };
            let part = Part {
                tensor: String::new(),
                tensor_rows: first + rows,
                first,
                rows,
                columns,
                region: Region {
                    offset: 256,
                    rows: row + rows,
                    columns: columns + gap,
                    format: WeightFormat::dense(Dtype::F16),
                },
                row,
                order,
            };
            let offset = row * (columns + gap);
            let mut filled = vec![None; offset + rows * (columns + gap) + 10];
            for start in (0..filled.len()).step_by(piece) {
                for run in part.runs(start..start + piece) {
                    prop_assert!(start <= run.destination && run.destination + run.elements <= start + piece);
                    for i in 0..run.elements {
                        prop_assert_eq!(filled[run.destination + i].replace(run.source + i), None);
                    }
                }
            }
            for row in 0..rows {
                for column in 0..columns {
                    let at = offset + row * (columns + gap) + column;
                    prop_assert_eq!(filled[at].take(), Some((first + order.source(row)) * columns + column));
                }
            }
            prop_assert!(filled.iter().all(Option::is_none));
        }
    }

    #[test]
    fn the_published_models_need_no_padding_but_between_tensors() {
        for spec in published() {
            let layout = Layout::new(&spec, Dtype::Bf16);
            // Every size is a multiple of 128, so that every tensor ends where the next may start.
            assert_eq!(layout.bytes(), 2 * spec.counts().parameters);
        }
    }

    #[test]
    fn a_tied_head_is_the_embedding_once() {
        let [mut tied, ..] = published();
        assert!(tied.tied_head());
        let once = Layout::new(&tied, Dtype::Bf16);
        assert_eq!(once.head, once.embedding);
        tied.untie_head();
        let twice = Layout::new(&tied, Dtype::Bf16);
        assert_eq!(twice.bytes() - once.bytes(), 2 * (tied.vocab_size * tied.hidden_size) as u64);
        assert_ne!(twice.head, twice.embedding);
    }

    #[test]
    fn one_small_network_by_hand() {
        let spec = spec(
            r#"{"model_type":"starcoder2","vocab_size":9,"hidden_size":12,"intermediate_size":5,"num_hidden_layers":1,
                "num_attention_heads":2,"num_key_value_heads":1,"head_dim":4,"use_bias":true,
                "tie_word_embeddings":false}"#,
        );
        let layout = Layout::new(&spec, Dtype::Bf16);
        let format = WeightFormat::dense(Dtype::Bf16);
        let region = |offset: usize, rows, columns| Region { offset: 2 * offset, rows, columns, format };
        // Tensors of 256, 16, 16, … elements in places of 256, 128, 128, …
        assert_eq!(layout.embedding, region(0, 16, 16));
        let layer = &layout.layers[0];
        assert_eq!(layer.attention_norm.weight, region(256, 1, 16));
        assert_eq!(layer.attention_norm.bias, Some(region(384, 1, 16)));
        assert_eq!(layer.qkv, LinearLayout { weight: region(512, 16, 16), bias: Some(region(768, 1, 16)) });
        assert_eq!(layer.o_proj, LinearLayout { weight: region(896, 16, 8), bias: Some(region(1024, 1, 16)) });
        assert_eq!(layer.mlp[0].weight, region(1408, 8, 16));
        assert_eq!(layer.mlp[1].weight, region(1664, 16, 8));
        assert_eq!(layout.head, region(2176, 16, 16));
        assert_eq!(layout.bytes(), 2 * 2432);
        let k = layout.parts().iter().find(|part| part.tensor.ends_with("k_proj.weight")).unwrap();
        // Behind 8 rows of queries.
        assert_eq!((k.region, k.row, k.rows, k.columns, k.stride()), (layer.qkv.weight, 8, 4, 12, 16));
        let rows: Vec<usize> = (0..4).map(|row| k.order.source(row)).collect();
        assert_eq!(rows, [0, 2, 1, 3]);
    }
}
