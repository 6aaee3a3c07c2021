"""What users bring of their own: networks, energies, guidance rules, caches, and the files that register them."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from gen.io import user_code
from gen.io.user_code import check_imported, import_file, imported
from gen.io.weights import CheckpointError, write_json
from gen.models.components import load_component, save_component
from gen.nn.registry import COMPONENTS, OWN_NETWORKS, Config, build, config_of, register_network
from gen.pipeline.png import read_recipe
from gen.pipeline.recipe import Recipe
from gen.tasks import energies
from gen.tasks.energies import energy_info, get_energy, register_energy
from samplers.guidance.cfg import ClassifierFree
from tests.gen.commands import ENV

CALL = {"seed": 3, "num_inference_steps": 2, "sampler": "euler", "progress": False, "output_type": "latent"}


class SmallConfig(Config):
    width: int = 4


class Small(nn.Module):
    def __init__(self, config: SmallConfig):
        super().__init__()
        self.config = config
        self.layer = nn.Linear(config.width, config.width)


class UViT(nn.Module):
    """Named like a network of the table."""

    config = SmallConfig()


@pytest.fixture
def tables():
    """The tables of this process, as they were before once the test is over."""
    before = [(table, dict(table)) for table in (COMPONENTS, energies._registered, user_code._modules, user_code._imported)]
    own = set(OWN_NETWORKS)
    yield
    OWN_NETWORKS.intersection_update(own)
    for table, rows in before:
        table.clear()
        table.update(rows)


def test_a_network_of_ones_own_is_built_saved_and_opened_by_its_type(tables, tmp_path):
    register_network("small", Small, SmallConfig)
    register_network("small", Small, SmallConfig)  # once more is no clash
    network = build({"type": "small", "width": 3})
    assert config_of(network) == {"type": "small", "width": 3}
    save_component(network, tmp_path / "small")
    opened = load_component(tmp_path / "small", "small")
    assert isinstance(opened, Small) and torch.equal(opened.layer.weight, network.layer.weight)
    with pytest.raises(ValueError, match="The network type 'dit' exists already; choose another name"):
        register_network("dit", Small, SmallConfig)
    with pytest.raises(ValueError, match="give a name of letters"):
        register_network("my.net", Small, SmallConfig)


def test_a_file_can_name_only_what_the_process_knows(tmp_path):
    write_json(tmp_path / "config.json", {"type": "small", "width": 3})
    (tmp_path / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
    with pytest.raises(CheckpointError, match="Unknown network type 'small'"):
        load_component(tmp_path)


def test_a_class_is_known_by_itself_and_not_by_its_name():
    with pytest.raises(ValueError, match=r"UViT of tests\.gen\.test_doors is no network that has a type name"):
        config_of(UViT())


def test_an_energy_of_ones_own_has_a_name_and_options(tables, tiny):
    class Dark:
        def __init__(self, strength: float = 1.0):
            self.strength = strength

        def __call__(self, images, condition):
            return -self.strength * images.mean((1, 2, 3))

    register_energy("darkness", Dark, "dark pictures", ("strength",))
    assert get_energy(energy_info("darkness"), strength=2.0).strength == 2.0
    call = {**CALL, "guide_strength": 2.0, "guide_method": "dps"}
    named = tiny("a cat", **call, guide="darkness", guide_options={"strength": 3.0})
    assert torch.equal(named.images, tiny("a cat", **call, guide=Dark(3.0)).images)
    assert named.recipes[0].guide.energy == "" and named.recipes[0].unrecorded  # no recipe brings it about
    with pytest.raises(ValueError, match="The energy 'color' exists already, as 'colour'"):
        register_energy("color", Dark, "")


def test_a_guidance_rule_and_a_cache_may_be_functions(tiny):
    seen = []

    def rule(denoiser, scale, negative, interval):
        seen.append((scale, negative, interval))
        return ClassifierFree(denoiser, scale, negative, interval)

    def cache(denoiser):
        seen.append("cache")
        return denoiser

    call = {**CALL, "guidance_scale": 3.0}
    plain, own = tiny("a cat", **call), tiny("a cat", **call, guidance=rule, cache=cache)
    assert torch.equal(plain.images, own.images)
    assert seen[-2:] == ["cache", (3.0, None, (-math.inf, math.inf))]
    recipe = own.recipes[0]
    assert recipe.unrecorded == ("guidance", "cache") and (recipe.guidance, recipe.cache) == ("rule", "cache")
    seen.clear()
    tiny("", **call, guidance=rule, cache=cache)  # nothing to guide to
    assert not [one for one in seen if one != "cache" and one[1] is not None and one[0] != 3.0]
    with pytest.raises(ValueError, match="guidance is a function of your own, which takes no guidance_options"):
        tiny("a cat", **call, guidance=rule, guidance_options={"momentum": 1.0})
    with pytest.raises(ValueError, match="cache is a function of your own"):
        tiny("a cat", **call, cache=cache, cache_options={"every": 2})


METHODS = """
from gen.tasks.energies import register_energy

