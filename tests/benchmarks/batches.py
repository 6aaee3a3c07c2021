"""What it costs that no bit of a picture depends on its batch, and what differs without it.

    python -m tests.benchmarks.batches [--model default] [--repeats 7]

For 1, 2, 3 and 8 pictures: processor seconds of a call without and with `batch_invariant`, in turn, their medians; and the
largest difference, of 255, between a picture alone and in that batch, without and with.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from gen.generator import Generator

PROMPTS = ["a red heart", "a cat", "a dog on a yellow background", "a tree"] * 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for dtype in ("bfloat16", "float32"):
        generator = Generator.from_pretrained(given.model, "cpu", dtype)
        for count in (1, 2, 3, 8):
            report(generator, count, given.steps, given.repeats)


def report(generator: Generator, count: int, steps: int, repeats: int) -> None:
    def draw(number: int, invariant: bool) -> torch.Tensor:
        options = {"num_inference_steps": steps, "output_type": "pt", "progress": False, "batch_invariant": invariant}
        return generator(PROMPTS[:number], seed=0, **options).images

    seconds: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(repeats + 1):
        for invariant in (False, True) if turn % 2 else (True, False):
            start = time.process_time()
            draw(count, invariant)
            seconds[invariant].append(time.process_time() - start)
    plain, alike = (statistics.median(seconds[key][1:]) for key in (False, True))
    apart = [float((draw(count, key)[:1] - draw(1, key)).abs().max()) * 255 for key in (False, True)]
    print(
        f"{generator.name} {generator.dtype} {count} pictures: {plain:.3f} s, {alike:.3f} s ({alike / plain - 1:+.0%}); "
        f"apart by {apart[0]:.4f}, {apart[1]:.4f} of 255",
        flush=True,
    )


if __name__ == "__main__":
    main()
