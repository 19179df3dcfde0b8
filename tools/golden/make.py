"""Make the tiny random checkpoints and their goldens under crates/models/tests/fixtures/.

    python tools/golden/make.py [NAME ...]        all fixtures of families.py, or the named ones

For every fixture: a folder in Hugging Face layout, and what Python `transformers` computes from exactly those files in
float32 with eager attention:

golden.json         prompts (text, ids), 64 greedy tokens each, and the smallest gap between best and second best logit
golden.safetensors  for prompt 0 (T tokens): `hidden.0` [T, hidden] residual stream after the embedding, `hidden.N` after
                    decoder layer N-1, `norm` [T, hidden] after the final norm, `logits` [T, vocab];
                    for prompt P > 0: `last_logits.P` [vocab] of its last token. All f32.

Weights come from numpy's generator, seeded by fixture name and a counter; the counter is the first for which greedy text
is a fair test (see `fair_test`).
"""

import copy
import json
import re
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType, quants
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from families import EOS, FIXTURES
from tokenizer import PROMPTS, build_tokenizer, write_tokenizer

OUT = Path(__file__).resolve().parents[2] / "crates/models/tests/fixtures"
STEPS = 64
MIN_GAP = 2e-3  # fixtures are chosen above it; an engine that is right to 1e-3 picks the same tokens
MIN_DISTINCT = 10  # of the 64 tokens of each prompt, so that a stuck loop is not mistaken for a match
MAX_NOISE = 2e-5  # largest difference of any logit between f32 and f64, so that 1e-4 is a fair tolerance
MIN_ABLATION = 0.02  # largest change of any logit when a config key is ignored


def main() -> None:
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = build_tokenizer()
    prompts = [(text, tokenizer.encode(text).ids) for text in PROMPTS]
    for name in sys.argv[1:] or FIXTURES:
        make(name, tokenizer, prompts)


def make(name, tokenizer, prompts) -> None:
    spec = FIXTURES[name]
    folder = OUT / name
    for attempt in range(1000):
        shutil.rmtree(folder, ignore_errors=True)
        write_checkpoint(folder, name, spec, attempt)
        model = load(folder)
        runs = fair_test(model, prompts)
        if runs and (not spec.get("q8_0") or fair_test(rounded_q8_0(model), prompts)):
            break
    else:
        raise RuntimeError(f"{name}: no seed gives clear greedy text; change the weight scales")
    write_tokenizer(folder, tokenizer, spec["config"])
    write_golden(folder, model, prompts, runs, {"seed": attempt})
    changes = [ablation(folder, spec["config"], change, model, prompts[0][1]) for change in spec.get("ablate", [])]
    size = sum(f.stat().st_size for f in folder.iterdir())
    gap = min(run["min_gap"] for run in runs)
    distinct = [len(set(run["tokens"])) for run in runs]
    print(f"{name:20} seed {attempt:3} gap {gap:.4f} distinct {distinct} {size:7} bytes  ablations {changes}", flush=True)


# The checkpoint.


def write_checkpoint(folder: Path, name: str, spec: dict, attempt: int) -> None:
    folder.mkdir(parents=True)
    config = spec["config"]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    parsed = AutoConfig.from_pretrained(folder)
    if spec.get("modern"):
        parsed.architectures = config["architectures"]
        parsed.dtype = "float32"
        parsed.save_pretrained(folder)
    generation = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"], "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")

    model = AutoModelForCausalLM.from_config(parsed, attn_implementation="eager", dtype=torch.float32)
    rng = np.random.default_rng([zlib.crc32(spec.get("weights_of", name).encode()), attempt])
    tied = parsed.tie_word_embeddings
    tensors = {}
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" and tied:
            continue
        weight = draw(rng, key, tuple(value.shape), tied, parsed.model_type)
        if spec.get("grid"):
            weight = (weight * 4096).round() / 4096
            weight = weight.to(torch.bfloat16).to(torch.float32)
            assert torch.equal(weight.to(torch.float16).to(torch.float32), weight)
        tensors[key] = weight.to(torch.bfloat16 if spec.get("store") == "BF16" else torch.float32)
    write_tensors(folder, tensors, spec.get("shards", 1))


def draw(rng, key: str, shape: tuple, tied: bool, family: str) -> torch.Tensor:
    """Scales that keep the residual stream near 1, attention far from uniform and logits a few units apart."""
    normal = rng.standard_normal(shape, dtype=np.float32)
    gemma = family.startswith("gemma")
    if key.endswith("norm.weight"):
        gain = 4.0 if tied and key == "model.norm.weight" else 1.3 if "q_norm" in key or "k_norm" in key else 1.0
        weight = gain * (1.0 + 0.2 * normal) - (1.0 if gemma else 0.0)
    elif key.endswith("bias"):
        weight = 0.3 * normal
    elif key == "model.embed_tokens.weight":
        weight = normal * (0.5 / np.sqrt(shape[1]) if tied else 1.0)
    elif key == "lm_head.weight":
        weight = normal * 2.0 / np.sqrt(shape[1])
    elif "q_proj" in key or "k_proj" in key or "qkv_proj" in key:
        weight = normal * 1.5 / np.sqrt(shape[1])
    else:
        weight = normal * 1.2 / np.sqrt(shape[1])
    return torch.from_numpy(weight.astype(np.float32))


