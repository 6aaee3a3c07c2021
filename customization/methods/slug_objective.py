"""SLUG as a method (arXiv 2407.11867): forget what some pictures show, by one step along one gradient in one layer.

The data are a concept's pictures, which are forgotten, and those of its `prior`, which are kept. All steps but the last add up
two gradients in every layer: of the denoising loss on the first, which is to rise, and on the second. In the last step the
layers that matter most for the one and least for the other (the Pareto front) are tried, each by bisection of its step until
the loss on that step's pictures of the concept has risen by `target`; the layer at which the other loss rose least is
exported, as an adapter of one whole difference. The optimiser has nothing to do.

The paper asks a classifier whether a concept is forgotten; here it is the model's own loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from customization.base.config import CustomizationConfig
from customization.base.objective import CustomizationObjective
from customization.methods.sara import MATRICES
from customization.methods.slug import ROUNDS, LayerScore, pareto_front, score_of, unlearn
from distill.networks.lora.targets import ends_in
from distill.run_folder import TrainingError
from distill.types import Batch, Draws
from gen.adapters import Adapter, AdapterError

NAME = "taught_nothing"  # a parameter of no layer: an optimiser must have one


class UnlearningConfig(CustomizationConfig):
    """target: the loss on the concept, over what it was, at which it counts as forgotten. rounds: of the bisection. tried: how
    many layers of the front are tried, the most important first. targets: ends of the names of the layers that may change;
    none: all linear layers and convolutions of the denoiser."""

    writes: ClassVar[str] = "full"

    adapter: None = None
    target: float = Field(default=1.1, gt=1)
    rounds: int = Field(default=ROUNDS, ge=1, le=40)
    tried: int = Field(default=4, ge=1)
    targets: tuple[str, ...] = ()


class UnlearningObjective(CustomizationObjective):
    """See the module. In one process."""

    config: UnlearningConfig

    def attach(self) -> dict[str, nn.Parameter]:
        if self.config.text_adapter is not None or self.config.tokens:
            raise ValueError("Unlearning changes one layer of the denoiser; leave text_adapter and tokens out.")
        network, ends = self.parts["denoiser"], self.config.targets
        known = [name for name, module in network.named_modules() if isinstance(module, MATRICES)]
        self.layers = [name for name in known if not ends or ends_in(name, ends)]
        if not self.layers:
            raise ValueError(f"No linear layer or convolution of the denoiser ends in {', '.join(ends)}.")
        self.sums: dict[str, dict[str, Tensor]] = {"forget": {}, "retain": {}}
        self.probes: list[tuple[Batch, Draws, int]] = []
        self.found: tuple[int, Tensor] | None = None  # (layer, its change)
        placeholder = nn.Parameter(torch.zeros((), device=self.generator.device))
        network.register_parameter(NAME, placeholder)
        return {f"denoiser.{NAME}": placeholder}

    # ---- steps ----

    def compute(self, batch: Batch, draws: Draws, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        if dist.is_initialized() and dist.get_world_size() > 1:
            raise TrainingError("Unlearning adds up gradients in one process; start it in one.")
        network: Any = self.parts["denoiser"]
        nothing = 0 * network.taught_nothing
        if step + 1 == self.run.get("max_steps"):
            self.probes.append((batch, draws, step))
            return nothing, {}
        weights = [network.get_submodule(name).weight for name in self.layers]
        with torch.enable_grad():
            for weight in weights:
                weight.requires_grad_(True)
            try:
                both = self.losses(batch, draws, step)
                for kind, loss in both.items():
                    grads = torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=kind == "forget")
                    for name, grad in zip(self.layers, grads, strict=True):
                        if grad is not None:
                            kept = self.sums[kind].setdefault(name, torch.zeros_like(grad, dtype=torch.float32))
                            kept += grad.float()
            finally:
                for weight in weights:
                    weight.requires_grad_(False)
        return nothing, {"loss_forget": -both["forget"].detach(), "loss_retain": both["retain"].detach()}

    def losses(self, batch: Batch, draws: Draws, step: int) -> dict[str, Tensor]:
        """forget: minus the mean loss on the concept's pictures, which falls as it is forgotten; retain: that on the others."""
        prior = batch.extra.get("prior")
        if prior is None:
            raise ValueError("Unlearning needs pictures of what is to be kept beside the concept's; give data.prior.")
        x0 = self.clean(batch)
        level, eps = self.levels(draws, x0.device, step), self.noise(draws, x0)
        prediction = self.predict(level.mix(x0, eps), level, self.condition(batch, x0))
        each = self.error(prediction, x0, eps, step).flatten(1).mean(1)
        prior = prior.to(each.device)
        return {"forget": -each[~prior].mean(), "retain": each[prior].mean()}

    def after_step(self, step: int) -> None:
        super().after_step(step)
        if not self.probes:
            return
        change = self.search()
        self.found, self.probes = change, []

    # ---- the end ----

    def scores(self) -> list[LayerScore]:
        network = self.parts["denoiser"]
        made = [
            score_of(name, network.get_submodule(name).weight, forget, self.sums["retain"].get(name))  # type: ignore[arg-type]
            for name, forget in self.sums["forget"].items()
        ]
        return [score for score in made if score is not None]

    @torch.no_grad()
    def measured(self) -> dict[str, float]:
        """The two losses on the last step's pictures."""
        both = [self.losses(*probe) for probe in self.probes]
        return {kind: float(torch.stack([loss[kind] for loss in both]).mean()) for kind in ("forget", "retain")}

    def search(self) -> tuple[int, Tensor]:
        scores = self.scores()
        if not scores:
            raise TrainingError("No gradient has reached any layer; give at least two steps.")
        front = sorted(pareto_front(scores), key=lambda score: -score.importance)[: self.config.tried]
        network, wanted = self.parts["denoiser"], self.config.target * -self.measured()["forget"]
        results: dict[str, float] = {}
        changes: dict[str, Tensor] = {}
        for score in front:
            try:
                adapter, _ = unlearn(network, score, lambda: -self.measured()["forget"] >= wanted, self.config.rounds)
            except AdapterError:
                continue
            changes[score.layer] = adapter.layers[f"denoiser.{score.layer}"].factors["weight"]
            weight: Any = network.get_submodule(score.layer).weight
            with torch.no_grad():
                before = weight.detach().clone()
                weight += changes[score.layer].to(weight.dtype)
                results[score.layer] = -self.measured()["retain"]
                weight.copy_(before)
        if not results:
            raise TrainingError(
                f"No step in {', '.join(score.layer for score in front)} makes the loss on the concept {self.config.target:g} "
                "times what it was; give a lower objective.target, more rounds, or other targets."
            )
        best = max(results, key=results.__getitem__)
        return self.layers.index(best), changes[best].float().cpu()

    def state_dict(self) -> dict[str, Tensor]:
        found = {f"{kind}.{name}": value for kind, sums in self.sums.items() for name, value in sums.items()}
        if self.found is not None:
            found |= {"found.layer": torch.tensor(self.found[0]), "found.change": self.found[1]}
        return {**super().state_dict(), **found}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        device, rest = self.generator.device, {}
        for key, value in state.items():
            kind, _, name = key.partition(".")
            if kind in self.sums and name in self.layers:
                self.sums[kind][name] = value.to(device)
            elif kind != "found":
                rest[key] = value
        if "found.layer" in state:
            self.found = int(state["found.layer"]), state["found.change"]
        super().load_state_dict(rest)

    def to_adapter(self, values: Mapping[str, Tensor]) -> Adapter:
        from gen.adapters import Delta

        if self.found is None:
            raise TrainingError("The run ended before its last step, in which the layer is chosen; let it go on.")
        number, change = self.found
        return Adapter(self.config.name, {f"denoiser.{self.layers[number]}": Delta({"weight": change})})
