"""Builds a small tokenizer with exactly Qwen2's structure.

Byte-level BPE: NFC, Qwen2's split pattern, ids 0..255 are the bytes in GPT-2's order, merge i makes id 256+i without
exception, and the three special tokens come last. A trained merge is left out when its token exists already or when it
would glue punctuation to the letters behind it: a code word must have the same tokens after a quote, a bracket or a
line break, since the model answers by copying tokens.
"""

import json
import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import filler
from recall import recall_conversation
from tasks import MIX, short
from words import NOUNS

PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = 2000

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_characters():
    """GPT-2's 256 byte characters in Qwen2's id order: printable bytes first, then the others as U+0100 onwards."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def corpus():
    rng = random.Random(1)
    for _ in range(3):
        yield from filler.PROSE_PARAGRAPHS
    for _ in range(4000):
        yield filler.templated_sentence(rng)
    for _ in range(300):
        yield filler.lorem_sentence(rng)
    for _ in range(12):
        yield " ".join(rng.sample(NOUNS, len(NOUNS)))
    for _ in range(12000):
        turn = short(rng)
        yield turn.user
        yield turn.text
    for _ in range(1500):
        _, turns = recall_conversation(rng, 20)
        for turn in turns:
            yield turn.user
            yield turn.text
    for task in MIX:
        for _ in range(150):
            yield task(rng).text
    yield "\n".join(["system", "user", "assistant"] * 200)


def structure(model):
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
    ])
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    return tokenizer


def keep(a, b):
    joined = a + b
    first, rest = joined[0], joined[1:]
    return first == "Ġ" or not (first.isascii() and not first.isalnum() and any(c.isalpha() for c in rest))


def build(folder: Path):
    draft = structure(models.BPE())
    draft.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=256 + MERGES + 400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, max_token_length=24))
    characters = byte_characters()
    vocab = {c: i for i, c in enumerate(characters)}
    merges = []
    for a, b in json.loads(draft.to_str())["model"]["merges"]:
        if a in vocab and b in vocab and a + b not in vocab and keep(a, b) and len(merges) < MERGES:
            vocab[a + b] = 256 + len(merges)
            merges.append((a, b))
    assert len(merges) == MERGES, len(merges)

    tokenizer = structure(models.BPE(vocab=vocab, merges=merges, byte_fallback=False, fuse_unk=False, continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.add_special_tokens(list(SPECIAL))
    folder.mkdir(parents=True, exist_ok=True)
    form = json.loads(tokenizer.to_str())
    form["model"]["merges"] = [f"{a} {b}" for a, b in merges]  # as Qwen2's own file has them
    (folder / "tokenizer.json").write_text(json.dumps(form, ensure_ascii=False, indent=1) + "\n")
    first = 256 + MERGES
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(first + i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
            for i, t in enumerate(SPECIAL)},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 8192,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return tokenizer
