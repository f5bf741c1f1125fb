"""A small tokenizer for the tiny model, with the special ids of Llama's at their places.

Every word of the LIBERO prompts is one token; anything else is split into shorter pieces and finally into bytes
(`<0x00>`.. at ids 3..258, as in Llama), so that no text is lost and equal texts give equal ids.
"""

from __future__ import annotations

import json

from tokenizers import Tokenizer

from vla_rl.policies.openvla_oft.config import BOS_ID, LONE_SPACE_ID, PAD_ID, STOP_ID

SPACE = "▁"  # stands for a space in front of a word
_FIRST_BYTE_ID = 3
_NUM_BYTES = 256
_PROMPT_WORDS = "In: What action should the robot take to"
_LIBERO_WORDS = """
alphabet and at back basket bbq between black book both bottle bottom bowl box butter cabinet caddy center cheese
chocolate close compartment cookie cream drawer dressing from front frying in inside it juice ketchup left microwave
middle milk moka mug next of off on open orange pan pick place plate pot pots pudding push put rack ramekin red right
salad sauce shelf soup stack stove table the them to tomato top tray turn under up white wine wooden yellow
"""


def tiny_tokenizer() -> Tokenizer:
    """Return the tokenizer, ready to use."""
    return Tokenizer.from_str(tiny_tokenizer_json())


def tiny_tokenizer_json() -> str:
    """Return the content of its `tokenizer.json`."""
    vocabulary, merges = _vocabulary_and_merges()
    byte_pair_encoding = {
        "type": "BPE",
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": vocabulary,
        "merges": merges,
    }
    special = {"<unk>": 0, "<s>": BOS_ID, "</s>": STOP_ID, "<PAD>": PAD_ID}
    document = {
        "version": "1.0",
        "added_tokens": [_added_token(content, token_id) for content, token_id in special.items()],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS_ID], "tokens": ["<s>"]}},
        },
        "model": byte_pair_encoding,
    }
    return json.dumps(document, ensure_ascii=False)


def _vocabulary_and_merges() -> tuple[dict[str, int], list[list[str]]]:
    """Return vocabulary and merges, one merge per prefix of a word.

    The left part of every merge is a prefix that starts with the space mark, so that no two merges compete for a letter
    and a word is always built from its start.
    """
    vocabulary = {"<unk>": 0, "<s>": BOS_ID, "</s>": STOP_ID, SPACE: LONE_SPACE_ID, "<PAD>": PAD_ID}
    vocabulary |= {f"<0x{byte:02X}>": _FIRST_BYTE_ID + byte for byte in range(_NUM_BYTES)}
    words = [SPACE + word for word in sorted({*_LIBERO_WORDS.split(), *_PROMPT_WORDS.replace(":", "").split()})]
    letters = sorted({letter for word in words for letter in word[1:]} | set(":?Out"))
    prefixes = sorted(
        {word[:end] for word in words for end in range(2, len(word) + 1)}, key=lambda text: (len(text), text)
    )
    for token_id, piece in enumerate((*letters, *prefixes), start=_FIRST_BYTE_ID + _NUM_BYTES):
        vocabulary[piece] = token_id
    return vocabulary, [[prefix[:-1], prefix[-1]] for prefix in prefixes]


def _added_token(content: str, token_id: int) -> dict[str, object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": content, **flags}
