"""Write some of the tiny models as GGUF under crates/models/tests/fixtures/gguf/.

    python tools/golden/to_gguf.py          after make.py

`<name>-f32.gguf` and `<name>-f16.gguf` hold the same function as fixture `<name>` (the F16 source has weights that F16
holds exactly), so its golden.json is theirs too. `<name>-q8_0.gguf` has goldens of its own, `<name>-q8_0.json` and
`.safetensors`, computed by `transformers` from the dequantised weights.

Names and keys are those that GGUF readers expect of each architecture: q and k rows reordered to interleaved rope for
`llama` and `smollm3`, 1 added to Gemma's norm weights, Llama 3 rope scaling as a `rope_freqs.weight` tensor of divisors,
LongRoPE as two factor tensors and an attention factor. One key is more than converters usually write, and llama.cpp
ignores it: `llama.attention.sliding_window` in mistral-f32.gguf.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
import transformers
from gguf import (
    GGML_QUANT_VERSION,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    MODEL_TENSOR,
    RopeScalingType,
    TENSOR_NAMES,
    TokenType,
    get_tensor_name_map,
    quants,
)
from safetensors.torch import load_file

from make import OUT, fair_test, load, rounded_q8_0, write_golden
from tokenizer import CHAT_TEMPLATE, PROMPTS, SPECIAL, build_tokenizer

# fixture -> (architecture, storage formats)
FILES = {
    "llama3": (MODEL_ARCH.LLAMA, ["f32", "f16", "q8_0"]),
    "llama-yarn": (MODEL_ARCH.LLAMA, ["f32"]),
    "llama-linear": (MODEL_ARCH.LLAMA, ["f32"]),
    "mistral": (MODEL_ARCH.LLAMA, ["f32"]),
    "qwen2": (MODEL_ARCH.QWEN2, ["f32"]),
    "qwen3": (MODEL_ARCH.QWEN3, ["f32"]),
    "gemma2": (MODEL_ARCH.GEMMA2, ["f32"]),
    "gemma3": (MODEL_ARCH.GEMMA3, ["f32"]),
    "phi3": (MODEL_ARCH.PHI3, ["f32"]),
    "phi3-longrope-short": (MODEL_ARCH.PHI3, ["f32"]),
    "phi3-longrope-long": (MODEL_ARCH.PHI3, ["f32"]),
    "smollm3": (MODEL_ARCH.SMOLLM3, ["f32"]),
}

INTERLEAVED = {MODEL_ARCH.LLAMA, MODEL_ARCH.SMOLLM3}
GEMMA = {MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3}
FILE_TYPE = {"f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16, "q8_0": LlamaFileType.MOSTLY_Q8_0}
STORE = {"f16": GGMLQuantizationType.F16, "q8_0": GGMLQuantizationType.Q8_0}


def main() -> None:
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    (OUT / "gguf").mkdir(exist_ok=True)
    for name, (arch, stores) in FILES.items():
        for store in stores:
            path = OUT / "gguf" / f"{name}-{store}.gguf"
            write_gguf(path, OUT / name, arch, store)
            print(f"{path.name:32} {path.stat().st_size:7} bytes")
            if store == "q8_0":
                write_quantised_golden(OUT / name, path.stem)


def write_gguf(path: Path, source: Path, arch: MODEL_ARCH, store: str) -> None:
    config = json.loads((source / "config.json").read_text())
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[arch])
    # Not the family: llama.cpp expects certain tokens when the name contains "phi3".
    writer.add_name("tiny-random")
    writer.add_file_type(FILE_TYPE[store])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    write_parameters(writer, config, arch)
    write_vocabulary(writer, source, config)
    for name, values in extra_tensors(config).items():
        writer.add_tensor(name, np.asarray(values, dtype=np.float32))
    names = get_tensor_name_map(arch, config["num_hidden_layers"])
    for key, weight in load_file(source / "model.safetensors").items():
        base, suffix = key.rsplit(".", 1)
        name = f"{names.get_name(base)}.{suffix}"
        kind = STORE.get(store) if weight.ndim == 2 else None
        values = convert(key, weight.float().numpy(), config, arch)
        if kind is None:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert(key: str, weight: np.ndarray, config: dict, arch: MODEL_ARCH) -> np.ndarray:
    if arch in GEMMA and key.endswith("norm.weight"):
        return weight + np.float32(1)
    if arch in INTERLEAVED and ".q_proj." in key:
        return interleave(weight, config["num_attention_heads"])
    if arch in INTERLEAVED and ".k_proj." in key:
        return interleave(weight, config["num_key_value_heads"])
    return weight


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from "first halves, second halves" to pairs: row 2i holds i, row 2i+1 holds i + head_dim/2."""
    head_dim = weight.shape[0] // heads
    order = np.arange(head_dim).reshape(2, head_dim // 2).T.reshape(-1)
    rows = (np.arange(heads)[:, None] * head_dim + order).reshape(-1)
    return np.ascontiguousarray(weight[rows])


def write_parameters(writer: GGUFWriter, config: dict, arch: MODEL_ARCH) -> None:
    head_dim = head_dim_of(config)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if arch in INTERLEAVED or arch is MODEL_ARCH.PHI3:
        writer.add_rope_dimension_count(int(head_dim * config.get("partial_rotary_factor", 1.0)))

    if config.get("sliding_window") and config.get("use_sliding_window", True):
        writer.add_sliding_window(config["sliding_window"])
    elif arch is MODEL_ARCH.PHI3:
        writer.add_sliding_window(0)
    if arch is MODEL_ARCH.GEMMA2:
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])

    if arch is MODEL_ARCH.PHI3:
        original = config["original_max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(original)
        if config["rope_scaling"]:
            ratio = config["max_position_embeddings"] / original
            writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(ratio) / math.log(original)))
        return
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    elif kind not in (None, "llama3"):
        raise ValueError(f"no GGUF spelling for rope scaling {scaling}")


