//! The tensors of a network, with the checkpoint's names and shapes.

use std::collections::HashSet;

use crate::checkpoint::ExpectedTensor;

use super::spec::{Layer, Linear, ModelSpec, Norm, Part, TensorRows};

impl ModelSpec {
    /// Every tensor that the forward pass reads, once: names and shapes as the checkpoint has them (`[out, in]` for
    /// matrices). Of a layer the matrices and norms come first, then the biases of the matrices.
    pub fn tensors(&self) -> Vec<ExpectedTensor> {
        let mut rows: Vec<&TensorRows> = vec![&self.embedding.tokens];
        rows.extend(&self.embedding.positions);
        rows.extend(self.layers.iter().flat_map(of_layer));
        rows.extend(of_norm(&self.final_norm));
        rows.extend(of_linear(&self.head.linear));
        // Several linears may be rows of one tensor.
        let mut seen = HashSet::new();
        let first = rows.into_iter().filter(|rows| seen.insert(rows.tensor.as_str()));
        first.map(|rows| ExpectedTensor { name: rows.tensor.clone(), shape: rows.shape.clone() }).collect()
    }
}

fn of_norm(norm: &Norm) -> impl Iterator<Item = &TensorRows> {
    std::iter::once(&norm.weight).chain(&norm.bias)
}

fn of_linear(linear: &Linear) -> impl Iterator<Item = &TensorRows> {
    std::iter::once(&linear.weight).chain(&linear.bias)
}

/// The tensors of a layer, each as often as it is used.
pub(super) fn of_layer(layer: &Layer) -> Vec<&TensorRows> {
    let parts = layer.parts();
    let mut rows: Vec<&TensorRows> = Vec::new();
    for part in &parts {
        match *part {
            Part::Norm(norm) => rows.extend(of_norm(norm)),
            Part::Linear(linear) => rows.push(&linear.weight),
        }
    }
    rows.extend(parts.iter().filter_map(|part| match *part {
        Part::Norm(_) => None,
        Part::Linear(linear) => linear.bias.as_ref(),
    }));
    rows
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::spec::tests::{published, published_configs};
    use super::*;

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
        let [mut config, ..] = published_configs();
        config.use_bias = false;
        let spec = ModelSpec::from_config(&config).unwrap();
        let names: Vec<String> = spec.tensors().into_iter().map(|tensor| tensor.name).collect();
        assert_eq!(names.len(), 483 - 6 * 30);
        assert!(names.iter().any(|name| name == "model.layers.3.input_layernorm.bias"));
        assert!(!names.iter().any(|name| name.contains("proj.bias") || name.contains("c_fc.bias")));
    }

    #[test]
    fn a_tensor_that_several_linears_share_is_expected_once() {
        let [mut spec, ..] = published();
        let (q, kv, hidden) = (24 * 128, 2 * 128, 3072);
        for (index, layer) in spec.layers.iter_mut().enumerate() {
            let fused = TensorRows::whole(format!("model.layers.{index}.attn.c_attn.weight"), &[q + 2 * kv, hidden]);
            let rows =
                |first, rows| Linear { weight: TensorRows { first, rows, ..fused.clone() }, bias: None, format: None };
            layer.attention.query = rows(0, q);
            layer.attention.key = rows(q, kv);
            layer.attention.value = rows(q + kv, kv);
        }
        let counts = spec.counts();
        assert_eq!(spec.tensors().len(), 483 - 30 * 5);
        assert_eq!(counts.parameters, published()[0].counts().parameters - 30 * (q + 2 * kv) as u64);
    }
}
