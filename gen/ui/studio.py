"""What one `fewstep ui` has for all its pages: the queue, the gallery, models that stay open, and what can be chosen."""

from __future__ import annotations

import functools
import io
import math
import secrets
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gen.calls.call import Call
from gen.calls.errors import sentence
from gen.calls.foreign import call_of_picture
from gen.calls.run import run
from gen.io.errors import printable
from gen.models.control_names import NAMED, SHIPPED
from gen.ui.forms import Catalogue, read_catalogue
from gen.ui.gallery import PNG, FileKind, Gallery
from gen.ui.jobs import DrawJob, JobQueue, JobWatch
from gen.ui.models import AUTOMATIC, PACKAGED, WarmModels, adapters_in, chosen_model, controlnets_in, ip_adapters_in, models_in
from gen.ui.preferences import Preferences
from gen.ui.replays import replay
from gen.ui.sizes import sizes_of

LORAS = "loras"  # in the gallery's folder, where no other was named
MOST_PIXELS = 1 << 26  # of a finished picture: 8192 x 8192
MOST_WORK = (
    2560  # of a picture, in pictures of the model's own size in 20 guided steps: ten times what a server's request may have
)
TRAINING_ENDS = 65.0  # seconds that one has to save its step
_listening = threading.local()


@dataclass
class Studio:
    """output: the gallery's folder.
    models_dir, lora_dir: where further models and adapters are.
    model: the one that the page begins with, `AUTOMATIC` for fast or default as a call asks.
    energies: rows of other packages (`gen.cli.energies`).
    """

    output: Path
    models_dir: Path | None = None
    lora_dir: Path | None = None
    model: str = AUTOMATIC
    energies: Mapping[str, Any] = field(default_factory=dict)
    catalogue: Catalogue | None = None
    problem: str = ""  # why it is not ready, if it never will be

    def __post_init__(self) -> None:
        for folder in (self.models_dir, self.lora_dir):
            if folder is not None and not folder.is_dir():
                raise ValueError(f"{folder} is not a folder; give one that is there.")
        self.gallery = Gallery(self.output)
        self.preferences = Preferences(self.gallery.folder)
        self.warm = WarmModels(prepare=self._add_energies)
        self.jobs = JobQueue(self._work)
        self.trainings = JobQueue(self._train)  # of their own: they are processes beside, and drawing goes on
        self.ready = threading.Event()

    def begin(self) -> None:
        """Load torch, read the registries and open the first model, beside whatever else goes on."""
        threading.Thread(target=self._begin, name="opening", daemon=True).start()

    def _begin(self) -> None:
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _tell
        try:
            self.catalogue = read_catalogue(self.energies)
            self.warm.get("fast" if self.model == AUTOMATIC else self.model)
        except Exception as error:
            self.problem = sentence(error)
        self.ready.set()

    # ---- what can be chosen ----

    def models(self) -> dict[str, str]:
        """What `Generator.from_pretrained` takes -> name on the page."""
        names = {AUTOMATIC: "automatic", **PACKAGED, **{path: name for name, path in models_in(self.models_dir).items()}}
        return names if self.model in names else {**names, self.model: Path(self.model).name}

    @property
    def loras(self) -> Path:
        """Where LoRAs that are taught here go."""
        return self.lora_dir or self.gallery.folder / LORAS

    def adapters(self) -> dict[str, str]:
        """Name -> file of every adapter in the folder."""
        return adapters_in(self.loras if self.loras.is_dir() else None)

    def controlnets(self) -> dict[str, str]:
        """Name -> folder of every ControlNet among the models, and -> name of those that come with the default model."""
        shipped = NAMED if SHIPPED.is_dir() else ()
        return {**{f"{name}, of the default model": name for name in shipped}, **controlnets_in(self.models_dir)}

    def files(self) -> dict[str, str]:
        """Path -> name of everything in the folder of models, for options that name a model of another kind."""
        found = () if self.models_dir is None else sorted(self.models_dir.iterdir())
        return {str(path): path.name for path in found if not path.name.startswith(".")}

    def ip_adapters(self) -> dict[str, str]:
        """Name -> file of every IP-Adapter among the models."""
        return ip_adapters_in(self.models_dir)

    def takes(self, model: str, what: str) -> bool | None:
        """Does a model take "control" or an "image_prompt"? None of one that is not open, as long as nothing is known."""
        if model in (AUTOMATIC, *PACKAGED):
            return what == "control" and model in (AUTOMATIC, "default")
        if not self.warm.is_open(model):
            return None
        network = self.warm.get(model).network
        return bool(getattr(network, {"control": "controlled_by", "image_prompt": "takes_image_prompts"}[what], False))

    def known_model(self, name: str) -> str:
        """What opens the model of a recipe, by its name: one of those on the page, `AUTOMATIC` if none has it. A file from
        outside must not choose what is opened."""
        if name in PACKAGED:
            return name
        paths = [path for path in self.models() if path not in (AUTOMATIC, *PACKAGED) and _name_of_model(path) == name]
        return paths[0] if paths else AUTOMATIC

    def adapter_files(self) -> dict[str, Path]:
        """sha256 -> file of every adapter in the folder."""
        from gen.io.digests import file_digest

        return {file_digest(path): Path(path) for path in self.adapters().values()}

    def usual(self, model: str) -> dict[str, str]:
        """What a model takes where the page says nothing, by field; of one that is not open nothing is known."""
        name = "fast" if model == AUTOMATIC else model
        if not self.warm.is_open(name):
            return {}
        config = self.warm.get(name).config
        side = str(config.sample_size)
        usual = {"steps": str(config.defaults.num_inference_steps), "scale": f"{config.defaults.guidance_scale:g}"}
        return {**usual, "width": side, "height": side}

    def sizes(self, model: str) -> dict[str, tuple[int, int]]:
        """Shape -> (width, height) of pictures that a model draws; of one that is not open nothing is known."""
        name = "fast" if model == AUTOMATIC else model
        if not self.warm.is_open(name):
            return {}
        generator = self.warm.get(name)
        return sizes_of(generator.config.sample_size, generator.factor * generator.network.config.patch)

    # ---- pictures ----

    def call_of(self, name: str) -> tuple[Call, tuple[str, ...]]:
        """(a call that makes a picture of the gallery again, what its recipe does not hold)."""
        call, missing = self.call_of_file(self.gallery.path(name))
        return replace(call, model=self.known_model(call.model)), missing

    def call_of_file(self, path: Path) -> tuple[Call, tuple[str, ...]]:
        """Likewise of any file."""
        return call_of_picture(path, self.adapter_files())

    def replay(self, name: str) -> str:
        """Make a picture of the gallery again, beside the queue; a sentence says whether it is the same."""
        self.ready.wait()
        path = self.gallery.path(name)
        recipe = self.gallery.recipe(name)
        model = self.known_model(recipe.model.name)
        if model == AUTOMATIC:
            raise ValueError(
                f"It was made with the model {printable(recipe.model.name)!r}, which is not among those of the page."
            )
        generator = self.warm.get(model)
        from gen.io.threads import lock_of

        with lock_of(generator.network):  # its adapters change
            return replay(generator, path, self.adapter_files())

    # ---- jobs ----

    def settled(self, call: Call) -> Call:
        """With a seed and a model where a call says none, and the folder of the LoRAs that its prompt names: what makes its
        pictures again is then known."""
        if self.lora_dir is not None and "<lora:" in str(call.arguments.get("prompt", "")):
            call = call.with_arguments(lora_dir=str(self.lora_dir))
        if call.arguments.get("seed") is None:
            call = call.with_arguments(seed=secrets.randbelow(1 << 32))
        return replace(call, model=chosen_model(call)) if call.model == AUTOMATIC else call

    def submit(self, call: Call, label: str = "", kind: FileKind = PNG) -> DrawJob:
        """Put a call into the queue. kind: of the files that its pictures are kept in."""
        call = self.settled(call)
        if not label:
            subject = call.arguments.get("prompt") or call.arguments.get("class_labels") or ""
            label = ", ".join(map(str, subject)) if isinstance(subject, list) else str(subject)
        return self.jobs.add(call, label or "without a prompt", kind)

    def close(self) -> None:
        """End the queue; a picture under way is given up."""
        self.jobs.close()
        self.trainings.close(TRAINING_ENDS)

    def opened(self, model: str, watch: JobWatch) -> Any:
        """The `Generator` of a model for a job, which says so where it has to wait for it."""
        if not self.ready.is_set() or not self.warm.is_open(model):
            watch.stage("Opening the model")
        self.ready.wait()
        if self.problem and self.catalogue is None:
            raise ValueError(self.problem)
        generator = self.warm.get(model)
        generator.allowed = functools.partial(_check_work, generator)
        watch.stage("Beginning")
        return generator

    def _work(self, call: Any, watch: JobWatch) -> None:
        """A `Call`, or work of several of them, which has a method `work(studio, watch)`."""
        if not isinstance(call, Call):
            with notes_to(watch):
                call.work(self, watch)
            return
        generator = self.opened(call.model, watch)
        from gen.io.threads import lock_of

        call = fitted(call, generator)
        draw = _Drawing(call, generator, watch, self.gallery)
        with notes_to(watch), lock_of(generator.network):  # a replay would change its adapters
            run(call, generator, on_step=draw.step, on_images=draw.finished)

    def _train(self, job: Any, watch: JobWatch) -> None:
        job.work(self, watch)

    def _add_energies(self, generator: Any) -> None:
        from gen.tasks.energies import EnergyInfo

        for name, row in self.energies.items():
            generator.energies[name] = EnergyInfo(name, *row)


