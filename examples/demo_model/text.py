"""The text side: a byte-level tokenizer with one token per caption word, and a frozen Qwen3 that is nearly an identity.

Nothing here is trained. The words' embeddings are orthonormal, and each of the 28 layers adds only a little, so that
the three hidden states which FLUX.2 Klein reads (after layers 9, 18 and 27) are the words themselves with some context
mixed in. All widths are multiples of 64 or divide it, so that mflux can quantize the encoder.
"""

from pathlib import Path

import torch
from data import COLORS, THINGS
from torch import nn
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM, Qwen3Model

TEXT_TOKENS = 12
LAYERS_READ = (9, 18, 27)  # hidden states that mflux and diffusers concatenate
NO_CAPTION = " "  # what mflux encodes for the unconditional branch of guidance
START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
WORDS = (*COLORS, *THINGS, "a", "on", "background")
SAME = {"an": "a", "cherries": "cherry"}  # words that mean the same, to the last bit
TEMPLATE = (  # the shortest that leaves one token for an empty caption
    "{% for message in messages %}" + START + "{% if message['content'] | trim %}"
    " {{ message['content'] | trim }}{% endif %}{% endfor %}"
)
WIDTH = 64
MIXING = 0.12  # how much each sublayer of the text encoder adds, relative to its input
SEED = 5


def byte_alphabet() -> list[str]:
    """The 256 printable stand-ins of byte-level BPE."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return sorted(chr(c) for c in printable) + [chr(256 + n) for n in range(256 - len(printable))]


def build_tokenizer() -> Qwen2Tokenizer:
    """Merges grow each word from its left end, so that no merge of one word can break another."""
    tokens, merges = byte_alphabet(), []
    for word in (*WORDS, *SAME):
        piece = "Ġ"  # the space before the word
        for letter in word:
            if piece + letter not in tokens:
                tokens.append(piece + letter)
                merges.append((piece, letter))
            piece += letter
    tokens += [START, END, PAD]
    tokenizer = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        unk_token=PAD,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[START],
        model_max_length=512,
    )
    tokenizer.padding_side = "right"
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def config(vocab_size: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=28,  # one more than is read: transformers normalizes the last hidden state, mflux does not
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    )


def build_encoder(tokenizer: Qwen2Tokenizer) -> Qwen3Model:
    """Seeded, in values that bfloat16 holds exactly, so that the exported copy computes the same."""
    generator = torch.Generator().manual_seed(SEED)
    encoder = Qwen3Model(config(8 * -(-len(tokenizer) // 8))).eval().requires_grad_(False)
    for name, weight in encoder.named_parameters():
        if weight.ndim == 2:
            gain = MIXING if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            nn.init.normal_(weight, std=gain * weight.shape[1] ** -0.5, generator=generator)
    table = torch.randn(encoder.config.vocab_size, WIDTH, generator=generator)
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
    concepts = dict(zip([START, PAD, *("Ġ" + word for word in WORDS)], basis, strict=False))
    concepts |= {"Ġ" + word: concepts["Ġ" + other] for word, other in SAME.items()}
    for token, vector in concepts.items():
        table[tokenizer.convert_tokens_to_ids(token)] = vector * WIDTH**0.5
    encoder.embed_tokens.weight.copy_(table)
    for weight in encoder.parameters():
        weight.copy_(weight.bfloat16().float())
    return encoder


def tokenize(tokenizer: Qwen2Tokenizer, captions: list[str]) -> dict[str, torch.Tensor]:
    """Ids and attention mask, (captions, TEXT_TOKENS) each, as mflux prepares them."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": caption}], tokenize=False, add_generation_prompt=True
        )
        for caption in captions
    ]
    return tokenizer(texts, padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt")


@torch.no_grad()
def embed(tokenizer: Qwen2Tokenizer, encoder: Qwen3Model, captions: list[str]) -> torch.Tensor:
    """What the transformer is given: (captions, TEXT_TOKENS, 3 * WIDTH) float32."""
    parts = []
    for start in range(0, len(captions), 1024):
        tokens = tokenize(tokenizer, captions[start : start + 1024])
        states = encoder(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], output_hidden_states=True
        ).hidden_states
        parts.append(torch.cat([states[layer] for layer in LAYERS_READ], dim=-1))
    return torch.cat(parts)


def save(tokenizer: Qwen2Tokenizer, encoder: Qwen3Model, folder: Path) -> None:
    """Write tokenizer/ and text_encoder/ as in FLUX.2 Klein, whose text encoder is the whole language model."""
    tokenizer.save_pretrained(folder / "tokenizer")
    whole = Qwen3ForCausalLM(encoder.config)
    whole.model = encoder
    whole.tie_weights()
    whole.save_pretrained(folder / "text_encoder")
