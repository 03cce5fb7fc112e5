//! Network features that no backend computes yet.

use super::BackendError;
use crate::model::{Activation, Layer, Mlp, ModelSpec, Norm, NormKind, Part};

/// Finds the first feature of `spec` without kernels.
///
/// # Errors
/// [`BackendError::Unavailable`], naming the feature.
pub(super) fn check_network(spec: &ModelSpec) -> Result<(), BackendError> {
    let lack = of_network(spec).or_else(|| spec.layers.iter().find_map(|layer| of_layer(layer, spec)));
    lack.map_or(Ok(()), |lack| Err(BackendError::Unavailable(format!("{lack} cannot be computed yet"))))
}

fn of_network(spec: &ModelSpec) -> Option<&'static str> {
    let lacks = [
        (spec.embedding.positions.is_some(), "a table of learned positions"),
        (spec.embedding.scale != 1.0, "a factor of the embeddings"),
        (spec.head.scale != 1.0, "a factor of the logits"),
        (spec.head.linear.bias.is_some(), "a bias of the head"),
        (spec.head.linear.format.is_some(), "a quantised head"),
        (spec.ropes.len() != 1, "more or fewer than one table of rotations"),
    ];
    first(&lacks).or_else(|| of_norm(&spec.final_norm))
}

fn of_layer(layer: &Layer, spec: &ModelSpec) -> Option<&'static str> {
    let attention = &layer.attention;
    let lacks = [
        (layer.residual_scale != 1.0, "a factor of the residual stream's terms"),
        (attention.rope != Some(0), "attention without rotations"),
        (attention.scale != (spec.head_dim as f32).sqrt().recip(), "a scale of attention other than 1 / √head_dim"),
        (attention.query_scale.is_some(), "queries scaled by their position"),
        (attention.query_norm.is_some() || attention.key_norm.is_some(), "norms of queries and keys"),
        (layer.parts().iter().any(is_quantised), "quantised weights"),
    ];
    let mlp = match &layer.mlp {
        Mlp::Plain { activation: Activation::GeluTanh | Activation::GeluErf, .. } => None,
        Mlp::Plain { .. } => Some("a plain MLP with SiLU"),
        Mlp::Gated(_) => Some("a gated MLP"),
        Mlp::Experts { .. } => Some("a mixture of experts"),
    };
    first(&lacks).or(mlp).or_else(|| of_norm(&layer.attention_norm)).or_else(|| of_norm(&layer.mlp_norm))
}

fn is_quantised(part: &Part<'_>) -> bool {
    matches!(part, Part::Linear(linear) if linear.format.is_some())
}

fn of_norm(norm: &Norm) -> Option<&'static str> {
    match norm.kind {
        NormKind::LayerNorm if norm.bias.is_none() => Some("LayerNorm without a bias"),
        NormKind::LayerNorm => None,
        NormKind::RmsNorm => Some("RMSNorm"),
    }
}

fn first(lacks: &[(bool, &'static str)]) -> Option<&'static str> {
    lacks.iter().find(|(lacks, _)| *lacks).map(|(_, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Config, Dtype};
    use crate::model::WeightFormat;

    #[test]
    fn what_no_backend_computes_is_named() {
        let config = Config::parse(br#"{"model_type":"starcoder2"}"#, "config.json").unwrap();
        let spec = ModelSpec::from_config(&config).unwrap();
        assert!(check_network(&spec).is_ok());
        let said = |change: &dyn Fn(&mut ModelSpec)| {
            let mut spec = spec.clone();
            change(&mut spec);
            check_network(&spec).unwrap_err().to_string()
        };
        assert_eq!(said(&|spec| spec.embedding.scale = 12.0), "a factor of the embeddings cannot be computed yet");
        assert!(said(&|spec| spec.layers[3].attention.rope = None).contains("without rotations"));
        assert!(said(&|spec| spec.layers[3].attention.scale = 0.1).contains("scale of attention"));
        assert!(said(&|spec| spec.layers[3].mlp_norm.kind = NormKind::RmsNorm).contains("RMSNorm"));
        assert!(said(&|spec| spec.final_norm.bias = None).contains("LayerNorm without a bias"));
        let silu = |spec: &mut ModelSpec| {
            if let Mlp::Plain { activation, .. } = &mut spec.layers[29].mlp {
                *activation = Activation::Silu;
            }
        };
        assert!(said(&silu).contains("SiLU"));
        let format = Some(WeightFormat::dense(Dtype::Bf16));
        assert!(said(&|spec| spec.layers[2].attention.key.format = format).contains("quantised weights"));
        assert!(said(&|spec| spec.head.linear.format = format).contains("a quantised head"));
    }
}
