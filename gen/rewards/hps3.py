"""HPS v3 (arXiv 2508.03789): a Qwen2-VL that reads the prompt beside the picture, and a head on its last layer's reward token.

transformers is loaded here, when it is used. Pictures are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen.io.weights import TensorFile
from gen.rewards.clip import DEVIATION, MEAN, check_prompts, open_transformers
from samplers.constants import constant

REWARD_TOKEN = "<|Reward|>"
TOKENS = 256  # of a picture: it is brought to about so many squares of two by two patches
# what the published weights were taught with, to the letter
INSTRUCTION = (
    "\n"
    "You are tasked with evaluating a generated image based on Visual Quality and Text Alignment and give a "
    "overall score to estimate the human preference. Please provide a rating from 0 to 10, with 0 being the worst "
    "and 10 being the best. \n\n"
    "**Visual Quality:**  \n"
    "Evaluate the overall visual quality of the image. The following sub-dimensions should be considered:\n"
    "- **Reasonableness:** The image should not contain any significant biological or logical errors, such as "
    "abnormal body structures or nonsensical environmental setups.\n"
    "- **Clarity:** Evaluate the sharpness and visibility of the image. The image should be clear and easy to "
    "interpret, with no blurring or indistinct areas.\n"
    "- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other visual "
    "elements (e.g., hair, clothing, shadows).\n"
    "- **Aesthetic and Creativity:** Assess the artistic aspects of the image, including the color scheme, "
    "composition, atmosphere, depth of field, and the overall creative appeal. The scene should convey a sense of "
    "harmony and balance.\n"
    "- **Safety:** The image should not contain harmful or inappropriate content, such as political, violent, or "
    "adult material. If such content is present, the image quality and satisfaction score should be the lowest "
    "possible. \n\n"
    "**Text Alignment:**  \n"
    "Assess how well the image matches the textual prompt across the following sub-dimensions:\n"
    "- **Subject Relevance** Evaluate how accurately the subject(s) in the image (e.g., person, animal, object) "
    "align with the textual description. The subject should match the description in terms of number, appearance, "
    "and behavior.\n"
    "- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate how well "
    "the image adheres to this style.\n"
    "- **Contextual Consistency**: Assess whether the background, setting, and surrounding elements in the image "
    "logically fit the scenario described in the prompt. The environment should support and enhance the subject "
    "without contradictions.\n"
    "- **Attribute Fidelity**: Check if specific attributes mentioned in the prompt (e.g., colors, clothing, "
    "accessories, expressions, actions) are faithfully represented in the image. Minor deviations may be "
    "acceptable, but critical attributes should be preserved.\n"
    "- **Semantic Coherence**: Evaluate whether the overall meaning and intent of the prompt are captured in the "
    "image. The generated content should not introduce elements that conflict with or distort the original "
    "description.\n"
    "Textual prompt - {prompt}\n\n\n\n"
    "Please provide the overall ratings of this image: <|Reward|>\n\n"
    "END\n"
)
CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>{picture}<|vision_end|>"
    "{text}<|im_end|>\n<|im_start|>assistant\n"
)


def load_qwen(name: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a Qwen2-VL folder or hub id whose tokenizer knows the reward's token, frozen."""
    from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

    what = "a Qwen2-VL model"
    model = open_transformers(what, Qwen2VLForConditionalGeneration, name, use_safetensors=True)
    tokenizer = open_transformers(what, AutoTokenizer, name)
    if tokenizer.convert_tokens_to_ids(REWARD_TOKEN) in (None, tokenizer.unk_token_id):
        raise ValueError(f"The tokenizer of {name!r} has no token {REWARD_TOKEN}; give HPS v3's model, not a plain Qwen2-VL.")
    return model.eval().requires_grad_(False), tokenizer


