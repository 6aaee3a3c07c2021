"""A batch on a cluster: Ray Data hands jobs to actors that have opened the model once; this process writes the pictures.

An actor is a process with a GPU, or with some cores. Where it dies, or its machine does, Ray starts another and hands it the
units that were on their way. Units are small, results are taken as they come, and Ray holds back what nobody takes, so memory
stays bounded. All that is written is written here: no other machine needs the batch's folder.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import re
import socket
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from gen.batch.paint import WINDOW, Painter, check_defaults, group_of_job, model_identity, open_generator
from gen.batch.rows import PictureJob
from gen.batch.run import BatchResult, OpenBatch, PictureBar, expected_pictures, opened_batch, prepared, windows
from gen.batch.settings import BatchSettings
from gen.batch.store import Painted
from gen.calls.call import Call
from gen.io.errors import RecipeError
from gen.io.extras import install

UNIT = 4  # network calls that are handed over together
ROUND = 50_000  # pictures of one data set of Ray's, whose units this process holds
SPARE_CPUS = 2  # of a cluster that is started here, beside those of actors: Ray's own tasks need some
_SAID = re.compile(r"^(\w+(?:Error|Exception|Exit|Interrupt)): ?(.*)$", re.MULTILINE)  # the end of a traceback


@dataclass(frozen=True)
class RayOptions:
    """Where actors are started, and how many.

    address: of a cluster ("auto", "HOST:PORT", "ray://HOST:10001"); "local": one is started here, and ended afterwards.
    actors: None: one for every GPU, or for all cores.
    cpus_per_actor: cores of each, and threads that it computes with.
    imports: Python files of the user's own that every actor runs.
    """

    address: str = "local"
    actors: int | None = None
    cpus_per_actor: int = 1
    imports: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("--actors", 1 if self.actors is None else self.actors), ("--cpus-per-actor", self.cpus_per_actor)):
            if not 1 <= value <= 10_000:
                raise ValueError(f"{name} is {value}; give a whole number from 1 to 10000.")


def ray_module(name: str = "ray") -> Any:
    """Ray, or a module of it; ValueError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f"--ray needs the package ray: {install('ray')}.") from None


@contextlib.contextmanager
def cluster(options: RayOptions) -> Iterator[Any]:
    """Ray, connected; what is started here is ended. ValueError if the cluster does not answer."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its logs stay in its files
    ray = ray_module()
    if ray.is_initialized():
        yield ray
        return
    _check_answers(options.address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if options.address == "local":
            cores = max(os.cpu_count() or 1, (options.actors or 1) * options.cpus_per_actor) + SPARE_CPUS
            ray.init(num_cpus=cores, include_dashboard=False, **quiet)
        else:
            ray.init(address=options.address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(f"No Ray cluster answers at {options.address!r} ({str(error).splitlines()[0]}).") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """ValueError where nothing listens at HOST:PORT, for which Ray itself waits minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise ValueError(f"No Ray cluster answers at {address!r} ({error}).") from None


