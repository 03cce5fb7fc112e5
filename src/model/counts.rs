//! Parameter counts of a network, and bytes and FLOPs per token; exact integers from shapes.

use super::spec::{Layer, Linear, Mlp, ModelSpec, Part};
use super::tensors::of_layer;

/// Parameter counts of a network and the costs that follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// All parameters; a head tied to the embeddings counts once.
    pub parameters: u64,
    /// Parameters of one layer; of the largest where they differ.
    pub layer: u64,
    /// Parameters of the embedding matrix, and of the head.
    pub embedding: u64,
    /// Parameters that one decoded token reads.
    read: u64,
    /// Parameters of the matrices that a token is multiplied with, head included.
    multiplied: u64,
    /// Elements of keys and values that one token adds to the cache, over all layers.
    kv_elements: u64,
    /// Multiplications of queries with keys and of weights with values, a visible key, by window.
    attention: Vec<(Option<u64>, u64)>,
}

impl ModelSpec {
    /// Parameters and costs. The numbers of a checked `Config` cannot overflow them.
    pub fn counts(&self) -> Counts {
        let size = |shape: &[usize]| shape.iter().map(|n| *n as u64).product::<u64>();
        let head = self.head.linear.weight.elements();
        let bias = self.head.linear.bias.as_ref().map_or(0, |bias| bias.elements());
        let norm = [Some(&self.final_norm.weight), self.final_norm.bias.as_ref()];
        let norm: u64 = norm.into_iter().flatten().map(|rows| rows.elements()).sum();
        // One row of each table.
        let looked_up = self.hidden_size as u64 * (1 + u64::from(self.embedding.positions.is_some()));
        let mut counts = Counts {
            parameters: self.tensors().iter().map(|tensor| size(&tensor.shape)).sum(),
            layer: 0,
            embedding: self.embedding.tokens.elements(),
            read: looked_up + norm + head + bias,
            multiplied: head,
            kv_elements: self.layers.len() as u64 * 2 * (self.kv_heads * self.head_dim) as u64,
            attention: Vec::new(),
        };
        for layer in &self.layers {
            let (all, unread) = (elements(layer), unread(&layer.mlp));
            counts.layer = counts.layer.max(all);
            counts.read += all - unread.all;
            counts.multiplied += matrices(layer) - unread.matrices;
            let products = 2 * (self.heads * self.head_dim) as u64;
            let window = layer.attention.window.map(|window| u64::from(window.get()));
            match counts.attention.iter_mut().find(|(of, _)| *of == window) {
                Some((_, sum)) => *sum += products,
                None => counts.attention.push((window, products)),
            }
        }
        counts
    }
}

/// Parameters of a layer.
fn elements(layer: &Layer) -> u64 {
    of_layer(layer).into_iter().map(|rows| rows.elements()).sum()
}

/// Parameters in matrices.
fn matrices(layer: &Layer) -> u64 {
    let matrix = |part: &Part<'_>| match *part {
        Part::Norm(_) => 0,
        Part::Linear(linear) => linear.weight.elements(),
    };
    layer.parts().iter().map(matrix).sum()
}

/// Parameters of the experts that a token skips.
#[derive(Default)]
struct Unread {
    all: u64,
    matrices: u64,
}

fn unread(mlp: &Mlp) -> Unread {
    let Mlp::Experts { experts, per_token, .. } = mlp else { return Unread::default() };
    let of = |linear: &Linear| {
        let matrix = linear.weight.elements();
        (matrix + linear.bias.as_ref().map_or(0, |bias| bias.elements()), matrix)
    };
    let mut unread = Unread::default();
    // All have one shape.
    for expert in experts.iter().skip(*per_token) {
        for (all, matrix) in expert.linears().map(of) {
            unread.all += all;
            unread.matrices += matrix;
        }
    }
    unread
}

impl Counts {
    /// Parameters that one decoded token reads: all layers, but of experts only those that it passes, the final norm,
    /// the head, one row of the embeddings.
    pub fn parameters_read_per_token(&self) -> u64 {
        self.read
    }

    /// Bytes of weights that one decoded token reads where all are stored in elements of `element` bytes.
    pub fn weight_bytes_per_token(&self, element: usize) -> u64 {
        self.read * element as u64
    }

    /// Bytes that one token adds to a key/value cache of elements of `element` bytes.
    pub fn kv_bytes_per_token(&self, element: usize) -> u64 {
        self.kv_elements * element as u64
    }

