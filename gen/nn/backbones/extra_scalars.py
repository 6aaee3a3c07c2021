"""What a network is told beside the time: numbers, such as a guidance scale, and noise of its own.

Each is a number per image (B,), or of the noise 100 of them (B, 100), in `Condition.extra`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, cast

from torch import Tensor, nn

from gen.nn.backbones.blocks import TimeMLP, timestep_embedding
from gen.nn.initialisation import initialise
from samplers.denoiser import Condition

SCALAR_FREQUENCIES = 256  # width of the sinusoids of an extra scalar
LATENT_DIM = 100  # numbers of the noise that a generator receives beside x: all published runs of arXiv 2112.07804
ScalarName = Literal["guidance", "target_time", "latent"]
# name -> (who gives it, what is given)
TOLD = {
    "guidance": ("guidance 'embedded' gives it", "one number"),
    "target_time": ("the sampler flow_map gives it", "one number"),
    "latent": (f"the sampler ddpm with latent={LATENT_DIM} gives it", f"{LATENT_DIM} numbers"),
}


class ExtraScalars(nn.ModuleDict):
    """Numbers beside the time that a network reads, one MLP each, added to the time's embedding: what distilled networks are
    told. They start at zero, so that a network given one is still the same function.

    Each is a number per image in `Condition.extra`, (B,): "guidance" a guidance scale, "target_time" a second time on the
    network's own clock. "latent" is unit normal noise, (B, 100), with which one x has many outcomes (arXiv 2112.07804).
    """

    SCALES: ClassVar[dict[str, float]] = {
        "guidance": 100.0,
        "target_time": 1.0,
    }  # to the range in which time embeddings tell numbers apart

    def __init__(self, names: Sequence[str], dim: int, scales: Mapping[str, float] | None = None):
        super().__init__({name: TimeMLP(LATENT_DIM if name == "latent" else SCALAR_FREQUENCIES, dim, dim) for name in names})
        self.scales = {**self.SCALES, **(scales or {})}  # scales: of published networks, where other than ours

    @staticmethod
    def shape(name: str, batch: int) -> tuple[int, ...]:
        """Of what a network is told by this name, for a batch."""
        return (batch, LATENT_DIM) if name == "latent" else (batch,)

    def reset_parameters(self) -> None:
        for name, mlp in self.mlps().items():
            first, last = mlp.linears
            initialise(nn.init.normal_, first.weight, std=LATENT_DIM**-0.5 if name == "latent" else 0.02)
            initialise(nn.init.zeros_, last.weight)

    def mlps(self) -> dict[str, TimeMLP]:
        """By the name of the number that each reads."""
        return {name: cast("TimeMLP", mlp) for name, mlp in self.items()}

    def forward(self, condition: Condition, batch: int) -> Tensor | float:
        """(B, dim), or 0.0 of no scalars. ValueError, in a sentence, for one that is missing."""
        total: Tensor | float = 0.0
        for name, mlp in self.mlps().items():
            value, shape = condition.extra.get(name), self.shape(name, batch)
            if value is None or value.shape != shape:
                hint, what = TOLD[name]
                raise ValueError(
                    f"This network receives its {name}: give condition.extra[{name!r}], {what} per image ({hint}). With "
                    f"{batch} images it is {'missing' if value is None else tuple(value.shape)}."
                )
            if name != "latent":
                value = timestep_embedding(self.scales[name] * value, SCALAR_FREQUENCIES)
            total = total + mlp(value.to(mlp.linears[0].weight.dtype))
        return total
