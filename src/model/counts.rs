//! How many parameters a network has, and what a token costs in bytes and FLOPs. Exact integers from shapes alone.

use super::spec::ModelSpec;

/// Parameters of a network and the costs that follow from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// All parameters; a head tied to the embeddings counts once.
    pub parameters: u64,
    /// Parameters of one layer.
    pub layer: u64,
    /// Those of them that are in matrices (not biases or norms).
    pub layer_matrices: u64,
    /// Parameters of the embedding matrix.
    pub embedding: u64,
    /// Parameters that the head adds: 0 where it is tied.
    pub head: u64,
    /// Parameters of the norm before the head.
    pub final_norm: u64,
    layers: u64,
    hidden: u64,
    /// Elements of keys and values that one token adds to the cache, over all layers.
    kv_elements: u64,
    /// Multiplications of queries with keys and of weights with values, a visible key, over all layers.
    attention_products: u64,
    window: Option<u64>,
}

impl ModelSpec {
    /// Parameters and costs. The numbers of a checked `Config` cannot overflow them.
    pub fn counts(&self) -> Counts {
        let [vocab, hidden, inner, layers, heads, kv_heads, head_dim] = [
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_dim,
        ]
        .map(|n| n as u64);
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let norm = 2 * hidden;
        let layer_matrices = 2 * hidden * q + 2 * hidden * kv + 2 * hidden * inner;
        let biases = if self.bias { q + 2 * kv + inner + 2 * hidden } else { 0 };
        let layer = layer_matrices + biases + 2 * norm;
        let embedding = vocab * hidden;
        let head = if self.tied_head { 0 } else { embedding };
        Counts {
            parameters: embedding + layers * layer + norm + head,
            layer,
            layer_matrices,
            embedding,
            head,
            final_norm: norm,
            layers,
            hidden,
            kv_elements: layers * 2 * kv,
            attention_products: layers * 2 * q,
            window: self.window.map(|window| u64::from(window.get())),
        }
    }
}

impl Counts {
    /// Parameters that one decoded token reads: all layers, the final norm, the head, one row of the embeddings.
    pub fn parameters_read_per_token(&self) -> u64 {
        // The head has the embedding's shape, whether or not it is the same matrix.
        self.layers * self.layer + self.final_norm + self.embedding + self.hidden
    }

    /// Bytes of weights that one decoded token reads where all are stored in elements of `element` bytes.
    pub fn weight_bytes_per_token(&self, element: usize) -> u64 {
        self.parameters_read_per_token() * element as u64
    }

    /// Bytes that one token adds to a key/value cache of elements of `element` bytes.
    pub fn kv_bytes_per_token(&self, element: usize) -> u64 {
        self.kv_elements * element as u64
    }

    /// Floating-point operations of one token at `position` (0 for the first), head included: two for each parameter
    /// of a matrix, and two for each product of attention, whose visible keys the window bounds.
    pub fn flops_per_token(&self, position: u64) -> u64 {
        let visible = self.window.map_or(position + 1, |window| window.min(position + 1));
        2 * (self.layers * self.layer_matrices + self.embedding) + 2 * self.attention_products * visible
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec::tests::published;

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
    fn counts_are_the_sums_over_the_tensors() {
        for mut spec in published() {
            for bias in [true, false] {
                spec.bias = bias;
                let counts = spec.counts();
                let size = |shape: &[usize]| shape.iter().product::<usize>() as u64;
                let sum: u64 = spec.tensors().iter().map(|tensor| size(&tensor.shape)).sum();
                assert_eq!(counts.parameters, sum);
                let layer = |tensor: &&crate::checkpoint::ExpectedTensor| tensor.name.starts_with("model.layers.0.");
                assert_eq!(counts.layer, spec.tensors().iter().filter(layer).map(|t| size(&t.shape)).sum::<u64>());
                let matrix = |tensor: &&crate::checkpoint::ExpectedTensor| layer(tensor) && tensor.shape.len() == 2;
                let matrices = spec.tensors().iter().filter(matrix).map(|t| size(&t.shape)).sum::<u64>();
                assert_eq!(counts.layer_matrices, matrices);
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
}