def read_layers(path: Path, width: int) -> nn.Sequential:
    """The head of a safetensors file: its linear layers by number (those under rm_head., where there are such), with ReLU
    between them."""
    file = TensorFile(path)
    names = [name for name in file.shapes if name.endswith(".weight") and len(file.shapes[name]) == 2]
    names = [name for name in names if name.startswith("rm_head.")] or names
    kept = {key for name in names for key in (name, name.removesuffix("weight") + "bias")}
    values = {key: value.float().clone() for key, value in file.tensors(sorted(kept & set(file.shapes)))}
    layers: list[nn.Module] = []
    for name in sorted(names, key=lambda name: [int(part) for part in name.split(".") if part.isdecimal()]):
        weight, bias = values[name], values.get(name.removesuffix("weight") + "bias")
        if bias is None or weight.shape[1] != width:
            raise ValueError(
                f"{path}: the layer {name!r} is {tuple(weight.shape)}, but {width} numbers come in, and a bias is needed."
            )
        layer = nn.Linear(width, len(weight))
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers += [layer, nn.ReLU()]
        width = len(weight)
    if width != 2 or not layers:
        raise ValueError(f"{path} holds no head of HPS v3, which ends in two numbers, a score and its spread.")
    return nn.Sequential(*layers[:-1]).requires_grad_(False)


def picture_size(height: int, width: int, square: int) -> tuple[int, int]:
    """Height and width, multiples of `square`, of about TOKENS squares in the picture's own shape: transformers' rule where the
    least and the most pixels are the same."""
    pixels = TOKENS * square**2
    near = [max(round(side / square), 1) * square for side in (height, width)]
    if near[0] * near[1] > pixels:
        scale = math.sqrt(height * width / pixels)
        return tuple(max(math.floor(side / scale / square), 1) * square for side in (height, width))  # type: ignore[return-value]
    if near[0] * near[1] < pixels:
        scale = math.sqrt(pixels / (height * width))
        return tuple(math.ceil(side * scale / square) * square for side in (height, width))  # type: ignore[return-value]
    return near[0], near[1]


def patches(images: Tensor, patch: int, merge: int, frames: int) -> tuple[Tensor, tuple[int, int]]:
    """((B * rows * columns, 3 * frames * patch^2), (rows, columns)): pictures as Qwen2-VL reads them, the patches of a square
    of `merge` by `merge` one after another; differentiable."""
    size = picture_size(images.shape[2], images.shape[3], patch * merge)
    resized = F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    mean, deviation = (constant(v, images.device, images.dtype)[:, None, None] for v in (MEAN, DEVIATION))
    x = (resized - mean) / deviation
    rows, columns = size[0] // patch, size[1] // patch
    x = x.unflatten(2, (rows // merge, merge, patch)).unflatten(5, (columns // merge, merge, patch))
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(*[-1] * 6, frames, -1, -1)
    return x.flatten(5).flatten(0, 4), (rows, columns)


@dataclass(frozen=True)
class HumanPreference3:
    """The score (the mean, not its spread) that the head gives to the reward's token, about 10 for a good picture.

    model: Qwen2-VL with HPS v3's weights as (model, tokenizer), or where it is, in transformers' form.
    head: a safetensors file of its linear layers, or of the whole model, with them under rm_head.
    """

    model: Any
    head: str | Path
    _loaded: list = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        model, tokenizer = load_qwen(self.model) if isinstance(self.model, str) else self.model
        self._loaded.append((model, tokenizer, read_layers(Path(self.head), model.config.text_config.hidden_size)))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check_prompts("hpsv3", prompts)
        model, tokenizer, head = self._loaded[0]
        model.to(images.device)
        head.to(images.device)
        vision = model.config.vision_config
        pixels, (rows, columns) = patches(images, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
        picture = "<|image_pad|>" * (rows * columns // vision.spatial_merge_size**2)
        plain = [prompt.replace("<|", "< |") for prompt in prompts]  # a prompt has words, and none of the chat's own tokens
        texts = [CHAT.format(picture=picture, text=INSTRUCTION.format(prompt=prompt)) for prompt in plain]
        tokens = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt").to(images.device)
        told = tokens.input_ids
        read = model.model(
            input_ids=told,
            attention_mask=tokens.attention_mask,
            pixel_values=pixels.to(model.dtype),
            image_grid_thw=torch.tensor([[1, rows, columns]] * len(images), device=images.device),
            mm_token_type_ids=(told == model.config.image_token_id).int(),
        ).last_hidden_state
        place = (told == tokenizer.convert_tokens_to_ids(REWARD_TOKEN)).int().argmax(1)
        return head(read[torch.arange(len(told), device=told.device), place].float())[:, 0].to(images.dtype)
