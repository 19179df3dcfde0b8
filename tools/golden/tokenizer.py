"""The one tokenizer of all tiny models: byte-level BPE, 4 special tokens + 256 bytes + 60 merges = 320 tokens."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIAL = ["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"]
VOCAB = 320

TEXT = """The tide rose slowly over the sand while the gulls circled above the harbour. An old fisherman mended his net,
counting the knots as he tied them, and thought about the weather that the evening would bring. There was nothing in the sky
that he had not seen before, and nothing in the sea that he did not expect to see again. def main(): return [x + 1 for x in
range(10)] if the counter is less than the other one then the other one is the larger; the number 1234 stands in the text."""

# The first is longer than every sliding window of the fixtures. All are longer than the shortest original rope context (8).
PROMPTS = [
    "The other fisherman was counting the gulls: 1234 naïve 海 🐟",
    "def counter(x): return x + 1 if x in range(7)",
    "Why is the sky blue?",
]

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", 0)]
    )
    assert tokenizer.get_vocab_size() == VOCAB and tokenizer.token_to_id("<|eos|>") == 1
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer, config: dict) -> None:
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "bos_token": "<|bos|>",
        "eos_token": "<|eos|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n")
