"""The tiny models: one entry per fixture, its config.json written as published checkpoints write it.

`FIXTURES[name]` has
- `config`: the config.json, in the classic spelling (`rope_theta`, `rope_scaling`, `sliding_window_pattern`);
- `modern`: write config.json as transformers 5 saves it instead (`rope_parameters`, `layer_types`, `dtype`);
- `store`: dtype of the weights on disk, "F32" (default) or "BF16";
- `shards`: number of safetensors files (default 1);
- `grid`: round weights so that F16 and BF16 hold them exactly, which makes the other storage formats the same model;
- `q8_0`: take a seed for which the weights rounded to Q8_0 make a fair test too;
- `weights_of`: take seed and weights from that other fixture;
- `ablate`: config changes (None deletes the key) each of which must visibly change the logits, so that an engine which
  ignores the key fails the golden.
"""

WINDOW = 16  # shorter than the longest prompt
BOS, EOS = 0, 1
VOCAB = 320

TOKENS = {"bos_token_id": BOS, "eos_token_id": EOS, "vocab_size": VOCAB}

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}

# Head dimension given by itself: 4 * 16 is not the hidden size.
EXPLICIT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def llama(**changes):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **TOKENS,
        **SMALL,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        **changes,
    }


LLAMA3 = llama(
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
    rope_theta=10000.0,
    rope_scaling={
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 32,
        "rope_type": "llama3",
    },
    tie_word_embeddings=True,
)

MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    **TOKENS,
    **EXPLICIT,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": WINDOW,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def qwen2(**changes):
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **TOKENS,
        **SMALL,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "max_window_layers": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "sliding_window": WINDOW,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        **changes,
    }


def qwen3(**changes):
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **TOKENS,
        **EXPLICIT,
        "attention_bias": False,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "max_window_layers": 2,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        **changes,
    }


GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    **TOKENS,
    **EXPLICIT,
    "attention_bias": False,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 12.0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 512,
    "query_pre_attn_scalar": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": WINDOW,
    "torch_dtype": "float32",
}


def gemma3(**changes):
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        **TOKENS,
        **EXPLICIT,
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 512,
        "query_pre_attn_scalar": 16,
        "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 6,
        "torch_dtype": "float32",
        **changes,
    }


def phi3(**changes):
    return {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        **TOKENS,
        **SMALL,
        "vocab_size": VOCAB + 8,  # more rows than the tokenizer has tokens, as published Phi-3 has
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "original_max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": None,
        "pad_token_id": EOS,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        **changes,
    }


# head_dim 16, partial_rotary_factor 0.75: 12 rotated dimensions, 6 factors.
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.4, 1.5],
    "long_factor": [1.1, 1.6, 2.5, 4.0, 7.0, 9.0],
}

SMOLLM3 = {
    "architectures": ["SmolLM3ForCausalLM"],
    "model_type": "smollm3",
    **TOKENS,
    **SMALL,
    "pad_token_id": EOS,
    "num_hidden_layers": 4,
    "attention_bias": False,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "max_window_layers": 4,
    "mlp_bias": False,
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0],
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 2000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}

