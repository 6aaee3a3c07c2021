"""What loads nothing heavy: the package, help, a generator, a picture, each with what it must not have imported by then.

One process goes through the stages, from the lightest up, and tells after each which of its modules are there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gen.adapters import Adapter, write_adapter
from tests.gen.commands import ENV
from tests.gen.test_adapters_generator import DENOISER, lora

# title -> (what is run, modules that are late; with a dot at the end, those inside of one)
STAGES = {
    "import gen": (
        "import gen; gen.__version__",
        ["torch", "transformers", "diffusers", "peft", "nicegui", "fastapi", "PIL", "pydantic", "distill"],
    ),
    "help and version": (
        "from gen.cli.app import main\n"
        "for arguments in (['--help'], ['--version'], ['image', '--help'], ['imge'], ['lora', 'inspect', '--help']):\n"
        "    main(arguments)",
        ["torch", "rich", "PIL", "numpy", "transformers", "diffusers", "peft", "gen.pipeline.recipe"],
    ),
    "plain guidance": (
        "from gen.pipeline.guidance_stack import GuidanceStack; GuidanceStack.of(None, {}, None, None)",
        ["samplers.guidance.apg"],
    ),
    "a generator": (
        "from gen import Generator",
        ["transformers", "diffusers", "peft", "nicegui", "fastapi", "ray", "accelerate", "huggingface_hub", "distill", "rich"],
    ),
    "energies and commands": (
        "import gen.tasks.energies, gen.cli.image",
        [
            *[
                "gen.tasks.energies.",
                "gen.tasks.energy_guidance.task",
                "gen.tasks.restore.task",
                "gen.tasks.training_free.task",
            ],
            *["samplers.guidance.tfg", "samplers.guidance.energy", "samplers.guidance.inverse"],
            *["samplers.guidance.reference_batch", "distill", "transformers"],
        ],
    ),
    "a picture by a model of ours": (
        "generator = Generator.from_pretrained(MODEL, device='cpu')\ngenerator('a cat', num_inference_steps=1, progress=False)",
        ["transformers", "diffusers", "gen.models.bridge", "gen.pipeline.preview", "gen.adapters"],
    ),
    "an adapter": ("generator.load_adapter(ADAPTER)", ["transformers", "diffusers", "peft", "accelerate"]),
}

TELL = """
import contextlib, io, json, sys
stages, names, told = json.loads(sys.argv[1]), json.loads(sys.argv[2]), []
for code, late in stages:
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, names)
    told.append([name for name in sys.modules for one in late
                 if name.startswith(one) and (one.endswith(".") or name[len(one) : len(one) + 1] in ("", "."))])
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def loaded(tiny_model, tmp_path_factory) -> dict[str, list[str]]:
    """Title of a stage -> which of its late modules were there after it."""
    file = write_adapter(
        Adapter("style", lora(0, *DENOISER)), tmp_path_factory.mktemp("adapter") / "style.safetensors", "kohya"
    )
    given = [json.dumps([*STAGES.values()]), json.dumps({"MODEL": str(tiny_model), "ADAPTER": str(file)})]
    ran = subprocess.run([sys.executable, "-c", TELL, *given], capture_output=True, text=True, env=ENV, check=False)
    assert ran.returncode == 0, ran.stderr
    return dict(zip(STAGES, json.loads(ran.stdout), strict=True))


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_imported_before_it_is_used(loaded, stage):
    assert loaded[stage] == []


def test_the_late_modules_are_there():
    """A name that no module has would never be found loaded."""
    root = Path(__file__).parents[2]
    ours = {one for _, late in STAGES.values() for one in late if one.split(".")[0] in ("gen", "samplers", "distill")}
    assert all((root / one.replace(".", "/")).is_dir() or (root / f"{one.replace('.', '/')}.py").is_file() for one in ours)