def _check_work(generator: Any, items: Sequence[Any], settings: Any) -> None:
    """ValueError for a picture that would take hours or all of the memory, before it is begun; counted as the server counts."""
    from gen.serve.limits import WorkLimit

    WorkLimit(MOST_PIXELS, MOST_WORK).check(generator, items, settings, 1)


def _name_of_model(path: str) -> str:
    """What recipes call the model at a path."""
    return Path(path).resolve().name if Path(path).is_dir() else Path(path).name.split(".safetensors")[0].removesuffix(".gguf")


class _Drawing:
    """The callbacks of one call: they count its work, keep its pictures and end it where the user says so."""

    def __init__(self, call: Call, generator: Any, watch: JobWatch, gallery: Gallery):
        self.watch, self.gallery = watch, gallery
        arguments = call.arguments
        subject = arguments.get("prompt", arguments.get("class_labels"))
        subjects = len(subject) if isinstance(subject, list) and call.method != "panorama" else 1
        pictures = subjects * arguments.get("num_images_per_prompt", 1)
        self.batches = math.ceil(pictures / (arguments.get("batch_size") or 8))
        self.steps = expected_steps(call, generator)
        self.done = 0

    def step(self, generator: Any, step: int, t: float, tensors: Mapping[str, Any]) -> None:
        """After every step."""
        if self.watch.stopped:
            generator.interrupt = True
            return
        steps = max(self.steps, step + 1)
        preview = io.BytesIO()
        generator.preview(tensors["denoised"][:1])[0].save(preview, "PNG")
        share = (self.done + (step + 1) / steps) / max(self.batches, self.done + 1)
        self.watch.step(step + 1, steps, share, preview.getvalue())

    def finished(self, batch: Any) -> None:
        """After every batch. A picture that was stopped on its way is not kept."""
        self.done += 1
        for image, recipe in zip(batch.images, batch.recipes, strict=True):
            if not (batch.interrupted and recipe.stopped_at is not None):
                self.watch.made(self.gallery.save(image, recipe, self.watch.kind))


