"""Language models as text encoders: a prompt in the words of a chat, and hidden states of the layers that a network reads.

Chats are written here, not by the template of a tokenizer's file, which is a program. Tokens are (1, L, D), masks (1, L).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gen.models.bridge.load import device_of
from gen.models.bridge.prompts import PromptReader, warn_unread
from gen.models.prompt_reading import USUAL, Reading, SeenPicture
from gen.nn.backbones.editing import sides_of
from gen.nn.prompt_weights import token_weights, weighted
from samplers.denoiser import Condition

QWEN_USER, QWEN_ANSWER = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
NO_THOUGHT = "<think>\n\n</think>\n\n"  # where Qwen 3 is to answer at once
IMAGE = "<|image_pad|>"  # stands for every token of a picture
QWEN_PICTURE = f"<|vision_start|>{IMAGE}<|vision_end|>"
USUAL_LENGTH = 512  # of prompts, in every family


@dataclass(frozen=True)
class Chat:
    """How a prompt is written and what is read of it.

    before, after: what stands around the prompt.
    length: tokens that are read, `before` and `after` among them; what is beyond is cut off.
    end: text that follows the cut, so that it is always read.
    drop: tokens at the beginning that are left out of what is read.
    keep: tokens that are kept after that, at most; None for all.
    layers: whose hidden states are read, side by side in one feature; 0 is the embedding, -1 the last with its norm.
    normed: the last hidden states with their norm; else, in the place of `layers`, those before it.
    empty: what is read in the place of an empty prompt.
    padded: up to `length`, with padding that the network reads too.
    without: a word that is taken out of prompts, as it has a meaning of its own in the chat.
    picture: what stands before the prompt for each picture, {} being its number; "" for a chat without.
    area: pixels that a picture is brought to.
    """

    before: str
    after: str
    length: int
    end: str = ""
    drop: int = 0
    keep: int | None = None
    layers: Sequence[int] = (-1,)
    normed: bool = True
    empty: str = ""
    padded: bool = False
    without: str = ""
    picture: str = ""
    area: int = 384 * 384

    def limited(self, length: int | None) -> Chat:
        """With another number of tokens in the place of USUAL_LENGTH."""
        if length is None:
            return self
        if self.keep is not None:
            return replace(self, keep=length)
        return replace(self, length=self.length + length - USUAL_LENGTH)


class ChatReader(PromptReader):
    """Prompts through a language model of transformers. A word's weight multiplies the features of its tokens.

    sees: pictures are read with the words.
    """

    encoder: Any  # of transformers
    varies = True

    def __init__(self, tokenizer: Any, encoder: nn.Module, chat: Chat):
        super().__init__()
        self.tokenizer, self.encoder, self.chat = tokenizer, encoder, chat
        config = getattr(self.encoder.config, "text_config", self.encoder.config)
        if max(chat.layers) > config.num_hidden_layers:
            raise ValueError(
                f"the network reads hidden states of layer {max(chat.layers)} of a language model that has "
                f"{config.num_hidden_layers}."
            )
        self.sees = bool(chat.picture)
        if self.sees:
            _picture_processor()  # refused at opening, not at the first picture
        self.takes = ("max_sequence_length",) if chat.length < 8192 else ()

    def condition(self, prompt: str, negative: bool = False, reading: Reading = USUAL) -> Condition:
        tokens, mask = self.read(prompt, reading.max_sequence_length, reading.pictures or ())
        return Condition(tokens=tokens, mask=mask)

    def read(self, prompt: str, length: int | None = None, pictures: Sequence[SeenPicture] = ()) -> tuple[Tensor, Tensor]:
        """(tokens (1, L, layers D), mask (1, L), True = a real token, or padding that is read too).

        length: tokens of the prompt, in the place of the chat's own.
        """
        chat = self.chat.limited(length)
        before = chat.before + "".join(chat.picture.format(k + 1) for k in range(len(pictures)))
        ids, scale = self._tokens(prompt or chat.empty, replace(chat, before=before))
        shown, counts = self._pictures(pictures)
        ids, scale = self._spread(ids, scale, counts)
        missing = max(chat.length - len(ids), 0) if chat.padded else 0
        padding, ones, real = [self.tokenizer.pad_token_id] * missing, [1.0] * missing, [True] * len(ids)
        if self.tokenizer.padding_side == "left":
            ids, scale, real = padding + ids, ones + scale, [False] * missing + real
        else:
            ids, scale, real = ids + padding, scale + ones, real + [False] * missing
        device = device_of(self.encoder)
        given = {"input_ids": torch.tensor([ids], device=device), "attention_mask": torch.tensor([real], device=device).long()}
        if chat.normed:
            states = self.encoder(**given, **shown, output_hidden_states=True, use_cache=False).hidden_states
            tokens = torch.cat([states[layer] for layer in chat.layers], dim=-1)
        else:
            tokens = self._before_norm({**given, **shown})
        if any(weight != 1 for weight in scale):
            tokens = tokens * torch.tensor(scale, device=device, dtype=tokens.dtype)[None, :, None]
        tokens = tokens[:, chat.drop :]
        tokens = tokens if chat.keep is None else tokens[:, : chat.keep]
        return tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool)

    def seen_size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that a picture of these sides is seen at."""
        return sides_of(self.chat.area, height, width)

    def _before_norm(self, given: Mapping[str, Tensor]) -> Tensor:
        """The last hidden states, as the last norm gets them."""
        kept: list[Tensor] = []
        model = getattr(self.encoder, "language_model", self.encoder)
        handle = model.norm.register_forward_hook(lambda module, arguments, output: kept.append(arguments[0]))
        try:
            self.encoder(**given, use_cache=False)
        finally:
            handle.remove()
        return kept[0]

    def _tokens(self, prompt: str, chat: Chat) -> tuple[list[int], list[float]]:
        """(ids, weights) of a prompt in its chat, cut where that is too long."""
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
        return ids, scale

    def _pictures(self, pictures: Sequence[SeenPicture]) -> tuple[dict[str, Tensor], list[int]]:
        """(arguments of the encoder, tokens of every picture)."""
        if not pictures:
            return {}, []
        vision = self.encoder.config.vision_config
        sizes = {"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size}
        processor = _picture_processor()(**sizes, temporal_patch_size=vision.temporal_patch_size)
        images = [(picture.pixels[0] * 255).round().to(torch.uint8).numpy() for picture in pictures]
        read = processor(images, input_data_format="channels_first", return_tensors="pt")
        counts = (read["image_grid_thw"].prod(1) // vision.spatial_merge_size**2).tolist()
        device = device_of(self.encoder)
        return {name: read[name].to(device) for name in ("pixel_values", "image_grid_thw")}, counts

    def _spread(self, ids: list[int], scale: list[float], counts: Sequence[int]) -> tuple[list[int], list[float]]:
        """With every picture's token as many times as it has tokens. ValueError where the words have such a token too."""
        if not self.sees:
            return ids, scale
        image, waiting = self.tokenizer.convert_tokens_to_ids(IMAGE), list(counts)
        if ids.count(image) != len(counts):
            raise ValueError(f"The prompt holds {IMAGE}, which stands for a picture; leave it out, and give pictures as image.")
        spread = [(one, weight, waiting.pop(0) if one == image else 1) for one, weight in zip(ids, scale, strict=True)]
        return [one for one, _, n in spread for _ in range(n)], [weight for _, weight, n in spread for _ in range(n)]


def _picture_processor() -> Any:
    """The class that cuts pictures for Qwen's eyes; ValueError where transformers has it not."""
    try:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    except ImportError as error:
        raise ValueError(
            f"its text encoder sees pictures, for which the installed transformers has no class ({error}); "
            "pip install -U transformers."
        ) from None
    return Qwen2VLImageProcessorPil


def _inside(begin: int, end: int, length: int) -> tuple[int, int]:
    """The part of a token's characters that are the prompt's; (0, 0) for one of the chat's."""
    return (max(begin, 0), min(end, length)) if begin < length and end > 0 else (0, 0)
