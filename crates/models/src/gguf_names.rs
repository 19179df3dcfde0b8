//! Tensor names of GGUF files, from the Hugging Face names that models ask by.

/// The GGUF name of a Hugging Face tensor.
pub fn from_hugging_face(architecture: &str, name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".into(),
        "model.norm.weight" => return "output_norm.weight".into(),
        "lm_head.weight" => return "output.weight".into(),
        _ => {}
    }
    let Some((layer, rest)) = name.strip_prefix("model.layers.").and_then(|n| n.split_once('.')) else { return name.to_owned() };
    let (module, suffix) = rest.rsplit_once('.').unwrap_or((rest, ""));
    let sandwich_norms = architecture.starts_with("gemma");
    let module = match module {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" if sandwich_norms => "post_attention_norm",
        "post_attention_layernorm" => "ffn_norm",
        "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.qkv_proj" => "attn_qkv",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.gate_up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        other => other,
    };
    format!("blk.{layer}.{module}.{suffix}")
}

#[cfg(test)]
mod tests {
    use super::from_hugging_face;

    #[test]
    fn names_follow_the_architecture() {
        let norm = "model.layers.3.post_attention_layernorm.weight";
        assert_eq!(from_hugging_face("llama", norm), "blk.3.ffn_norm.weight");
        assert_eq!(from_hugging_face("gemma3", norm), "blk.3.post_attention_norm.weight");
        assert_eq!(from_hugging_face("qwen2", "model.layers.11.self_attn.q_proj.bias"), "blk.11.attn_q.bias");
        assert_eq!(from_hugging_face("qwen2", "lm_head.weight"), "output.weight");
    }
}