def fitted(call: Call, generator: Any) -> Call:
    """The call with its prompt as what a model is asked for: the name of a class, or nothing, where it reads no text."""
    if generator.text_encoder is not None or call.method != "image" or getattr(generator.network, "whole", False):
        return call
    prompt = call.arguments.get("prompt") or None
    return call.with_arguments(prompt=None, class_labels=(prompt or -1) if generator.classes else None)


def expected_steps(call: Call, generator: Any) -> int:
    """Steps of a picture, as far as they are known before it is begun: a solver may choose its own."""
    steps = call.arguments.get("num_inference_steps") or generator.config.defaults.num_inference_steps
    strength = call.arguments.get("strength", 1.0 if "mask" in call.arguments else 0.8)
    if "image" in call.arguments and call.method in ("image", "upscale"):
        steps = max(1, math.ceil(steps * (strength if call.method == "image" else call.arguments.get("strength", 0.4))))
    return steps


@contextmanager
def notes_to(watch: JobWatch) -> Iterator[None]:
    """What this thread warns of, as notes of a job."""
    _listening.watch = watch
    try:
        yield
    finally:
        _listening.watch = None


def _tell(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """In the place of `warnings.showwarning`: a user's warning goes to the job of its thread."""
    watch = getattr(_listening, "watch", None)
    if watch is not None and issubclass(category, UserWarning):
        watch.note(str(message))