def resources(ray: Any, device: object, options: RayOptions) -> tuple[int, dict[str, Any]]:
    """(how many actors, what each needs). device: that was asked for, None for the best there is."""
    there = ray.cluster_resources()
    on_gpu = there.get("GPU", 0) >= 1 and not str(device or "").startswith("cpu")
    needs: dict[str, Any] = {"num_cpus": options.cpus_per_actor, "num_gpus": 1 if on_gpu else 0}
    spare = SPARE_CPUS if options.address == "local" else 0
    room = int((there.get("CPU", 1) - spare) // options.cpus_per_actor)
    room = min(room, int(there["GPU"])) if on_gpu else room
    if room < 1:
        raise ValueError(
            f"The cluster has {there.get('CPU', 0):g} cores, and an actor needs {options.cpus_per_actor}; "
            "lower --cpus-per-actor."
        )
    return min(options.actors or room, room), needs


def _prepare(options: RayOptions) -> None:
    """In an actor's process, before a model is opened."""
    import torch

    from gen.io.user_code import import_files

    import_files(options.imports)
    torch.set_num_threads(options.cpus_per_actor)


def describe(settings: BatchSettings, model: str, options: RayOptions) -> dict[str, Any]:
    """`model_identity`, as an actor has it; ValueError as of `check_defaults`."""
    _prepare(options)
    generator = open_generator(settings, model)
    check_defaults(settings, generator)
    return model_identity(generator)


class PaintActor:
    """Opens the model once, and makes pictures of units."""

    def __init__(self, settings: BatchSettings, model: str, batch: str, options: RayOptions):
        _prepare(options)
        self.painter = Painter(settings, open_generator(settings, model), batch)

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Of units: the index of each job with its file, or with the reason why it cannot be made."""
        results: list[tuple[int, bytes, str]] = []

        def done(painted: Painted) -> None:
            try:
                data = painted.data if isinstance(painted.data, bytes) else painted.data()
            except RecipeError as error:
                results.append((painted.job.index, b"", str(error)))
            else:
                results.append((painted.job.index, data, ""))

        for unit in columns["units"]:
            self.painter.paint(unpack(unit), done, lambda job, reason: results.append((job.index, b"", reason)))
        return {name: [result[i] for result in results] for i, name in enumerate(("index", "file", "reason"))}


def pack(jobs: Sequence[PictureJob]) -> bytes:
    """Jobs as compressed JSON."""
    values = [[job.index, job.line, job.call.to_dict(), job.name, dict(job.extra)] for job in jobs]
    return zlib.compress(json.dumps(values).encode(), 1)


def unpack(data: bytes) -> list[PictureJob]:
    """What `pack` made."""
    values = json.loads(zlib.decompress(data))
    return [PictureJob(index, line, Call.from_dict(call), name, extra) for index, line, call, name, extra in values]


def units_of(jobs: Sequence[PictureJob], size: int) -> Iterator[list[PictureJob]]:
    """Jobs of equal settings, so many at a time."""
    for some in windows(jobs, WINDOW * size):
        yield from windows(sorted(some, key=group_of_job), size)


def run_on_ray(
    settings: BatchSettings,
    options: RayOptions,
    *,
    progress: Callable[[int | None, int], contextlib.AbstractContextManager[PictureBar]],
    say: Callable[[str], None],
) -> BatchResult:
    """Make what is missing of a batch on a cluster: the pictures that `run_batch` would make, whatever the number of actors.

    progress, say: as of `run_batch`.
    Raises ValueError in a sentence for what cannot begin, and where actors fail again and again.
    """
    source, model = prepared(settings)
    with cluster(options) as ray:
        actors, needs = resources(ray, settings.device, options)
        try:
            opened = ray.get(ray.remote(**needs)(describe).remote(settings, model, options))
        except ray.exceptions.RayTaskError as error:
            raise ValueError(_reason(error)) from None
        with opened_batch(settings, source, model, opened, say) as batch:
            total = expected_pictures(settings, source)
            with progress(total, len(batch.ledger.done)) as bar:
                jobs = batch.jobs()
                while some := list(islice(jobs, ROUND)):
                    pool = (PaintActor, (settings, model, batch.store.batch, options), actors, needs)
                    _round(batch, some, pool, bar)
                    batch.store.flush()
                    if batch.packer is not None:
                        batch.packer.pack_until(some[-1].index)
            batch.store.flush()
            if batch.packer is not None:
                batch.packer.pack_rest()
            return batch.result()


def _round(batch: OpenBatch, jobs: Sequence[PictureJob], pool: tuple, bar: PictureBar) -> None:
    """Have these jobs made, and write what comes."""
    data = ray_module("ray.data")
    actor, arguments, actors, needs = pool
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    by_index = {job.index: job for job in jobs}
    units = [{"units": pack(unit)} for unit in units_of(jobs, UNIT * batch.settings.batch_size)]
    made = data.from_items(units, override_num_blocks=len(units)).map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=1,
        batch_format="numpy",
        compute=data.ActorPoolStrategy(size=min(actors, len(units)), max_tasks_in_flight_per_actor=2),
        **needs,  # Ray Data restarts actors, and tries their units again, without a limit
    )
    try:
        for columns in made.iter_batches(batch_size=None, batch_format="numpy"):
            for index, file, reason in zip(columns["index"], columns["file"], columns["reason"], strict=True):
                job = by_index.pop(int(index), None)
                if job is None:  # of a unit that was handed over twice
                    continue
                if reason:
                    batch.failed_job(job, str(reason))
                else:
                    batch.put(Painted(job, bytes(file)))
                    bar.update(1)
    except ray_module("ray.exceptions").RayError as error:
        raise ValueError(_reason(error)) from None
    if by_index:
        raise ValueError(f"Ray ended without {len(by_index)} of {len(jobs)} pictures; the same command goes on.")


def _reason(error: Exception) -> str:
    """What an actor said last, out of the traceback that Ray makes of it."""
    said = _SAID.findall(re.sub(r"\x1b\[[\d;]*m", "", str(error)))
    kind, text = said[-1] if said else (type(error).__name__, "no reason is known")
    return text if kind == "ValueError" else f"An actor failed ({kind}: {text}); the same command goes on."