def write_tensors(folder: Path, tensors: dict, shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    keys = list(tensors)
    files = {key: f"model-{i * shards // len(keys) + 1:05}-of-{shards:05}.safetensors" for i, key in enumerate(keys)}
    for file in sorted(set(files.values())):
        part = {key: tensors[key] for key in keys if files[key] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def load(folder: Path, config=None):
    """The model that these files mean, in f32, with every tensor accounted for."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    left = {kind: keys for kind, keys in info.items() if keys}
    if left:
        raise RuntimeError(f"{folder.name}: tensors do not fit the model: {left}")
    return model.eval()


# What transformers computes from it.


def logits_of(model, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def fair_test(model, prompts):
    """64 tokens per prompt, each step a full forward pass without cache; None if a right engine could differ."""
    if noise(model, prompts[0][1]) > MAX_NOISE:
        return None
    runs = []
    for _, ids in prompts:
        tokens, smallest = [], float("inf")
        for _ in range(STEPS):
            best = logits_of(model, ids + tokens)[-1].topk(2)
            tokens.append(best.indices[0].item())
            smallest = min(smallest, (best.values[0] - best.values[1]).item())
            if smallest < MIN_GAP or tokens[-1] == EOS:
                return None
        if len(set(tokens)) < MIN_DISTINCT:
            return None
        runs.append({"tokens": tokens, "min_gap": smallest})
    return runs


def rounded_q8_0(model):
    """A copy with every matrix rounded to Q8_0 and back."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            packed = quants.quantize(parameter.numpy(), GGMLQuantizationType.Q8_0)
            parameter.copy_(torch.from_numpy(quants.dequantize(packed, GGMLQuantizationType.Q8_0)))
    return model


def write_golden(folder: Path, model, prompts, runs, extra: dict, stem: str = "golden") -> None:
    tensors = trace(model, prompts[0][1])
    for i, (_, ids) in enumerate(prompts[1:], start=1):
        tensors[f"last_logits.{i}"] = logits_of(model, ids)[-1]
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{stem}.safetensors")
    golden = {
        "made_with": {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]},
        **extra,
        "prompts": [
            {"text": text, "ids": ids, "greedy": run["tokens"], "min_gap": round(run["min_gap"], 6)}
            for (text, ids), run in zip(prompts, runs)
        ],
    }
    text = json.dumps(golden, indent=1)
    (folder / f"{stem}.json").write_text(compact_lists(text) + "\n")


def noise(model, ids: list[int]) -> float:
    """How far rounding in f32 moves the logits."""
    single = logits_of(model, ids)
    double = model.double()(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    model.float()
    return (single - double).abs().max().item()


def trace(model, ids: list[int]) -> dict[str, torch.Tensor]:
    found = {}
    inner = model.model
    hooks = [inner.norm.register_forward_hook(lambda _m, _a, out: found.update({"norm": out[0]}))]

    def before(_module, args, kwargs):
        found["hidden.0"] = (args[0] if args else kwargs["hidden_states"])[0].clone()

    hooks.append(inner.layers[0].register_forward_pre_hook(before, with_kwargs=True))
    for i, layer in enumerate(inner.layers):

        def after(_module, _args, out, i=i):
            found[f"hidden.{i + 1}"] = (out if torch.is_tensor(out) else out[0])[0].clone()

        hooks.append(layer.register_forward_hook(after))
    found["logits"] = logits_of(model, ids)
    for hook in hooks:
        hook.remove()
    assert all(value.ndim == 2 and len(value) == len(ids) for value in found.values()), {k: v.shape for k, v in found.items()}
    return found


def ablation(folder: Path, config: dict, change: dict, model, ids: list[int]) -> float:
    """How far the logits move when an engine misreads the config as `change` says."""
    changed = {key: value for key, value in {**config, **change}.items() if value is not None or key not in change}
    # Some keys have a default, and deleting them means that default; a null in the file can mean another thing.
    temp = folder / "ablation"
    temp.mkdir()
    (temp / "config.json").write_text(json.dumps(changed))
    other = load(folder, AutoConfig.from_pretrained(temp))
    shutil.rmtree(temp)
    moved = (logits_of(other, ids) - logits_of(model, ids)).abs().max().item()
    if moved < MIN_ABLATION:
        raise RuntimeError(f"{folder.name}: {change} moves the logits by {moved} only: the golden would not notice")
    return round(moved, 3)


def compact_lists(text: str) -> str:
    """Number lists of an indented JSON text, each on one line."""
    return re.sub(r"\[[\d\s,.-]+\]", lambda m: re.sub(r"\s+", " ", m.group()).replace("[ ", "[").replace(" ]", "]"), text)


if __name__ == "__main__":
    main()
