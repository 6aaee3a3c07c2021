"""Joint adapters by folder, the one that comes with the default model, and the denoiser that they make of its network.

Rows are pictures and then maps (`gen.nn.joint`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gen.adapters import Adapter, Delta
from gen.io.weights import CheckpointError, read_json
from gen.models.components import component_digest, given_or_shipped, load_component
from gen.models.control_pictures import KINDS
from gen.nn.joint import JointAdapter, JointAttention
from samplers.denoiser import Condition, Context, Denoiser
from samplers.hooks import check_reached
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.wrappers import DenoiserWrapper

if TYPE_CHECKING:
    from gen.models.model import Model

OWN = "joint_adapter"
SHIPPED = Path(__file__).parents[1] / "weights" / "joint"


@dataclass(frozen=True)
class OpenedJoint:
    """A joint adapter on a model that is open. changes: the name under which the model has its changes of linear layers, as an
    adapter that acts on rows of maps alone; "" for none. digest: of its weights."""

    network: JointAdapter
    changes: str
    digest: str

    @property
    def kind(self) -> str:
        """Of maps."""
        return self.network.config.kind


@dataclass(frozen=True)
class JoinedRows(DenoiserWrapper):
    """A network's denoiser for rows of `count` pictures and then their maps. weight: of joint attention; 0: apart."""

    denoiser: Denoiser
    opened: OpenedJoint
    count: int
    weight: float = 1.0

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        weights: Any = context.adapters
        if self.opened.changes:
            on_maps = [0.0] * self.count + [1.0] * self.count
            context = replace(context, adapters={**weights, self.opened.changes: on_maps})
        if self.weight:
            context = JointAttention(self.opened.network, self.count, self.weight).hooked(context)
        prediction = self.denoiser(x, level, condition, context)
        if self.weight:
            check_reached(context, "heads", "A joint adapter")
        return prediction


def find_joint(given: Any) -> Path:
    """The folder of a joint adapter; the shipped one if None. ValueError where there is none."""
    return given_or_shipped(
        given,
        SHIPPED,
        "joint_adapter",
        "This installation lacks the default model's joint adapter; give the folder of one.",
        "give one that the objective 'joint' made, or leave it out for the default model's.",
    )


def open_joint(folder: Path, model: Model) -> OpenedJoint:
    """A joint adapter's folder on a model, opened once. CheckpointError for one that is damaged, unsafe, or for another."""
    key = str(folder.resolve())
    if key not in model.opened_joints:
        config = read_json(folder / "config.json")
        if config.get("type") != OWN:
            kind = str(config.get("type") or config.get("_class_name"))
            raise CheckpointError(folder, f"is a {kind!r:.80}, and a {OWN} is needed; give one that was made for this model.")
        network: Any = load_component(folder, OWN)
        if network.config.kind not in KINDS:
            known = ", ".join(KINDS)
            raise CheckpointError(folder, f"draws maps of kind {network.config.kind!r}, which is unknown here; known: {known}.")
        check_fits(network, model, folder)
        weights = component_digest(folder)
        model.opened_joints[key] = OpenedJoint(
            network.to(model.device, model.dtype), _load_changes(network, model, weights), weights
        )
    return model.opened_joints[key]


def check_fits(network: JointAdapter, model: Any, folder: Path) -> None:
    """CheckpointError for an adapter that changes layers which the model's network has not; whether its attention fits is found
    out when it is first called."""
    layers = dict(model.network.named_modules())
    for name, size in network.config.changed.items():
        weight = getattr(layers.get(name), "weight", None)
        if weight is None or tuple(weight.shape) != tuple(size):
            raise CheckpointError(folder, f"changes a layer {name!r:.200} of {size[0]} x {size[1]}, which this model has not.")


def _load_changes(network: JointAdapter, model: Model, weights: str) -> str:
    """Load what changes for maps as an adapter that acts where it is asked for; its name, "" for none."""
    prefix = "network." if getattr(model.network, "bridged", False) else ""  # our wrapper's name for it
    layers = {
        f"denoiser.{layer.removeprefix(prefix)}": Delta({"down": down.detach(), "up": up.detach()})
        for layer, (down, up) in network.changes().items()
    }
    if not layers:
        return ""
    name, acting = f"joint {weights[:16]}", dict(model.adapters)
    if model.loaded_adapters is None or name not in model.loaded_adapters.loaded:
        model.load_adapter(Adapter(name, layers))
        model.set_adapters(acting)
    return name
