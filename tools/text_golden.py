"""Goldens for tokenizers and chat templates, made with Python's `tokenizers` and `jinja2` (as `transformers` sets it up).

    python3 -m venv VENV && VENV/bin/pip install tokenizers transformers jinja2 gguf
    VENV/bin/python tools/text_golden.py tokens MODELS     # folder with the GGUF files named in FILES
    VENV/bin/python tools/text_golden.py chat TEMPLATES    # folder with *.jinja files

`tokens` writes crates/models/tests/fixtures/text/tokens.json: for every corpus below, one hash per 500 texts of the ids of each
model; the tests make the same corpora. It also writes text/spm/tokenizer.json, a small SentencePiece-like tokenizer with its hashes.
`chat` writes text/conversations.json, and text/chat/NAME.json: a template and what each conversation renders to. Committed are the
templates of models under Apache-2.0 and MIT, and the ones below.

Corpora come from one linear congruential generator: x = x * 6364136223846793005 + 1442695040888963407 mod 2^64, next = x >> 33.
A hash is FNV-1a (64 bit) over the ids as 4 bytes little endian, each text ended by the id 0xFFFFFFFF.
"""

import json
import sys
from datetime import datetime
from pathlib import Path

OUT = Path(__file__).resolve().parent.parent / "crates/models/tests/fixtures/text"
CHUNK = 500
FILES = ["SmolLM2-135M-Instruct.Q4_1.gguf", "qwen2.5-coder-0.5b-instruct-Q4_K_M.gguf", "gemma-3-270m-Q4_K_M.gguf"]

# Code point ranges: [first, end)
RANGES = [
    (0x20, 0x7F), (0x41, 0x5B), (0x61, 0x7B), (0x30, 0x3A), (0x09, 0x0E), (0x20, 0x21), (0xA0, 0x180), (0x300, 0x370),
    (0x400, 0x460), (0x5D0, 0x5EB), (0x620, 0x670), (0x900, 0x970), (0xE01, 0xE3B), (0x2000, 0x2070), (0x3040, 0x3100),
    (0x4E00, 0x9FA6), (0xAC00, 0xD7A4), (0x1F300, 0x1F650), (0x1F3FB, 0x1F400), (0x200D, 0x200E), (0xFE0F, 0xFE10), (0x0, 0x20),
]  # fmt: skip

TEXTS = [
    "", " ", "  ", "\n", "\n\n", "\t\t x", "Hello", " Hello", "Hello  world", "Hello world ", "a\r\nb\r\n\r\nc", "\u00a0\u3000 x",
    "def f(x):\n    return x + 1  # comment\n\n\nclass A:\n\tpass\n", "fn main() { let x: Vec<u8> = vec![0; 1_000]; }",
    "<div class=\"a\">\n  <p>text</p>\n</div>", "SELECT * FROM t WHERE a<>'it''s';", "{\"key\": [1, 2.5, null, true]}",
    "I'm you're he'd WE'LL THEY'VE don't \u2019s '\u017f", "1234567890 3.14159 1,000,000 0x1F \u0663\u0664\u0665 \u00bd \u2163",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u6771\u4eac\u30bf\u30ef\u30fc\u3072\u3089\u304c\u306a", "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u05e9\u05dc\u05d5\u05dd", "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440", "na\u00efve caf\u00e9 \u00c5ngstr\u00f6m", "cafe\u0301 e\u0323\u0302 A\u030a \u1112\u1161\u11ab",
    "\U0001f926\U0001f3fd\u200d\u2640\ufe0f \U0001f1e9\U0001f1ea \U0001f468\u200d\U0001f469\u200d\U0001f467", "\u200b\ufeff\u200e", "\x00\x01\x1f\x7f\x80", "\ufffd\ufffe\U0010ffff", "\ud55c\u1100\u1161",
    "<|im_start|>user\nhi<|im_end|>\n", "<s>x</s> <bos><eos> <start_of_turn>user\nhi<end_of_turn>\n", "<|im_start", "<|im_start|><|im_end|>",
    "<unused0><unused99> <table><tr><td>x</td></tr></table>", "\u2581\u2581x \u2581", "<0x0A><0xFF>", "\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n",
    " " * 100 + "x", "a" * 300, "=" * 70, "ab" * 150, "\u00e9" * 40, "\U0001f600" * 20, "A man a plan. " * 20,
    "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs!",
    "https://example.org/path?q=1&r=%20#frag mail@example.org C:\\dir\\file.txt", "$x^2 + \\frac{1}{2}$ \u2211\u222b\u221e \u2192 \u2260",
]  # fmt: skip


