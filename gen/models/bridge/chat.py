"""Language models as text encoders: a prompt in the words of a chat, and hidden states of the layers that a network reads.

Chats are written here, not by the template of a tokenizer's file, which is a program. Tokens are (1, L, D), masks (1, L).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gen.models.bridge.load import device_of
from gen.models.bridge.prompts import PromptReader, warn_unread
from gen.nn.prompt_weights import token_weights, weighted
from samplers.denoiser import Condition

QWEN_USER, QWEN_ANSWER = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
NO_THOUGHT = "<think>\n\n</think>\n\n"  # where Qwen 3 is to answer at once


@dataclass(frozen=True)
class Chat:
    """How a prompt is written and what is read of it.

    before, after: what stands around the prompt.
    length: tokens that are read, `before` and `after` among them; what is beyond is cut off.
    end: text that follows the cut, so that it is always read.
    drop: tokens at the beginning that are left out of what is read.
    keep: tokens that are kept after that, at most; None for all.
    layers: whose hidden states are read, side by side in one feature; 0 is the embedding, -1 the last with its norm.
    padded: up to `length`, with padding that the network reads too.
    without: a word that is taken out of prompts, as it has a meaning of its own in the chat.
    """

    before: str
    after: str
    length: int
    end: str = ""
    drop: int = 0
    keep: int | None = None
    layers: Sequence[int] = (-1,)
    padded: bool = False
    without: str = ""


class ChatReader(PromptReader):
    """Prompts through a language model of transformers. A word's weight multiplies the features of its tokens."""

    encoder: Any  # of transformers

    def __init__(self, tokenizer: Any, encoder: nn.Module, chat: Chat):
        super().__init__()
        self.tokenizer, self.encoder, self.chat = tokenizer, encoder, chat

    def condition(self, prompt: str, negative: bool = False) -> Condition:
        tokens, mask = self.read(prompt)
        return Condition(tokens=tokens, mask=mask)

    def read(self, prompt: str) -> tuple[Tensor, Tensor]:
        """(tokens (1, L, layers D), mask (1, L), True = a real token, or padding that is read too)."""
        chat = self.chat
        plain, weights = weighted(prompt.replace(chat.without, "") if chat.without else prompt)
        text, start = chat.before + plain + chat.after, len(chat.before)
        read = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets = read["input_ids"][: chat.length], [(a - start, b - start) for a, b in read["offset_mapping"]]
        kept = min(chat.length, len(ids) if chat.keep is None else chat.drop + chat.keep)
        if unread := [begin for begin, _ in offsets[kept:] if 0 <= begin < len(plain)]:
            warn_unread(plain[unread[0] :], f"{kept - chat.drop} tokens that the text encoder reads")
        scale = token_weights(plain, weights, [_inside(begin, end, len(plain)) for begin, end in offsets[: chat.length]])
        if chat.end:
            end = self.tokenizer(chat.end, add_special_tokens=False)["input_ids"]
            ids, scale = ids + end, scale + [1.0] * len(end)
        missing = max(chat.length - len(ids), 0) if chat.padded else 0
        padding, ones, real = [self.tokenizer.pad_token_id] * missing, [1.0] * missing, [True] * len(ids)
        if self.tokenizer.padding_side == "left":
            ids, scale, real = padding + ids, ones + scale, [False] * missing + real
        else:
            ids, scale, real = ids + padding, scale + ones, real + [False] * missing
        device = device_of(self.encoder)
        given = {"input_ids": torch.tensor([ids], device=device), "attention_mask": torch.tensor([real], device=device).long()}
        states = self.encoder(**given, output_hidden_states=True, use_cache=False).hidden_states
        tokens = torch.cat([states[layer] for layer in chat.layers], dim=-1)
        if any(weight != 1 for weight in scale):
            tokens = tokens * torch.tensor(scale, device=device, dtype=tokens.dtype)[None, :, None]
        tokens = tokens[:, chat.drop :]
        tokens = tokens if chat.keep is None else tokens[:, : chat.keep]
        return tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool)


def _inside(begin: int, end: int, length: int) -> tuple[int, int]:
    """The part of a token's characters that are the prompt's; (0, 0) for one of the chat's."""
    return (max(begin, 0), min(end, length)) if begin < length and end > 0 else (0, 0)
