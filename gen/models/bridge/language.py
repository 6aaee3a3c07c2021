"""Language models as text encoders: a prompt as it stands, with the special tokens of its tokenizer, and hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gen.models.bridge.load import device_of
from gen.models.bridge.prompts import warn_unread
from gen.nn.prompt_weights import token_weights, weighted


class Language(nn.Module):
    """A language model of transformers that reads up to `length` tokens, padded on its tokenizer's own side.

    multiple: the length is brought to a multiple of it, not to `length`.
    masked: the model does not see the padding.
    """

    encoder: Any  # of transformers

    def __init__(self, tokenizer: Any, encoder: nn.Module, length: int, multiple: int = 0, masked: bool = True):
        super().__init__()
        self.tokenizer, self.encoder, self.length = tokenizer, encoder, length
        self.multiple, self.masked = multiple, masked

    def read(
        self, prompt: str, layers: Sequence[int], before: str = "", length: int | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """(hidden states (1, L, D) of each layer, mask (1, L), True = no padding). A word's weight multiplies the features of
        its tokens.

        layers: 0 is the embedding, -1 the last with its norm.
        before: text in front of the prompt, without weights.
        length: tokens that are read at most, its own number if None.
        """
        length = self.length if length is None else length
        plain, weights = weighted(prompt)
        read = self.tokenizer(before + plain, truncation=True, max_length=length, return_offsets_mapping=True, verbose=False)
        ids, offsets = read["input_ids"], [(a - len(before), b - len(before)) for a, b in read["offset_mapping"]]
        end = max(max((end for _, end in offsets), default=0), 0)
        if len(ids) == length and plain[end:].strip():
            warn_unread(plain[end:], f"{length} tokens that the text encoder reads")
        scale = token_weights(plain, weights, [(max(begin, 0), end) if end > 0 else (0, 0) for begin, end in offsets])
        missing = -len(ids) % self.multiple if self.multiple else length - len(ids)
        padding, ones, hidden = [self.tokenizer.pad_token_id] * missing, [1.0] * missing, [False] * missing
        real = [True] * len(ids)
        if self.tokenizer.padding_side == "left":
            ids, scale, real = padding + ids, ones + scale, hidden + real
        else:
            ids, scale, real = ids + padding, scale + ones, real + hidden
        device = device_of(self.encoder)
        mask = torch.tensor([real], device=device)
        out = self.encoder(
            input_ids=torch.tensor([ids], device=device),
            attention_mask=mask.long() if self.masked else None,
            output_hidden_states=True,
            use_cache=False,
        )
        states = [out.hidden_states[layer] for layer in layers]
        if any(weight != 1 for weight in scale):
            states = [state * torch.tensor(scale, device=device, dtype=state.dtype)[None, :, None] for state in states]
        return states, mask