class Lcg:
    def __init__(self, seed):
        self.x = seed

    def next(self):
        self.x = (self.x * 6364136223846793005 + 1442695040888963407) & (2**64 - 1)
        return self.x >> 33


def random_bytes():
    r = Lcg(1)
    return [bytes(r.next() % 256 for _ in range(r.next() % 64)).decode("utf-8", "replace") for _ in range(10_000)]


def random_chars():
    r, texts = Lcg(2), []
    for _ in range(5_000):
        left, text = r.next() % 40, ""
        while left:
            first, end = RANGES[r.next() % len(RANGES)]
            run = min(left, 1 + r.next() % 6)
            text += "".join(chr(first + r.next() % (end - first)) for _ in range(run))
            left -= run
        texts.append(text)
    return texts


def random_tokens(pieces):
    """Tokens' bytes put together: texts where token boundaries are likely, and likely to move. `pieces`: bytes by id, None if special."""
    r, texts = Lcg(3), []
    for _ in range(5_000):
        chosen = (pieces[r.next() % len(pieces)] for _ in range(1 + r.next() % 12))
        texts.append(b"".join(piece or b"" for piece in chosen).decode("utf-8", "replace"))
    return texts


def hashes(encode, texts):
    out = []
    for start in range(0, len(texts), CHUNK):
        h = 0xCBF29CE484222325
        for text in texts[start : start + CHUNK]:
            for i in [*encode(text), 0xFFFFFFFF]:
                for byte in i.to_bytes(4, "little"):
                    h = (h ^ byte) * 0x100000001B3 & (2**64 - 1)
        out.append(f"{h:016x}")
    return out


def alphabet():
    """Byte -> character of the byte-level alphabet."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(0x100 + i) for i, b in enumerate(others)}}


def spm_merges(vocab, scores):
    """The merge list that gives a SentencePiece vocabulary's segmentation: every way to make a token, best score first."""
    merges = []
    for token, score in zip(vocab, scores):
        pairs = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in vocab and token[i:] in vocab]
        merges += [(score, pair) for pair in sorted(pairs, key=lambda p: (vocab[p[0]], vocab[p[1]]))]
    return [pair for _, pair in sorted(merges, key=lambda m: -m[0])]


def from_gguf(path):
    """The model's tokenizer put together as its published tokenizer.json is, and the bytes of its tokens."""
    from gguf import GGUFReader
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    fields = GGUFReader(path).fields

    def get(key):
        return fields["tokenizer.ggml." + key].contents() if "tokenizer.ggml." + key in fields else None

    tokens, types, pre = get("tokens"), get("token_type"), get("pre")
    if get("model") == "gpt2":
        vocab = {t: i for i, t in enumerate(tokens)}
        t = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(m.split(" ")) for m in get("merges")]))
        by_byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre == "smollm")
        if pre == "smollm":
            first = pre_tokenizers.Digits(individual_digits=True)
        else:
            assert pre == "qwen2"
            t.normalizer = normalizers.NFC()
            words = (
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            )
            first = pre_tokenizers.Split(Regex(words), "isolated")
        t.pre_tokenizer = pre_tokenizers.Sequence([first, by_byte])
        back = {c: b for b, c in alphabet().items()}
        pieces = [bytes(back[c] for c in t) if kind == 1 else None for t, kind in zip(tokens, types)]
    else:
        # Control tokens are made by no text, so they take part in no merge.
        vocab = {t: i for i, t in enumerate(tokens)}
        mergeable = {t: i for t, i in vocab.items() if types[i] in (1, 4, 5)}
        scores = get("scores")
        merges = spm_merges(mergeable, [scores[i] for i in mergeable.values()])
        t = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        t.normalizer = normalizers.Replace(" ", "\u2581")
        assert get("add_space_prefix") is False
        pieces = [t.replace("\u2581", " ").encode() if kind == 1 else None for t, kind in zip(tokens, types)]
    added = [(t, kind) for t, kind in zip(tokens, types) if kind in (2, 3, 4)]
    t.add_tokens([AddedToken(text, normalized=False, special=kind != 4) for text, kind in added])
    start = [get("bos_token_id")] if get("add_bos_token") else []
    return (lambda text: start + t.encode(text).ids), pieces


