//! Which tensors a network consists of, by Hugging Face's names and shapes.

use crate::checkpoint::ExpectedTensor;

use super::names;
use super::spec::ModelSpec;

impl ModelSpec {
    /// Every tensor that the forward pass reads: names and shapes as a Hugging Face checkpoint has them
    /// (`[out, in]` for matrices). A tied network has no `lm_head.weight`; one without biases keeps those of its norms.
    pub fn tensors(&self) -> Vec<ExpectedTensor> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[usize]| tensors.push(ExpectedTensor { name, shape: shape.to_vec() });

        add(names::EMBED_TOKENS.to_owned(), &[self.vocab_size, hidden]);
        for layer in 0..self.layers {
            add(names::input_norm_weight(layer), &[hidden]);
            add(names::input_norm_bias(layer), &[hidden]);
            add(names::q_proj_weight(layer), &[q, hidden]);
            add(names::k_proj_weight(layer), &[kv, hidden]);
            add(names::v_proj_weight(layer), &[kv, hidden]);
            add(names::o_proj_weight(layer), &[hidden, q]);
            add(names::post_attention_norm_weight(layer), &[hidden]);
            add(names::post_attention_norm_bias(layer), &[hidden]);
            add(names::c_fc_weight(layer), &[inner, hidden]);
            add(names::c_proj_weight(layer), &[hidden, inner]);
            if self.bias {
                add(names::q_proj_bias(layer), &[q]);
                add(names::k_proj_bias(layer), &[kv]);
                add(names::v_proj_bias(layer), &[kv]);
                add(names::o_proj_bias(layer), &[hidden]);
                add(names::c_fc_bias(layer), &[inner]);
                add(names::c_proj_bias(layer), &[hidden]);
            }
        }
        add(names::FINAL_NORM_WEIGHT.to_owned(), &[hidden]);
        add(names::FINAL_NORM_BIAS.to_owned(), &[hidden]);
        if !self.tied_head {
            add(names::LM_HEAD.to_owned(), &[self.vocab_size, hidden]);
        }
        tensors
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::spec::tests::published;

    #[test]
    fn counts_of_the_published_checkpoints() {
        // reference/starcoder2.md §1.5
        let [b3, b7, b15] = published();
        for (spec, count) in [(&b3, 483), (&b7, 515), (&b15, 644)] {
            let names: HashSet<String> = spec.tensors().into_iter().map(|tensor| tensor.name).collect();
            assert_eq!(names.len(), count);
            assert_eq!(names.contains("lm_head.weight"), count == 644);
        }
        let find = |name: &str| b7.tensors().into_iter().find(|tensor| tensor.name == name).unwrap().shape;
        assert_eq!(find("model.layers.31.self_attn.k_proj.weight"), [512, 4608]);
        assert_eq!(find("model.layers.0.mlp.c_proj.weight"), [4608, 18432]);
        assert_eq!(find("model.layers.0.mlp.c_fc.bias"), [18432]);
    }

    #[test]
    fn without_biases_the_norms_keep_theirs() {
        let [mut spec, ..] = published();
        spec.bias = false;
        let names: Vec<String> = spec.tensors().into_iter().map(|tensor| tensor.name).collect();
        assert_eq!(names.len(), 483 - 6 * 30);
        assert!(names.iter().any(|name| name == "model.layers.3.input_layernorm.bias"));
        assert!(!names.iter().any(|name| name.contains("proj.bias") || name.contains("c_fc.bias")));
    }
}