    /// Floating-point operations of one token at `position` (0 for the first), head included: two for each parameter
    /// of a matrix, and two for each product of attention, whose visible keys the windows bound.
    pub fn flops_per_token(&self, position: u64) -> u64 {
        let visible = |window: Option<u64>| window.map_or(position + 1, |window| window.min(position + 1));
        let attention: u64 = self.attention.iter().map(|(window, products)| products * visible(*window)).sum();
        2 * self.multiplied + 2 * attention
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec::tests::{published, published_configs};
    use super::super::spec::{Activation, GatedMlp, TensorRows};
    use super::*;

    #[test]
    fn the_published_models_exactly() {
        // reference/starcoder2.md §1.3, which agrees with the published file sizes.
        let [b3, b7, b15] = published().map(|spec| spec.counts());
        assert_eq!((b3.layer, b3.parameters), (95_979_008, 3_030_371_328));
        assert_eq!((b7.layer, b7.parameters), (217_106_944, 7_173_923_840));
        assert_eq!((b15.layer, b15.parameters), (383_847_424, 15_957_889_024));
        assert_eq!([b3, b7, b15].map(|counts| counts.kv_bytes_per_token(2)), [30_720, 65_536, 81_920]);
    }

    #[test]
    fn counts_are_those_of_the_shapes() {
        for mut config in published_configs() {
            for bias in [true, false] {
                config.use_bias = bias;
                let counts = ModelSpec::from_config(&config).unwrap().counts();
                let [hidden, inner, layers, heads, kv_heads, head_dim] = [
                    config.hidden_size,
                    config.intermediate_size,
                    config.num_hidden_layers,
                    config.num_attention_heads,
                    config.num_key_value_heads,
                    config.head_dim,
                ]
                .map(|n| n as u64);
                let (q, kv) = (heads * head_dim, kv_heads * head_dim);
                let matrices = 2 * hidden * q + 2 * hidden * kv + 2 * hidden * inner;
                let biases = if bias { q + 2 * kv + inner + 2 * hidden } else { 0 };
                let layer = matrices + biases + 4 * hidden;
                let embedding = config.vocab_size as u64 * hidden;
                let head = if config.tie_word_embeddings { 0 } else { embedding };
                assert_eq!((counts.layer, counts.embedding), (layer, embedding));
                assert_eq!(counts.parameters, embedding + layers * layer + 2 * hidden + head);
                assert_eq!(counts.parameters_read_per_token(), layers * layer + 2 * hidden + embedding + hidden);
            }
        }
    }

    #[test]
    fn what_a_token_reads_and_computes() {
        let [b3, _, b15] = published();
        let (b3, b15) = (b3.counts(), b15.counts());
        // Tied: the embedding is read as the head, and one row more.
        assert_eq!(b3.parameters_read_per_token(), b3.parameters + 3072);
        // Untied: all but the embedding, of which one row.
        assert_eq!(b15.parameters_read_per_token(), b15.parameters - 49152 * 6144 + 6144);
        assert_eq!(b15.weight_bytes_per_token(2), 2 * b15.parameters_read_per_token());
        // By hand: 40 layers, each q and o 6144 x 6144, k and v 512 x 6144, MLP 2 x 24576 x 6144; head 49152 x 6144.
        let matrices: u64 = 40 * (2 * 6144 * 6144 + 2 * 512 * 6144 + 2 * 24576 * 6144) + 49152 * 6144;
        // One visible key: 48 heads of 128, q.k and p.v, 2 FLOPs each, 40 layers.
        let key: u64 = 40 * 48 * 128 * 2 * 2;
        assert_eq!(b15.flops_per_token(0), 2 * matrices + key);
        assert_eq!(b15.flops_per_token(4095), 2 * matrices + 4096 * key);
        assert_eq!(b15.flops_per_token(10_000), 2 * matrices + 4096 * key);
    }

    #[test]
    fn windows_are_counted_layer_by_layer() {
        let [mut spec, ..] = published();
        let before = spec.counts();
        spec.layers[0].attention.window = None;
        let key = 24 * 128 * 2 * 2;
        assert_eq!(spec.counts().flops_per_token(4095), before.flops_per_token(4095));
        assert_eq!(spec.counts().flops_per_token(5000), before.flops_per_token(5000) + (5001 - 4096) * key);
    }

    #[test]
    fn of_experts_those_are_read_that_a_token_passes() {
        let [mut spec, ..] = published();
        let dense = spec.counts();
        let linear = |name: &str, n, out, inp| {
            let weight = TensorRows::whole(name, &[8, out, inp]);
            Linear { weight: TensorRows { first: n * out, rows: out, ..weight }, bias: None, format: None }
        };
        let expert = |n| GatedMlp {
            gate: linear("model.layers.0.mlp.gate", n, 100, 3072),
            up: linear("model.layers.0.mlp.up", n, 100, 3072),
            down: linear("model.layers.0.mlp.down", n, 3072, 100),
            activation: Activation::Silu,
        };
        let router =
            Linear { weight: TensorRows::whole("model.layers.0.mlp.router", &[8, 3072]), bias: None, format: None };
        let experts = (0..8).map(expert).collect();
        spec.layers[0].mlp = Mlp::Experts { router, experts, per_token: 2, renormalize: true };
        let (plain, one, router) = (2 * 12288 * 3072 + 12288 + 3072, 3 * 100 * 3072, 8 * 3072);
        let counts = spec.counts();
        assert_eq!(counts.parameters, dense.parameters - plain + 8 * one + router);
        assert_eq!(counts.parameters_read_per_token(), dense.parameters_read_per_token() - plain + 2 * one + router);
        let matrices = 2 * 12288 * 3072;
        assert_eq!(counts.flops_per_token(0), dense.flops_per_token(0) - 2 * matrices + 2 * (2 * one + router));
        assert_eq!(spec.layers[0].mlp.intermediate_size(), 200);
    }
}