def grey(images, condition):
    return -(images - 0.5).square().mean((1, 2, 3))

register_energy("greyness", lambda: grey, "grey pictures")
"""


def test_a_file_is_run_once_and_known_by_its_content(tables, tmp_path):
    file = tmp_path / "my_methods.py"
    file.write_text(METHODS)
    module = import_file(file)
    assert module is import_file(file) and energy_info("greyness").description == "grey pictures"
    digest = hashlib.sha256(METHODS.encode()).hexdigest()
    assert imported() == {"my_methods.py": digest}
    check_imported({"renamed.py": digest})  # the content counts
    with pytest.raises(
        ValueError, match=r"with my_methods\.py \(sha256 0{12}…\), which differs from the my_methods\.py imported"
    ):
        check_imported({"my_methods.py": "0" * 64})
    with pytest.raises(ValueError, match=r"with other\.py .*, which is not imported; give that file with --import"):
        check_imported({"other.py": "0" * 64})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "my_methods.py").write_text("x = 1")
    with pytest.raises(ValueError, match=r"another file named my_methods\.py was imported before"):
        import_file(tmp_path / "b" / "my_methods.py")


@pytest.mark.parametrize(("name", "text", "message"), [
    ("none.py", None, "it is not a file"),
    ("methods.txt", "x = 1", "it is not Python source"),
    ("broken.py", "x = 1 / 0", "failed: ZeroDivisionError: division by zero"),
    ("unclosed.py", "x = (", "failed: SyntaxError"),
])  # fmt: skip
def test_files_that_cannot_be_imported_are_sentences(tables, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        import_file(tmp_path / name)
    assert name not in imported()


def test_recipes_say_what_was_imported_and_a_replay_asks_for_it(tables, tiny, tmp_path):
    assert tiny("a cat", **CALL).recipes[0].imports is None
    (tmp_path / "mine.py").write_text("x = 1")
    import_file(tmp_path / "mine.py")
    made = tiny("a cat", **CALL)
    recipe = Recipe.from_json(made.recipes[0].to_json())
    assert recipe.imports == {"mine.py": hashlib.sha256(b"x = 1").hexdigest()}
    assert torch.equal(tiny.replay(recipe, "latent", progress=False).images, made.images)
    user_code._imported.clear()
    with pytest.raises(ValueError, match=r"The picture was made with mine\.py"):
        tiny.replay(recipe, "latent", progress=False)


def test_the_command_line_imports(tables, fewstep, tmp_path):
    """A process that imports makes a picture; this one, which has not, is told what it lacks."""
    (tmp_path / "my_methods.py").write_text(METHODS)
    asked = ["-q", "--guide", "greyness"]
    command = ["image", "a cat", "--seed", "1", "--steps", "1", *asked, "-o", "a.png"]
    code, _, err = fewstep(*command)
    assert code == 2 and "Unknown energy 'greyness'" in err
    program = [sys.executable, "-m", "gen", *command, "--import", "my_methods.py"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, env=ENV)
    assert done.returncode == 0, done.stderr
    assert read_recipe(tmp_path / "a.png").imports == {"my_methods.py": hashlib.sha256(METHODS.encode()).hexdigest()}
    code, _, err = fewstep("replay", "a.png", *asked)
    assert code == 2 and "give that file with --import" in err
    assert fewstep("replay", "a.png", *asked, "--import", "my_methods.py")[0] == 0
