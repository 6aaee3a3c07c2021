"""The weights of a model on disk, tensor by tensor, by the names that adapters have for its layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from gen.adapters.apply import inner
from gen.adapters.originals import in_files
from gen.adapters.resolve import Index
from gen.io.weights import CheckpointError, TensorFile
from gen.models.formats.files import CheckpointFiles, open_checkpoint
from gen.models.skeleton import skeleton


@dataclass(frozen=True)
class CheckpointPart:
    """A network's file(s), which of its modules an adapter can change, by module name, and the folder's name in the model."""

    source: CheckpointFiles
    modules: dict[str, nn.Module]
    network: nn.Module
    place: str

    def spelled(self, module: str) -> str:
        """A module's name in adapter files."""
        return in_files(self.network, module)

    def at(self, folder: Path) -> CheckpointPart:
        """The same network with the weights in another folder."""
        return replace(self, source=open_checkpoint(folder))

    def key(self, module: str, leaf: str) -> str | None:
        """The tensor of a module's weight or bias: by the module's name, or by the one that files have for it."""
        names = (f"{name}.{leaf}" for name in (module, self.spelled(module)))
        return next((name for name in names if name in self.shapes), None)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.source.shapes


@dataclass
class Weights:
    """parts: "denoiser" -> its file; tensors are read when they are asked for."""

    path: Path
    parts: dict[str, CheckpointPart] = field(default_factory=dict)


def open_model(folder: Path) -> Weights:
    """A model folder or a diffusers pipeline: its networks that adapters change. CheckpointError where one has no weights."""
    weights = Weights(folder)
    if not folder.is_dir():
        raise CheckpointError(folder, "is not a folder; give a model folder of fewstep or a pipeline of diffusers.")
    pipeline = (folder / "model_index.json").is_file() and not (folder / "config.json").exists()
    for part, network in skeleton(folder).items():
        place = folder / (_backbone(folder) if pipeline and part == "denoiser" else part)
        bare = inner(network)
        weights.parts[part] = CheckpointPart(open_checkpoint(place), dict(Index(bare).modules), bare, place.name)
    if "denoiser" not in weights.parts:
        raise CheckpointError(folder, "has no denoiser; give a model folder of fewstep or a pipeline of diffusers.")
    return weights


def open_like(path: Path, like: Weights) -> Weights:
    """Another model of the same architecture: a folder, or a file of the denoiser alone with the names of the model's own.

    CheckpointError where it has nothing in common with it."""
    if path.is_dir():
        return Weights(
            path, {name: part.at(path / part.place) for name, part in like.parts.items() if (path / part.place).is_dir()}
        )
    denoiser = like.parts["denoiser"]
    source = CheckpointFiles(path, (TensorFile(path),), None, path.parent / "config.json")
    if not source.shapes.keys() & denoiser.shapes.keys():
        raise CheckpointError(
            path, f"has no tensor in common with the denoiser of {like.path} ({min(denoiser.shapes)}, ...); convert it first."
        )
    return Weights(path, {"denoiser": replace(denoiser, source=source)})


def _backbone(folder: Path) -> str:
    from gen.models.bridge.pipeline import read_index

    return read_index(folder)[0].backbone


def pairs(tuned: Weights, base: Weights) -> Iterator[tuple[str, str, nn.Module, CheckpointPart, CheckpointPart]]:
    """(part, module name, module, tuned part, base part) of every layer that both have, part by part.

    CheckpointError where the networks have other layers or shapes.
    """
    shared = [part for part in base.parts if part in tuned.parts]
    if not shared:
        raise CheckpointError(tuned.path, f"has no network in common with {base.path}.")
    for part in shared:
        new, old = tuned.parts[part], base.parts[part]
        matched_layers = 0
        for name, module in old.modules.items():
            keys = new.key(name, "weight"), old.key(name, "weight")
            shapes = [one.shapes[key] if key else "absent" for one, key in zip((new, old), keys, strict=True)]
            if keys == (None, None):  # weights that are another's, which the file has once
                continue
            if shapes[0] != shapes[1]:
                raise CheckpointError(
                    tuned.path,
                    f"is another network: the {part.replace('_', ' ')}'s {name}.weight is {shapes[0]} there and {shapes[1]} in "
                    f"{base.path}.",
                )
            matched_layers += 1
            yield part, name, module, new, old
        if not matched_layers:
            raise CheckpointError(base.path, f"names the layers of its {part.replace('_', ' ')} in a way that is not known.")


def read_tensor(part: CheckpointPart, module: str, leaf: str) -> Tensor | None:
    """A copy of a module's weight or bias, None where the file has none."""
    key = part.key(module, leaf)
    return None if key is None else part.source.tensor(key)