def small_spm(corpus):
    """A byte-fallback BPE like that of Llama 2, with its decoder; trained on `corpus`."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    fallback = [f"<0x{b:02X}>" for b in range(256)]
    t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>", "<s>", "</s>", *fallback], show_progress=False))
    made = json.loads(t.to_str())
    # Byte tokens are found by fallback, not in the text.
    made["added_tokens"] = made["added_tokens"][:3]
    t = Tokenizer.from_str(json.dumps(made))
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    t.decoder = decoders.Sequence(parts)
    return t


def tokens(folder):
    out = {"texts": TEXTS, "models": []}
    fixed = {"bytes": random_bytes(), "chars": random_chars()}
    for name in FILES:
        encode, pieces = from_gguf(Path(folder) / name)
        sets = {**fixed, "tokens": random_tokens(pieces)}
        made = {key: hashes(encode, texts) for key, texts in sets.items()}
        out["models"].append({"file": name, "texts": [encode(text) for text in TEXTS], **made})
        print(name, {key: len(value) for key, value in made.items()})
    small = small_spm([text for text in TEXTS if len(set(text)) > 3] * 3)
    (OUT / "spm").mkdir(parents=True, exist_ok=True)
    small.save(str(OUT / "spm/tokenizer.json"), pretty=False)
    about = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    (OUT / "spm/tokenizer_config.json").write_text(json.dumps(about) + "\n")
    encode = lambda text: small.encode(text).ids  # noqa: E731
    out["spm"] = {
        "texts": [encode(text) for text in TEXTS],
        "decoded": [small.decode(encode(text)) for text in TEXTS],
        **{key: hashes(encode, texts) for key, texts in fixed.items()},
    }
    (OUT / "tokens.json").write_text(json.dumps(out, separators=(",", ":")) + "\n")


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather <now> & later, at a \"place\" – it's free",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Städte, 都市"},
                    "days": {"type": "integer", "enum": [1, 3, 7], "default": 1},
                    "scale": {"type": ["string", "null"]},
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}},
]
CALL = {"id": "call12345", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 3, "x": 1.0, "n": None, "b": True}}}


def m(role, content, **more):
    return {"role": role, "content": content, **more}


CONVERSATIONS = {
    "one": {"messages": [m("user", "Hi")]},
    "system": {"messages": [m("system", "Be <brief> & 'kind'."), m("user", "Why is the sky blue?")]},
    "turns": {
        "messages": [
            m("system", "  Grüße 🌍  "), m("user", "  你好\n\n{{ x }} {% y %}  "), m("assistant", "  Hallo \"Welt\"\n"),
            m("user", "More?"), m("assistant", "<think>\nhm\n</think>\n\nYes."), m("user", "And then?\t"),
        ]
    },
    "ends": {"messages": [m("user", "a"), m("assistant", "b\n")]},
    "tools": {"messages": [m("system", "Use tools."), m("user", "Weather?")], "tools": TOOLS},
    "tools_only": {"messages": [m("user", "Weather?")], "tools": TOOLS[:1]},
    "calls": {
        "messages": [
            m("user", "Weather?"), m("assistant", "", tool_calls=[CALL]),
            m("tool", "{\"t\": 21.5}", name="get_weather", tool_call_id="call12345"), m("assistant", "21.5 °C."), m("user", "Thanks"),
        ],
        "tools": TOOLS,
    },
    "calls_null": {
        "messages": [
            m("user", "Weather?"), m("assistant", None, tool_calls=[CALL, {**CALL, "id": "call67890"}]),
            m("tool", "one", name="get_weather", tool_call_id="call12345"), m("tool", "two", name="get_weather", tool_call_id="call67890"),
        ],
        "tools": TOOLS,
    },
    "reasoning": {"messages": [m("user", "1+1"), m("assistant", "2", reasoning_content="one\nand one"), m("user", "and 3?")]},
    "no_thinking": {"messages": [m("user", "Hi /no_think")], "arguments": {"enable_thinking": False}},
    "thinking": {"messages": [m("system", "s"), m("user", "Hi")], "arguments": {"enable_thinking": True}},
    "parts": {"messages": [m("user", [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}])]},
    "twice_user": {"messages": [m("user", "a"), m("user", "b")]},
    "assistant_first": {"messages": [m("assistant", "a"), m("user", "b")]},
    "late_system": {"messages": [m("user", "a"), m("system", "s"), m("user", "b")]},
    "empty": {"messages": []},
}  # fmt: skip

# Constructs of Jinja2 that templates use and that other engines tend to get wrong.
OWN = {
    "constructs": """{%- set ns = namespace(n=0, last=none) -%}
{# a comment #}
{%- macro show(x, sep=', ') -%}
    {{- x | join(sep) -}}
{%- endmacro -%}
{%- for message in messages %}
    {%- if loop.first and message.role == 'system' -%}{%- continue -%}{%- endif %}
    {%- set ns.n = ns.n + 1 %}
    {{- '%s|%d|%5.2f|%%' % (message['role'] | upper, ns.n, 1.5 * ns.n) }}
  {{ "[%s]" % message.role.title() }}
    {% generation %}
    {{ message.content if message.content is string else message.content | tojson }}
    {% endgeneration %}
    {%- if message.tool_calls is defined and message.tool_calls %}
        {%- for call in message.tool_calls %}
{{ call.function.arguments | tojson(indent=2) }}
{{ call.function.arguments }} {{ call.function.arguments.items() | list | length }}
{{ call.function | tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}
            {%- for key, value in call.function.arguments | dictsort %}{{ key ~ '=' ~ value | string }};{% endfor %}
        {%- endfor %}
    {%- endif %}
{{ loop.index0 }}/{{ loop.length }} {{ loop.last }} {{ loop.previtem.role if loop.previtem is defined else '-' }}
{%- endfor %}
{{ [1, 2.0, 'x', none, true, {'a': 'it\\'s'}] }} {{ none }} {{ true }} {{ 7 // 2 }} {{ 7 / 2 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ 1e20 }} {{ 0.1 + 0.2 }}
{{ show(['a', 'b']) }} {{ show('abc', '-') }} {{ undefined_thing }}|{{ undefined_thing is defined }}
{{ 'a-b-c'.split('-')[-1] }} {{ ' x '.strip() }} {{ 'abc'[::-1] }} {{ 'abc'[1:] }} {{ 'xay'.replace('a', '') }} {{ 'ab'.startswith('a') }}
{{ messages[0] is mapping }} {{ messages is sequence }} {{ 'x' is sequence }} {{ 'x' is iterable }} {{ messages[0].get('role', '?') }} {{ messages[0].get('nope') }}
{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages[-1:] | length }}
{{ 'a' in 'abc' }} {{ 'role' in messages[0] }} {{ 3 in [1, 2, 3] }} {{ not false and (true or false) }} {{ 'yes' if messages else 'no' }}
{{ tools | tojson if tools else 'no tools' }} {{ 'a\\nb' | indent(4) }} {{ '<&>' | e }} {{ 'x' * 3 }} {{ [1] + [2] }} {{ (1, 2)[0] }}
{{ strftime_now('%d %b %Y %H:%M') }} {{ range(3) | list }} {{ dict(a=1) }} {{ 'A' | lower | capitalize }} {{ '  t ' | trim }} {{ [3, 1, 2] | sort | first }}
{%- if add_generation_prompt %}{{ bos_token + 'assistant' + eos_token }}{% endif %}
""",
    "strict_turns": """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate, got "' + message['role'] + '"') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}""",
    "headers": """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{{- "<|start|>system<|end|>\\n\\nToday: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message + "<|eot|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '<|end|>\\n\\n'+ message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("Only one call at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' + tool_call.arguments | tojson + "}<|eot|>" }}
    {%- elif message.content is mapping or message.content is iterable and message.content is not string %}
        {{- message.content | tojson }}
    {%- else %}
        {{- "<|start|>ipython<|end|>\\n\\n" + message.content + "<|eot|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
""",
}


def chat(folder):
    from jinja2.exceptions import TemplateError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    templates = {**OWN, **{path.stem: path.read_text() for path in sorted(Path(folder).glob("*.jinja"))}}
    now = datetime(2026, 1, 2, 3, 4, 5)
    (OUT / "chat").mkdir(parents=True, exist_ok=True)
    (OUT / "conversations.json").write_text(json.dumps(CONVERSATIONS, ensure_ascii=False, indent=1) + "\n")
    for name, source in templates.items():
        compiled = _compile_jinja_template(source)
        compiled.globals["strftime_now"] = now.strftime
        cases = []
        for title, conversation in CONVERSATIONS.items():
            for prompt in (False, True):
                case = {"name": title, "add_generation_prompt": prompt}
                variables = {"messages": conversation["messages"], "tools": conversation.get("tools"), "documents": None}
                variables |= {"add_generation_prompt": prompt, "bos_token": "<s>", "eos_token": "</s>", **conversation.get("arguments", {})}
                try:
                    case["text"] = compiled.render(**variables)
                except TemplateError as error:
                    # Only what the template itself raises is a contract; the rest are messages of Jinja2.
                    if type(error) is not TemplateError:
                        continue
                    case["refused"] = error.message
                except Exception:
                    continue
                cases.append(case)
        golden = {"template": source, "tokens": {"bos_token": "<s>", "eos_token": "</s>"}, "now_s": 1767323045, "cases": cases}
        (OUT / "chat" / f"{name}.json").write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n")
        print(name, len(cases))


if __name__ == "__main__":
    {"tokens": tokens, "chat": chat}[sys.argv[1]](sys.argv[2])