def extra_tensors(config: dict) -> dict:
    """Rope factors by which the plain inverse frequencies are divided."""
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "longrope":
        return {
            f"{TENSOR_NAMES[MODEL_TENSOR.ROPE_FACTORS_LONG]}.weight": scaling["long_factor"],
            f"{TENSOR_NAMES[MODEL_TENSOR.ROPE_FACTORS_SHORT]}.weight": scaling["short_factor"],
        }
    if kind == "llama3":
        return {f"{TENSOR_NAMES[MODEL_TENSOR.ROPE_FREQS]}.weight": llama3_factors(config, scaling)}
    return {}


def llama3_factors(config: dict, scaling: dict) -> list[float]:
    """1 for wavelengths well inside the original context, `factor` for those beyond it, a blend of frequencies between."""
    head_dim = head_dim_of(config)
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * config["rope_theta"] ** (i / head_dim)
        turns = scaling["original_max_position_embeddings"] / wavelength
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        keep = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1.0 / (keep + (1.0 - keep) / scaling["factor"]))
    return factors


def head_dim_of(config: dict) -> int:
    return config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])


def write_vocabulary(writer: GGUFWriter, source: Path, config: dict) -> None:
    model = json.loads((source / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    padding = [f"[PAD{i}]" for i in range(len(tokens), config["vocab_size"])]
    types = [TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + padding)
    writer.add_token_types(types + [TokenType.UNUSED] * len(padding))
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_quantised_golden(source: Path, stem: str) -> None:
    """What the Q8_0 file means: matrices rounded block by block; the order of rows changes nothing in that."""
    model = rounded_q8_0(load(source))
    tokenizer = build_tokenizer()
    prompts = [(text, tokenizer.encode(text).ids) for text in PROMPTS]
    runs = fair_test(model, prompts)
    if runs is None:
        raise RuntimeError(f"{stem}: greedy text is no fair test; mark {source.name} as `q8_0` in families.py and make it again")
    write_golden(OUT / "gguf", model, prompts, runs, {"weights": "dequantised"}, stem)


if __name__ == "__main__":
    main()
