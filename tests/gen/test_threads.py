"""Threads: models opened together, one Generator called by several, files written under one name."""

from __future__ import annotations

import copy
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gen.adapters import Adapter, write_adapter
from gen.generator import Generator
from gen.io.threads import all_of, lock_of
from gen.io.weights import CheckpointError, read_json, write_json, write_weights
from gen.models.folder import write_model
from gen.nn.initialisation import SLACK, TooLarge, no_initialisation, no_larger_than
from samplers.cache.registry import CACHES
from tests.gen.test_adapters_generator import DENOISER, TEXT, lora

THREADS = 6


@pytest.fixture(autouse=True)
def often():
    """Threads that change places as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def together(works):
    """What every function gives, called in threads that begin at once; an error of one is raised."""
    ready = threading.Barrier(THREADS)

    def start(work):
        ready.wait(60)
        return work()

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(start, works))


def test_initialisation_is_skipped_in_its_own_thread_only():
    inside, leave = threading.Event(), threading.Event()
    before = dict(vars(nn.init))

    def skipping():
        with no_initialisation():
            inside.set()
            leave.wait(60)
            weight = torch.full((4, 4), 7.0)
            nn.init.normal_(weight)
            nn.init.trunc_normal_(nn.init.uniform_(weight))
            return weight

    with ThreadPoolExecutor(1) as pool:
        skipped = pool.submit(skipping)
        inside.wait(60)
        assert dict(vars(nn.init)) == before
        assert nn.Linear(256, 256).weight.std() > 0.01  # drawn as ever beside it
        leave.set()
        assert not skipped.result().any()


def test_models_are_opened_in_threads(tiny_model):
    before = dict(vars(nn.init))
    opened = together([lambda: Generator.from_pretrained(tiny_model, "cpu", "float32")] * THREADS)
    assert dict(vars(nn.init)) == before
    first = opened[0].network.state_dict()
    for other in opened[1:]:
        assert all(torch.equal(value, first[name]) for name, value in other.network.state_dict().items())


def picture(side=32):
    return np.linspace(0, 255, side * side * 3).reshape(side, side, 3).astype(np.uint8)


def calls(generator):
    """A call of every kind, by name."""
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 16:] = 255
    common = {"num_inference_steps": 3, "output_type": "pt", "progress": False}
    layout = {"background": "a cat", "regions": [{"prompt": "a dog", "box": [0, 0, 0.5, 1]}]}

    def stopped():
        def stop(one, step, t, given):
            one.interrupt = step == 1

        made = generator("a dog", seed=4, callback_on_step_end=stop, **common)
        assert made.interrupted and made.recipes[0].stopped_at == 2
        return made

    def replayed():
        return generator.replay(generator("a cat", seed=9, **common).recipes[0], "pt", False)

    return {
        "plain": lambda: generator(["a cat", "a dog"], seed=1, **common),
        "noise": lambda: generator("a cat", seed=2, sampler="euler_a", **common),
        "rules": lambda: generator("a red heart", seed=3, guidance="apg + rescale", negative_prompt="blurry", **common),
        "cache": lambda: generator("a red heart", seed=3, cache="reuse", **common),
        "stopped": stopped,
        "edit": lambda: generator("a dog", seed=5, image=picture(), mask=mask, **common),
        "guide": lambda: generator("a dog", seed=5, guide=lambda images, condition: images.mean((1, 2, 3)), **common),
        "layout": lambda: generator(layout=layout, seed=6, **common),
        "views": lambda: generator.ambiguous("a cat", ["a dog"], seed=7, **common),
        "panorama": lambda: generator.panorama("the moon", width=64, height=32, window=32, seed=8, **common),
        "restore": lambda: generator.restore(picture(16), "superres", prompt="a cat", seed=8, **common),
        "replayed": replayed,
    }


def test_one_generator_in_threads_is_as_in_turn(tiny_model):
    generator = Generator.from_pretrained(tiny_model, "cpu", "float32")
    expected = {name: call().images for name, call in calls(generator).items()}
    works = [(name, call) for _ in range(3) for name, call in calls(generator).items()]
    found = together([call for _, call in works])
    for (name, _), made in zip(works, found, strict=True):
        assert torch.equal(made.images, expected[name]), name


def hooked(generator):
    """Calls that reach into the network or the text encoder: adapters, learned words, hooks of rules, caches and tweaks."""
    common = {"num_inference_steps": 3, "output_type": "pt", "progress": False}
    options = {
        "adapters": {},
        "composite": {"composition": "composite"},
        "switch": {"composition": "switch"},
        "regions": {"regions": {"style": np.tri(32, dtype=np.uint8) * 255}},
        "learned word": {"prompt": "a <zib> cat"},
        "aesthetic": {"aesthetic": "a red heart"},
        "reference": {"reference": picture()},
        "negtome": {"negtome": picture()},
        "greedy": {"greedy": "brightness", "greedy_options": {"iterations": 1}},
        **{f"rule {name}": {"guidance": name} for name in ("pag", "slg", "seg")},
        **{f"cache {name}": {"cache": name} for name in CACHES},
    }
    return {
        name: lambda given=given: generator(**{"prompt": "a cat", "seed": 3} | common | given)
        for name, given in options.items()
    }


def test_adapters_words_and_hooks_in_threads_are_as_in_turn(tiny_model, tmp_path):
    generator = Generator.from_pretrained(tiny_model, "cpu", "float32")
    words = {"<zib>": {"text_encoder": torch.ones(1, 16)}}
    for number, adapter in enumerate((Adapter("style", lora(1, *DENOISER, *TEXT)), Adapter("other", lora(2, *DENOISER)),
                                      Adapter("word", {}, words=words))):  # fmt: skip
        generator.load_adapter(
            write_adapter(adapter, tmp_path / f"{number}.safetensors", "diffusers"), adapter.name, weight=0.5
        )
    expected = {name: call().images for name, call in hooked(generator).items()}
    assert len({images.numpy().tobytes() for images in expected.values()}) > 10  # they do different things
    works = [(name, call) for _ in range(2) for name, call in hooked(generator).items()]
    works += works[: -len(works) % THREADS]
    found = together([call for _, call in works])
    for (name, _), made in zip(works, found, strict=True):
        assert torch.equal(made.images, expected[name]), name


def test_packed_weights_serve_every_thread():
    """The packaged student in bfloat16, whose linear layers keep a second copy for the length of a call."""
    generator = Generator.from_pretrained("fast", "cpu", "bfloat16")

    def call(seed):
        return generator("a red heart", seed=seed, num_inference_steps=1, output_type="pt", progress=False).images

    expected = [call(seed) for seed in range(THREADS)]
    found = together([lambda seed=seed % THREADS: call(seed) for seed in range(2 * THREADS)])
    assert all(torch.equal(images, expected[seed % THREADS]) for seed, images in enumerate(found))


def test_generators_of_one_network_wait_for_each_other(tiny_model):
    one = Generator.from_pretrained(tiny_model, "cpu", "float32")
    two = Generator(one.config, one.network, one.autoencoder, one.text_encoder, device="cpu", dtype="float32")
    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with lock_of(one.network), all_of([two.network, one.network]):  # the same lock, which its thread may take again
            waiting = pool.submit(lambda: (two("a cat", seed=1, num_inference_steps=1, progress=False), done.set()))
            assert one("a cat", seed=1, num_inference_steps=1, progress=False).images
            assert not done.is_set()
        waiting.result(60)
    assert done.is_set()
    assert copy.deepcopy(one.network) is not one.network  # no lock goes with the network


def test_two_models_that_finish_one_anothers_pictures_wait_for_no_one(tiny_model):
    """Each thread is given the time to begin with its own model before the other's is needed."""
    first, second = (Generator.from_pretrained(tiny_model, "cpu", "float32") for _ in range(2))
    begun = [threading.Event(), threading.Event()]
    made = []

    def draw(number, model, other):
        def wait(*given):
            begun[number].set()
            begun[1 - number].wait(0.2)
            return {}

        call = {
            "seed": 1,
            "num_inference_steps": 4,
            "refiner": other,
            "refiner_at": 0.5,
            "output_type": "pt",
            "progress": False,
        }
        made.append(model("a cat", callback_on_step_end=wait, **call).images)

    threads = [
        threading.Thread(target=draw, args=(number, *models), daemon=True)
        for number, models in enumerate([(first, second), (second, first)])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(made) == 2 and torch.equal(*made)


def test_files_of_one_name_are_written_in_threads(tmp_path):
    weights, place = {"a": torch.arange(5000.0)}, tmp_path / "w.safetensors"
    together([lambda: write_weights(place, weights)] * (5 * THREADS))
    together([lambda: write_json(tmp_path / "c.json", {"a": 1})] * (5 * THREADS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.json", "w.safetensors"]


def test_pictures_of_one_name_are_saved_once(tiny, tmp_path):
    from gen.io.errors import RecipeError
    from gen.pipeline.png import save_image

    made = tiny("a cat", seed=1, num_inference_steps=1, progress=False)

    def save():
        try:
            return save_image(made.images[0], tmp_path / "cat.png", made.recipes[0])
        except RecipeError as error:
            assert "exists already" in str(error)
            return None

    assert sum(path is not None for path in together([save] * (3 * THREADS))) == 3 * THREADS - (3 * THREADS - 1)
    assert [path.name for path in tmp_path.iterdir()] == ["cat.png"]


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("denoiser", "dim", 1 << 20),
        ("denoiser", "depth", 1 << 20),
        ("denoiser", "text_tokens", 1 << 24),
        ("text_encoder", "dim", 1 << 14),
        ("text_encoder", "vocab_size", 1_000_000),
        ("autoencoder", "refine_width", 1 << 30),
        ("autoencoder", "channels", 1 << 20),
    ],
)
def test_a_config_larger_than_its_file_allocates_nothing(tiny_model, tmp_path, part, key, value):
    import shutil

    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = read_json(folder / part / "config.json")
    write_json(folder / part / "config.json", {**config, key: value, **({"hidden": 1 << 16} if key == "vocab_size" else {})})
    with pytest.raises(CheckpointError, match=r"larger than its weights|does not fit|must") as refused:
        Generator.from_pretrained(folder, device="cpu", dtype="float32")
    assert str(folder) in str(refused.value)


def test_building_stops_at_the_limit():
    made = []
    with pytest.raises(TooLarge, match=r"asks for a tensor \(1073741824, 1024\)"), no_larger_than({"a": (10, 10)}):
        made.append(torch.empty(SLACK))
        made.append(torch.empty(1 << 30, 1 << 10))
    assert len(made) == 1


def test_saving_a_model_in_threads_leaves_one(tiny, tmp_path):
    def save():
        try:
            write_model(tmp_path / "model", tiny.config, tiny.network, tiny.autoencoder, tiny.text_encoder)
        except OSError:  # another thread's rename came between; its model is the one that stays
            return

    together([save] * THREADS)
    assert Generator.from_pretrained(tmp_path / "model", "cpu", "float32")("a cat", seed=1, progress=False).images
