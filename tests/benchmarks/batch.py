"""Pictures per second of a batch, part by part.

    python -m tests.benchmarks.batch                 the network alone; with PNG and disk in a row; behind the queue; the
                                                     writer's share; on Ray: by one actor, by two, and what Ray costs
    python -m tests.benchmarks.batch --ray 4         by four; 0 leaves Ray out
    python -m tests.benchmarks.batch --png           time and size of a PNG by zlib's level and strategy, on the model's picture

Times mean something on a quiet machine only. They are of one process, in turns, medians over `--rounds`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from gen.batch.ledger import Ledger
from gen.batch.paint import Painter
from gen.batch.ray_pool import RayOptions, run_on_ray
from gen.batch.readers import open_source
from gen.batch.rows import PictureJob, RowReader
from gen.batch.settings import BatchSettings, Share
from gen.batch.store import PictureStore
from gen.generator import Generator
from gen.pipeline.png import RUNS

PROMPTS = Path(__file__).parents[2] / "docs" / "prompts.txt"


@contextlib.contextmanager
def no_bar(total: int | None, there: int):
    class Bar:
        def update(self, pictures: int) -> None: ...

    yield Bar()


def seconds(run: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def paint(settings: BatchSettings, generator: Generator, jobs: list[PictureJob], folder: Path, threads: int | None) -> None:
    """Make pictures, and write them by so many threads; None: throw them away."""
    (folder / ".batch").mkdir(parents=True)
    ledger = Ledger(folder, Share())
    store = PictureStore(folder, ledger, "benchmark", threads=threads or 0)
    Painter(settings, generator, "benchmark").paint(jobs, (lambda one: None) if threads is None else store.put, lambda *_: None)
    store.close()
    ledger.close()


def rates(args: argparse.Namespace) -> None:
    folder = Path(tempfile.mkdtemp())
    source = folder / "prompts.txt"
    prompts = PROMPTS.read_text().splitlines()
    source.write_text("\n".join(prompts[i % len(prompts)] for i in range(args.pictures)))
    settings = BatchSettings(
        str(source), folder / "out", seed=0, model=args.model, device=args.device, batch_size=args.batch_size
    )
    generator = Generator.from_pretrained(args.model, args.device)
    jobs = [job for job in RowReader(settings, open_source(str(source), folder), 0, args.model) if isinstance(job, PictureJob)]
    kinds = {"network alone": None, "PNG and disk after each": 0, "behind the queue": 2}
    times: dict[str, list[float]] = {name: [] for name in kinds}
    paint(settings, generator, jobs[: args.batch_size], folder / "warm", None)
    for number in range(args.rounds):
        for name, threads in kinds.items():
            out = folder / f"{number}-{threads}"
            times[name].append(seconds(lambda out=out, threads=threads: paint(settings, generator, jobs, out, threads)))
    took = {name: statistics.median(values) for name, values in times.items()}
    for name, value in took.items():
        print(f"{name:28} {len(jobs) / value:8.2f} pictures/s")
    alone, queued, in_a_row = took["network alone"], took["behind the queue"], took["PNG and disk after each"]
    print(f"{'the writer, of the time':28} {1 - alone / queued:8.1%} behind the queue, {1 - alone / in_a_row:.1%} in a row")
    if args.ray and importlib.util.find_spec("ray") is None:
        print("Ray is not installed here.")
    elif args.ray:
        ray_rates(settings, source, len(jobs), queued, args.ray)


def ray_rates(settings: BatchSettings, source: Path, pictures: int, one_process: float, actors: int) -> None:
    """Of one actor with all threads, beside one process that took so many seconds; and of several with one each."""
    for count, threads in ((1, torch.get_num_threads()), (actors, 1)):
        options = RayOptions(actors=count, cpus_per_actor=threads)
        few, all_of_it = (
            BatchSettings(**{**vars(settings), "source": str(rows), "output": source.with_name(f"{name}-{count}-{threads}")})
            for name, rows in (("few", _first(source, 1)), ("all", source))
        )
        begin = seconds(lambda few=few, options=options: run_on_ray(few, options, progress=no_bar, say=print))
        whole = seconds(lambda all_=all_of_it, options=options: run_on_ray(all_, options, progress=no_bar, say=print))
        title = f"Ray, {count} actor{'s' * (count > 1)}, {threads} thread{'s' * (threads > 1)}"
        print(f"{title:28} {begin:8.1f} s for one picture, begin and end included")
        if whole <= begin:
            print(f"{'  beyond that':28} too few pictures to tell; give more --pictures")
            continue
        beyond = (whole - begin) * pictures / max(pictures - 1, 1)
        overhead = f", {beyond / one_process - 1:.1%} more time than one process" if count == 1 else ""
        print(f"{'  beyond that':28} {pictures / beyond:8.2f} pictures/s{overhead}")


def _first(source: Path, lines: int) -> Path:
    path = source.with_name("first.txt")
    path.write_text("\n".join(source.read_text().splitlines()[:lines]))
    return path


def png_levels(args: argparse.Namespace) -> None:
    picture = Generator.from_pretrained(args.model, args.device)("a purple car", seed=0, progress=False).images[0]
    large = picture.resize((1024, 1024), Image.Resampling.BICUBIC)
    for shown, image in (("as drawn", picture), ("at 1024 x 1024", large)):
        for way in (*({"compress_level": level} for level in (0, 1, 2, 3, 4, 6, 9)), RUNS):
            buffer = io.BytesIO()
            times = []
            for _ in range(args.rounds):
                buffer = io.BytesIO()
                times.append(seconds(lambda buffer=buffer, image=image, way=way: image.save(buffer, "PNG", **way)))
            said = ", ".join(f"{name} {value}" for name, value in way.items())
            print(f"{shown:16} {said}: {1000 * statistics.median(times):8.2f} ms {buffer.tell() / 1024:8.1f} KiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fast")
    parser.add_argument("--device", default=None)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ray", type=int, default=2, metavar="ACTORS")
    parser.add_argument("--png", action="store_true")
    args = parser.parse_args()
    (png_levels if args.png else rates)(args)


if __name__ == "__main__":
    main()
