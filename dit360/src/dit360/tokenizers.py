"""Tokenizers of the tiny models: whole words for the captions, characters for anything else.

Published FLUX folders bring their own vocabularies; these are the same classes with a small one.
"""

import string
from typing import Any

from transformers import CLIPTokenizer, T5Tokenizer

from dit360.captions import DIRECTIONS, SHAPES, SKIES, SURFACE_COLORS, TRIGGER

SENTENCES = (
    TRIGGER,
    "A field under a sky. Outdoors, the ground is and the sky is.",
    "A room with walls and a floor. Indoors, the walls are and the floor is.",
    "There is a and an .",
)
CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation


def words() -> list[str]:
    """The lower-case words of the procedural captions, sorted."""
    text = " ".join((*SENTENCES, *SKIES, *SURFACE_COLORS, *SHAPES, *DIRECTIONS)).lower()
    kept = "".join(c if c.isalpha() else " " for c in text)
    return sorted({word for word in kept.split() if len(word) > 1})


def clip_tokenizer() -> CLIPTokenizer:
    """Byte-pair encoding whose merges build the words of the captions letter by letter."""
    tokens = [*CHARACTERS, *(f"{c}</w>" for c in CHARACTERS)]
    merges: dict[tuple[str, str], None] = {}
    for word in words():
        parts = [*word[:-1], f"{word[-1]}</w>"]
        grown = parts[0]
        for part in parts[1:]:
            merges[(grown, part)] = None
            grown += part
    tokens += ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    pairs: Any = list(merges)  # annotated as strings, which it reads too
    return CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    """Unigram model with a piece for every word; other text falls apart into characters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    known = ["a", *words()]
    pieces += [(f"▁{form}", -1.0) for word in known for form in (word, word.capitalize())]
    pieces += [(c, -8.0) for c in string.ascii_letters + string.digits + string.punctuation]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