FIXTURES = {
    # Multi-head attention, untied head.
    "llama2": {
        "config": llama(
            hidden_size=48, intermediate_size=80, num_attention_heads=3, num_key_value_heads=3, rope_theta=5000.0
        ),
        "ablate": [{"rope_theta": None}],
    },
    # Grouped queries, tied head, Llama 3 rope scaling with all three frequency bands in use.
    "llama3": {
        "config": LLAMA3,
        "grid": True,
        "q8_0": True,
        "ablate": [{"rope_scaling": None}],
    },
    "llama3-bf16": {
        "config": {**LLAMA3, "torch_dtype": "bfloat16"},
        "store": "BF16",
        "grid": True,
        "q8_0": True,
        "weights_of": "llama3",
    },
    # Biases in attention (o_proj included) and MLP.
    "llama-bias": {
        "config": llama(attention_bias=True, mlp_bias=True),
        "ablate": [],
    },
    "llama-linear": {
        "config": llama(rope_scaling={"type": "linear", "factor": 4.0}),
        "ablate": [{"rope_scaling": None}],
    },
    # YaRN with its default parameters.
    "llama-yarn": {
        "config": llama(
            max_position_embeddings=1024,
            rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
        ),
        "ablate": [{"rope_scaling": None}],
    },
    "mistral": {
        "config": MISTRAL,
        "ablate": [{"sliding_window": None}, {"sliding_window": WINDOW - 1}, {"sliding_window": WINDOW + 1}],
    },
    # Biases on q, k and v; a sliding_window that use_sliding_window switches off.
    "qwen2": {
        "config": qwen2(),
        "ablate": [{"rope_theta": 10000.0}],
    },
    # YaRN with every parameter given; untied head.
    "qwen2-yarn": {
        "config": qwen2(
            rope_theta=10000.0,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            rope_scaling={
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 8.0,
                "beta_slow": 0.5,
                "attention_factor": 1.25,
            },
        ),
        "ablate": [
            {"rope_scaling": None},
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
        ],
    },
    # Norms on q and k, explicit head_dim.
    "qwen3": {
        "config": qwen3(),
        "ablate": [{"rope_theta": 10000.0}, {"rms_norm_eps": 1e-2}],
    },
    # Three safetensors files with an index; config.json as transformers 5 writes it; untied head.
    "qwen3-sharded": {
        "config": qwen3(tie_word_embeddings=False, rope_theta=50000.0),
        "modern": True,
        "shards": 3,
        "ablate": [],
    },
    # Soft caps on attention and logits, alternating local and global layers.
    "gemma2": {
        "config": GEMMA2,
        "ablate": [{"attn_logit_softcapping": None}, {"final_logit_softcapping": None}, {"sliding_window": 512}],
    },
    # Five local layers, one global, two rope bases. Six layers, since GGUF readers assume that pattern.
    "gemma3": {
        "config": gemma3(num_hidden_layers=6, num_attention_heads=2, num_key_value_heads=1, intermediate_size=48),
        "ablate": [
            {"sliding_window": WINDOW + 1},
            {"rope_local_base_freq": 1000000.0},
            {"rope_theta": 10000.0},
            {"sliding_window_pattern": 2},
        ],
    },
    # Linear scaling by 8 on the global layers only; a query scale that is not head_dim; its own local base.
    "gemma3-scaled": {
        "config": gemma3(
            num_hidden_layers=3,
            sliding_window_pattern=3,
            query_pre_attn_scalar=24,
            rope_local_base_freq=500.0,
            rope_scaling={"factor": 8.0, "rope_type": "linear"},
            rope_theta=20000.0,
        ),
        "ablate": [
            {"rope_scaling": None},
            {"query_pre_attn_scalar": 16},
            {"rope_local_base_freq": None},
            {"sliding_window_pattern": None},
        ],
    },
    # The same with config.json as transformers 5 writes it.
    "gemma3-modern": {
        "config": gemma3(
            sliding_window_pattern=2,
            rope_local_base_freq=500.0,
            rope_scaling={"factor": 8.0, "rope_type": "linear"},
            rope_theta=20000.0,
        ),
        "modern": True,
        "ablate": [],
    },
    # Fused qkv_proj and gate_up_proj, padded vocabulary, window.
    "phi3": {
        "config": phi3(hidden_size=48, num_attention_heads=3),
        "ablate": [{"rope_theta": 500.0}],
    },
    "phi3-window": {
        "config": phi3(sliding_window=WINDOW),
        "ablate": [{"sliding_window": None}],
    },
    # LongRoPE, every position inside the original context: short factors.
    "phi3-longrope-short": {
        "config": phi3(
            max_position_embeddings=1024,
            original_max_position_embeddings=256,
            partial_rotary_factor=0.75,
            rope_scaling=LONGROPE,
        ),
        "ablate": [{"rope_scaling": None}, {"max_position_embeddings": 256}, {"original_max_position_embeddings": 8}],
    },
    # LongRoPE, every prompt already longer than the original context: long factors.
    "phi3-longrope-long": {
        "config": phi3(
            max_position_embeddings=256,
            original_max_position_embeddings=8,
            partial_rotary_factor=0.75,
            rope_scaling=LONGROPE,
        ),
        "ablate": [{"rope_scaling": None}, {"original_max_position_embeddings": 256}],
    },
    # Every fourth layer without rope.
    "smollm3": {
        "config": SMOLLM3,
        "ablate": [{"no_rope_layers": [1, 1, 1, 1]}, {"no_rope_layers": [0, 1, 1, 1]}],
    },
    # Another pattern than the one that the interval gives.
    "smollm3-pattern": {
        "config": {
            **SMOLLM3,
            "num_hidden_layers": 2,
            "max_window_layers": 2,
            "no_rope_layers": [0, 1],
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
        },
        "ablate": [{"no_rope_layers": None}],
    },
}
