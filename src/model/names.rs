//! The names that StarCoder2's tensors have in Hugging Face checkpoints.

/// Token embeddings, `[vocab, hidden]`; the output head too where they are tied.
pub const EMBED_TOKENS: &str = "model.embed_tokens.weight";
/// Gain of the norm before the head, `[hidden]`.
pub const FINAL_NORM_WEIGHT: &str = "model.norm.weight";
/// Shift of the norm before the head, `[hidden]`.
pub const FINAL_NORM_BIAS: &str = "model.norm.bias";
/// The output head, `[vocab, hidden]`; only where it is not tied to the embeddings.
pub const LM_HEAD: &str = "lm_head.weight";

macro_rules! layer_names {
    ($($(#[$doc:meta])* $function:ident => $suffix:literal;)*) => {
        $($(#[$doc])* pub fn $function(layer: usize) -> String {
            format!(concat!("model.layers.{}.", $suffix), layer)
        })*
    };
}

layer_names! {
    /// Gain of the norm before attention, `[hidden]`.
    input_norm_weight => "input_layernorm.weight";
    /// Shift of the norm before attention, `[hidden]`.
    input_norm_bias => "input_layernorm.bias";
    /// Queries, `[heads * head_dim, hidden]`.
    q_proj_weight => "self_attn.q_proj.weight";
    /// Queries, `[heads * head_dim]`.
    q_proj_bias => "self_attn.q_proj.bias";
    /// Keys, `[kv_heads * head_dim, hidden]`.
    k_proj_weight => "self_attn.k_proj.weight";
    /// Keys, `[kv_heads * head_dim]`.
    k_proj_bias => "self_attn.k_proj.bias";
    /// Values, `[kv_heads * head_dim, hidden]`.
    v_proj_weight => "self_attn.v_proj.weight";
    /// Values, `[kv_heads * head_dim]`.
    v_proj_bias => "self_attn.v_proj.bias";
    /// Attention's output, `[hidden, heads * head_dim]`.
    o_proj_weight => "self_attn.o_proj.weight";
    /// Attention's output, `[hidden]`.
    o_proj_bias => "self_attn.o_proj.bias";
    /// Gain of the norm before the MLP, `[hidden]`.
    post_attention_norm_weight => "post_attention_layernorm.weight";
    /// Shift of the norm before the MLP, `[hidden]`.
    post_attention_norm_bias => "post_attention_layernorm.bias";
    /// The MLP's way in, `[intermediate, hidden]`.
    c_fc_weight => "mlp.c_fc.weight";
    /// The MLP's way in, `[intermediate]`.
    c_fc_bias => "mlp.c_fc.bias";
    /// The MLP's way out, `[hidden, intermediate]`.
    c_proj_weight => "mlp.c_proj.weight";
    /// The MLP's way out, `[hidden]`.
    c_proj_bias => "mlp.c_proj.bias";
}
