"""Adapters on a network, which stays as it is: each run says in `Context.adapters` which of them act on it, and how strongly.

    adapters = Adapters(network)
    adapters.load(read_adapter("style.safetensors"))
    network(x, time, condition, Context(adapters={"style": 0.8}))

An adapter of weight w changes a layer's weight from W to W + w D (`gen.adapters.delta`); several add up. What a run sets is
found by name, so switching costs the same among two loaded adapters and among fifty. Different samples of a batch may have
different adapters: `Context.adapters` is then one mapping per sample, or holds one weight per sample.
"""

from __future__ import annotations

import contextvars
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from gen.adapters.adapter import Adapter
from gen.adapters.delta import AdapterError, Delta
from gen.adapters.report import LoadReport
from gen.adapters.resolve import Index, resolve
from gen.adapters.rows import Blocks, Rows, Segments, blocks_of, per_sample
from gen.adapters.targets import Target
from gen.adapters.terms import LowRank, Term, along, bind, channel_axis, operate, weight_and_bias, wide_copies, write_weights
from gen.nn.batch_invariance import aligned, as_rows
from samplers.constants import constant
from samplers.denoiser import AdapterWeights, Context
from samplers.lookup import nearest


@dataclass(eq=False)
class _Active:
    """The adapters in force during one call of a network: one weight each, or, for each, the samples that have it.

    batch: samples in the call, -1 outside of one.
    blocks: see `blocks_of`.
    parts: of rows that several runs share a call with, each with its first and last row (`gen.adapters.rows.Segments`).
    tensors: samples and weights on the device, looked up once per call and group.
    """

    weights: AdapterWeights
    uniform: dict[str, float] = field(default_factory=dict)
    rows: Rows | None = None
    batch: int = 0
    blocks: Blocks | None = None
    parts: list[tuple[int, int, _Active]] = field(default_factory=list)
    tensors: dict[Hashable, tuple[Tensor, Tensor]] = field(default_factory=dict)
    outer: _Active | None = None

    def tensor(self, rows: Sequence[int], weights: Sequence[float], like: Tensor) -> tuple[Tensor, Tensor]:
        """(indices (n,), weights (n,)) on the device of `like`."""
        key = (tuple(rows), tuple(weights), like.device, like.dtype)
        if key not in self.tensors:
            self.tensors[key] = constant(rows, like.device), constant(weights, like.device, like.dtype)
        return self.tensors[key]


_ACTIVE: contextvars.ContextVar[dict[Adapters, _Active]] = contextvars.ContextVar("adapters in force")


