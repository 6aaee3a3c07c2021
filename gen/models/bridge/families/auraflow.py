"""AuraFlow: a transformer that reads UMT5's tokens, with zeros for the padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gen.models.bridge.families.base import VAES, Family, Parts
from gen.models.bridge.network import BridgedConfig, BridgedNetwork, setting
from gen.models.bridge.prompts import PromptReader, Sentence, whole_mask
from gen.models.prompt_reading import USUAL, Reading
from samplers.denoiser import Condition

TOKENS = 256


class AuraFlow(BridgedNetwork):
    def __init__(self, network: Any):
        channels, patch = setting(network, "in_channels"), setting(network, "patch_size", 2)
        super().__init__(network, BridgedConfig(channels=channels, patch=patch))

    def call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        return self.network(x, encoder_hidden_states=condition.tokens, timestep=time.to(x.dtype), return_dict=False)[0]


class AuraFlowReader(PromptReader):
    takes = ("max_sequence_length",)

    def __init__(self, umt5: Sentence):
        super().__init__()
        self.umt5 = umt5

    def condition(self, prompt: str, negative: bool = False, reading: Reading = USUAL) -> Condition:
        tokens, mask = self.umt5.read(prompt, length=reading.max_sequence_length)
        tokens = tokens * mask[..., None]
        return Condition(tokens=tokens, mask=whole_mask(tokens))


def network(parts: Parts, index: Mapping[str, Any]) -> AuraFlow:
    return AuraFlow(parts["transformer"])


def reader(parts: Parts, index: Mapping[str, Any]) -> AuraFlowReader:
    return AuraFlowReader(Sentence(parts["tokenizer"], parts["text_encoder"], TOKENS, masked=True))


FAMILY = Family(
    name="AuraFlow",
    backbone="transformer",
    classes={
        "transformer": ("AuraFlowTransformer2DModel",),
        "vae": VAES,
        "text_encoder": ("UMT5EncoderModel",),
        "tokenizer": ("LlamaTokenizer", "LlamaTokenizerFast", "T5Tokenizer", "T5TokenizerFast"),
    },
    clock="t",
    network=network,
    reader=reader,
    defaults=lambda backbone: {"num_inference_steps": 50, "guidance_scale": 3.5},
    size=lambda backbone, factor: 128 * factor,
)
