"""Tokenizers with a few hundred tokens, in the files that `transformers` reads offline."""

import json
from pathlib import Path
from typing import Any

#: Every tiny text encoder has an embedding of this many rows.
VOCABULARY = 512


def write_clip(path: Path) -> None:
    """A byte-level BPE without merges that marks the end of a word, as CLIP's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    start, end = "<|startoftext|>", "<|endoftext|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    room = VOCABULARY - 2 - len(alphabet)
    vocabulary = _numbered([*alphabet, *(letter + "</w>" for letter in alphabet[:room]), start, end])
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=end, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = {"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": end}
    _save(path, tokenizer, [start, end], vocabulary, tokenizer_class="CLIPTokenizer", model_max_length=77, **special)


def write_t5(path: Path) -> None:
    """A unigram model of single ASCII letters that ends every text with `</s>`, as T5's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pad, end, unknown = "<pad>", "</s>", "<unk>"
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    pieces = [pad, end, unknown, "\N{LOWER ONE EIGHTH BLOCK}", *letters]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(rank)) for rank, piece in enumerate(pieces)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 1)])
    special = {"eos_token": end, "pad_token": pad, "unk_token": unknown, "extra_ids": 0}
    _save(path, tokenizer, [], None, tokenizer_class="T5Tokenizer", model_max_length=512, **special)


def write_qwen(path: Path) -> None:
    """A byte-level BPE without merges and with a chat template, as Qwen's has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = _numbered([*sorted(pre_tokenizers.ByteLevel.alphabet()), *special])
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    _save(
        path,
        tokenizer,
        special,
        vocabulary,
        tokenizer_class="Qwen2Tokenizer",
        model_max_length=4096,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        add_prefix_space=False,
        chat_template=template,
    )


def _numbered(tokens: list[str]) -> dict[str, int]:
    assert len(tokens) <= VOCABULARY
    return {token: number for number, token in enumerate(tokens)}


def _save(path: Path, tokenizer: Any, special: list[str], vocabulary: dict[str, int] | None, **config: Any) -> None:
    from tokenizers import AddedToken

    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    if vocabulary is not None:
        (path / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        (path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