class Adapters:
    """The adapters loaded for one network. The network is walked once, here; it gets hooks, and nothing else of it changes.

    A network of diffusers behind our interface (`gen.models.bridge`) has its own names for its modules.
    """

    def __init__(self, network: nn.Module, part: str = "denoiser"):
        self.network, self.part = network, part
        self.index = Index(inner(network))
        self.adapters: dict[str, Adapter] = {}
        self.fused: dict[str, float] = {}
        self._placed: dict[str, list[tuple[Target, Delta]]] = {}
        self._terms: dict[str, dict[str, list[Term]]] = {}  # module -> adapter -> what it computes
        self._handles: dict[str, Any] = {}
        self._stacked: dict[str, tuple[list[LowRank], Tensor, Tensor]] = {}
        self._originals: dict[str, tuple[Tensor, Tensor | None]] = {}
        network.register_forward_pre_hook(self._enter, with_kwargs=True)
        network.register_forward_hook(self._leave, always_call=True)

    # ---- loading

    def load(self, adapter: Adapter, strict: bool = True) -> LoadReport:
        """Load an adapter under its name. AdapterError if the name is taken, or if it does not fit (see `resolve`)."""
        placed, report = resolve(adapter, {self.part: self.index}, strict)
        self.place(adapter, placed[self.part])
        return report

    def place(self, adapter: Adapter, placed: list[tuple[Target, Delta]]) -> None:
        """Load an adapter whose targets are resolved already; it may have none here."""
        if adapter.name in self.adapters:
            raise AdapterError(f"An adapter named {adapter.name!r} is loaded already; give this one another name.")
        device = getattr(inner(self.network), "execution_device", None)  # of a network that is offloaded
        bound = [
            (t.module, bind(delta, t, self.index.modules[t.module], self._original(t.module)[0], device)) for t, delta in placed
        ]
        self.adapters[adapter.name], self._placed[adapter.name] = adapter, placed
        for module, term in bound:
            if module not in self._terms:
                terms = self._terms[module] = {}
                self._handles[module] = self.index.modules[module].register_forward_hook(
                    _Hook(self, module, terms), with_kwargs=True
                )
            self._terms[module].setdefault(adapter.name, []).append(term)

    def remove(self, name: str) -> None:
        """Unload an adapter; a fused one must be unfused first."""
        self._check([name])
        if name in self.fused:
            raise AdapterError(f"The adapter {name!r} is fused into the weights; unfuse it before unloading it.")
        for module in {target.module for target, _ in self._placed.pop(name)}:
            del self._terms[module][name]
            self._stacked.pop(module, None)
            if not self._terms[module]:
                self._handles.pop(module).remove()
                del self._terms[module]
        del self.adapters[name]

    def changes(self, name: str) -> bool:
        """Does a loaded adapter change anything here?"""
        return bool(self._placed.get(name))

    def _check(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.adapters:
                near = nearest(name, self.adapters)
                hint = f" Did you mean {near!r}?" if near else ""
                raise AdapterError(f"No adapter named {name!r} is loaded; loaded: {', '.join(self.adapters) or 'none'}.{hint}")

    # ---- runs

    @contextmanager
    def using(self, weights: AdapterWeights) -> Iterator[None]:
        """Inside, calls of the network that bring no adapters of their own use these: for networks that take no context."""
        before = _ACTIVE.get({})
        token = _ACTIVE.set({**before, self: _Active(weights, batch=-1, outer=before.get(self))})
        try:
            yield
        finally:
            _ACTIVE.reset(token)

    def _enter(self, network: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        context = next((value for value in (*args, *kwargs.values()) if isinstance(value, Context)), None)
        before = _ACTIVE.get({})
        outer = before.get(self)
        weights: AdapterWeights = {} if context is None else context.adapters
        if not weights and outer is not None:
            weights = outer.weights
        x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        _ACTIVE.set({**before, self: self._activate(weights, 0 if x is None else len(x), outer)})

    def _leave(self, network: nn.Module, args: tuple, output: Any) -> None:
        before = _ACTIVE.get({})
        active = before.get(self)
        if active is not None and active.batch >= 0:
            others = {owner: active_call for owner, active_call in before.items() if owner is not self}
            _ACTIVE.set(others if active.outer is None else {**others, self: active.outer})

    def _activate(self, weights: AdapterWeights, batch: int, outer: _Active | None) -> _Active:
        """The adapters of a call; work in their number only, not in the number loaded or the size of the network."""
        active = _Active(weights, batch=batch, outer=outer)
        if isinstance(weights, Segments):
            active.parts = [(first, end, self._activate(own, end - first, None)) for first, end, own in weights.parts(batch)]
            return active
        numbers = {name: w for name, w in weights.items() if isinstance(w, int | float)} if isinstance(weights, Mapping) else {}
        if isinstance(weights, Mapping) and len(numbers) == len(weights):
            active.uniform = {name: float(w) for name, w in numbers.items() if w != 0}
            self._check(list(active.uniform))
        else:
            active.rows = per_sample(weights, batch)
            self._check(list(active.rows))
            active.blocks = blocks_of(active.rows, batch)
        for name in active.rows if active.rows is not None else active.uniform:
            if name in self.fused:
                raise AdapterError(
                    f"The adapter {name!r} is fused into the weights and always acts; unfuse it, or leave it out."
                )
        return active

    # ---- fusing

    def fuse(self, weights: Mapping[str, float]) -> None:
        """Write W + sum w D into the weights, computed in float32 and rounded once. The originals are kept for `unfuse`."""
        self._check(list(weights))
        if self.fused:
            raise AdapterError(f"{', '.join(self.fused)} are fused into the weights already; unfuse them first.")
        sums: dict[str, tuple[Tensor, Tensor | None]] = {}
        for name, w in weights.items():
            for target, delta in self._placed[name]:
                module = self.index.modules[target.module]
                weight, bias = sums.get(target.module) or wide_copies(module)
                rows = slice(*target.rows) if target.rows else slice(None)
                weight[rows] += w * delta.delta(module.weight.detach()[rows])
                change = delta.bias(weight.dtype)
                if change is not None:
                    if bias is None:
                        raise AdapterError(f"{target.module} has no bias for {name!r} to be fused into; run it without fusing.")
                    bias[rows] += w * change.to(bias.device)
                sums[target.module] = weight, bias
        for name, (weight, bias) in sums.items():
            module = self.index.modules[name]
            original, original_bias = weight_and_bias(module)
            kept_bias = None if bias is None or original_bias is None else original_bias.detach().clone()
            self._originals[name] = original.detach().clone(), kept_bias
            write_weights(module, weight, bias)
        self.fused = dict(weights)

    def unfuse(self) -> None:
        """The weights as they were, to the last bit."""
        for name, original in self._originals.items():
            write_weights(self.index.modules[name], *original)
        self._originals.clear()
        self.fused = {}

    @contextmanager
    def fusing(self, weights: Mapping[str, float]) -> Iterator[None]:
        """Fused inside, as before outside."""
        self.fuse(weights)
        try:
            yield
        finally:
            self.unfuse()

    def stacked(self, module: str, terms: list[LowRank]) -> tuple[Tensor, Tensor]:
        """Factors (N, in, r) and (N, r, out) of N terms on a module; the last ones are kept, but not where factors train."""
        kept = self._stacked.get(module)
        same = kept is not None and len(kept[0]) == len(terms) and all(a is b for a, b in zip(kept[0], terms, strict=True))
        # what was stacked in inference mode cannot be differentiated by
        if kept is not None and same and (torch.is_inference_mode_enabled() or not kept[1].is_inference()):
            return kept[1:]
        down, up = (torch.stack([getattr(term, side).T for term in terms]) for side in ("down", "up"))
        if not (down.requires_grad or up.requires_grad or any(t.down.requires_grad or t.up.requires_grad for t in terms)):
            self._stacked[module] = terms, down, up
        return down, up

    def _original(self, name: str) -> tuple[Tensor, Tensor | None]:
        weight, bias = weight_and_bias(self.index.modules[name])
        return self._originals.get(name) or (weight.detach(), None if bias is None else bias.detach())


def inner(network: nn.Module) -> nn.Module:
    """The network whose modules adapters name: of a bridged one, that of diffusers."""
    return cast("nn.Module", network.network) if getattr(network, "bridged", False) else network


@dataclass(eq=False)
class _Hook:
    """Adds to a module's output what the adapters in force make of its input."""

    adapters: Adapters
    name: str
    terms: dict[str, list[Term]]

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor:
        active = _ACTIVE.get({}).get(self.adapters)
        if active is None or not self.touches(active):
            return output
        x = next(iter((*args, *kwargs.values())))
        if not active.parts:
            return self.changed(module, x, output, active)
        self._check_rows(len(x), active)
        outputs, each = [], len(x) // active.batch  # rows of the layer for each of the batch
        for first, end, part in active.parts:
            rows = slice(first * each, end * each)
            with as_rows(part.batch):
                own = output[rows]
                outputs.append(self.changed(module, aligned(x[rows]), own, part) if self.touches(part) else own)
        return torch.cat(outputs)

    def _check_rows(self, count: int, active: _Active) -> None:
        """AdapterError where it is not known which of a layer's rows belong to which sample."""
        if count == active.batch:
            return
        if not self.name.startswith(getattr(self.adapters.network, "sample_rows", ())) or count % active.batch:
            raise AdapterError(
                f"{self.name} sees {count} rows of a batch of {active.batch}, so samples cannot differ in adapters there."
            )

    def touches(self, active: _Active) -> bool:
        """Does any adapter in force change this layer?"""
        if active.parts:
            return any(self.touches(part) for _, _, part in active.parts)
        return any(name in self.terms for name in (active.uniform if active.rows is None else active.rows))

    def changed_rows(self) -> list[tuple[int, int, bool]]:
        """(first, end, changed) of the parts of the batch under way, where the layer is changed in some of it."""
        active = _ACTIVE.get({}).get(self.adapters)
        if active is None or not self.touches(active):
            return []
        return [(first, end, self.touches(part)) for first, end, part in active.parts] or [(0, active.batch, True)]

    def changed(self, module: nn.Module, x: Tensor, output: Tensor, active: _Active) -> Tensor:
        """A layer's output with the adapters in force for all of its rows."""
        total = _Sum(output, channel_axis(module))
        if active.rows is None:
            for name, weight in active.uniform.items():
                for term in self.terms.get(name, ()):
                    base = self._base(module, x, output) if term.needs_base else None
                    total.add(term(module, x, base, weight), term.rows)
            return total.value
        here = {name: rows for name, rows in active.rows.items() if name in self.terms}
        if here and len(x) != active.batch:
            self._check_rows(len(x), active)
            inside, outside = (value.unflatten(0, (active.batch, -1)) for value in (x, output))
            return self.changed(module, inside, outside, active).flatten(0, 1)
        if here and (done := self._in_blocks(module, x, output, active)) is not None:
            return done
        groups: dict[Hashable, list[tuple[LowRank, int, float]]] = {}  # by rank and output rows
        for name, (rows, weights) in here.items():
            for term in self.terms[name]:
                if isinstance(term, LowRank) and term.plain and isinstance(module, nn.Linear):
                    members = groups.setdefault((len(term.down), term.rows), [])
                    members += [(term, row, weight) for row, weight in zip(rows, weights, strict=True)]
                    continue
                index, w = active.tensor(rows, weights, output)
                base = self._base(module, x[index], output[index]) if term.needs_base else None
                y = term(module, x[index], base)
                total.add(y * w.reshape(-1, *[1] * (y.ndim - 1)), term.rows, index)
        for members in groups.values():
            index, w = active.tensor([row for _, row, _ in members], [term.scale * w for term, _, w in members], output)
            total.add(batched([term for term, *_ in members], w, x[index]), members[0][0].rows, index)
        return total.value

    def _in_blocks(self, module: nn.Module, x: Tensor, output: Tensor, active: _Active) -> Tensor | None:
        """output + w_i B_i A_i x for blocks of samples, as two batched products that read every factor once; None where the
        adapters are not of one rank, or more than B A."""
        if active.blocks is None or not isinstance(module, nn.Linear) or not x.dtype == output.dtype == module.weight.dtype:
            return None
        names, weights, samples = active.blocks
        terms: list[LowRank] = []
        for name in names:
            bound = self.terms.get(name, ())
            if len(bound) != 1 or not isinstance(bound[0], LowRank) or not bound[0].plain or bound[0].rows is not None:
                return None
            terms.append(bound[0])
        if len({len(term.down) for term in terms}) > 1:
            return None
        down, up = self.adapters.stacked(self.name, terms)
        scales = tuple(term.scale * weight for term, weight in zip(terms, weights, strict=True))
        _, w = active.tensor(range(len(scales)), scales, output)
        inner = torch.bmm(x[samples].reshape(len(terms), -1, x.shape[-1]), down).mul_(w[:, None, None])
        old = output[samples].reshape(len(terms), -1, output.shape[-1])
        new = torch.baddbmm(old, inner, up).reshape(output[samples].shape)
        if len(new) == len(output):
            return new
        return torch.cat([output[: samples.start], new, output[samples.stop :]])

    def _base(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """The module's output by its original weight, without the bias."""
        original = self.adapters._originals.get(self.name)
        if original is not None:
            return operate(module, x, original[0])
        bias = getattr(module, "bias", None)
        return output if bias is None else output - along(bias, output, channel_axis(module))


def batched(terms: Sequence[LowRank], weights: Tensor, x: Tensor) -> Tensor:
    """w_i B_i A_i x_i of n samples x (n, ..., in) with low-rank terms of one rank, as two batched products: (n, ..., out)."""
    down, up = (torch.stack([getattr(term, side) for term in terms]) for side in ("down", "up"))
    inner = torch.bmm(x.reshape(len(x), -1, x.shape[-1]), down.transpose(1, 2)) * weights[:, None, None]
    return torch.bmm(inner, up.transpose(1, 2)).reshape(*x.shape[:-1], up.shape[1])


class _Sum:
    """An output to which changes are added: of all of it or of some channels, in all samples or in some."""

    def __init__(self, output: Tensor, axis: int):
        self.value, self.axis, self.own = output, axis, False

    def add(self, y: Tensor, rows: tuple[int, int] | None, index: Tensor | None = None) -> None:
        y = y.to(self.value.dtype)
        if rows is None and index is None:
            self.value = self.value + y
            self.own = True
            return
        if not self.own:
            self.value, self.own = self.value.clone(), True
        part = self.value if rows is None else self.value.narrow(self.axis, rows[0], rows[1] - rows[0])
        if index is None:
            part.add_(y)
        else:
            part.index_add_(0, index, y.expand(len(index), *part.shape[1:]))
