"""Settings against one another: every picture is the one of its own call, and what cannot be is said first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from gen.calls.axes import keyword_kinds, read_axis
from gen.calls.sweep import Sweep
from gen.cli import app as cli
from gen.generator import Generator
from gen.pipeline.png import read_recipe
from gen.pipeline.recipe import Recipe

BASE = {"num_inference_steps": 2, "seed": 3, "progress": False}


def made_by(generator, prompts, vary, **call):
    sweep = Sweep.of(prompts, vary, {"num_inference_steps": 2, **call})
    sweep.check(generator)
    return sweep, list(sweep.run(generator))


def same(image: Image.Image, other: Image.Image) -> bool:
    return image.tobytes() == other.tobytes()


def test_every_picture_is_that_of_its_own_call(tiny):
    sweep, made = made_by(tiny, "a red heart", ["sampler=euler,heun", "guidance-scale=1-3:2", "seed=3,4"])
    assert sweep.text == "8 pictures: sampler (2) x guidance-scale (2) x seed (2)" and len(made) == 8
    for one in made:
        x, y, z = one.cell.position[1:]
        settings = {"sampler": ("euler", "heun")[x], "guidance_scale": (1.0, 3.0)[y], "seed": (3, 4)[z]}
        alone = tiny("a red heart", num_inference_steps=2, progress=False, **settings)
        assert same(one.image, alone.images[0])
        assert (one.recipe.sampler, one.recipe.guidance_scale, one.recipe.seed) == tuple(alone_of(alone))
    assert [title for title, _ in sweep.sheets(made)] == ["a red heart, seed 3", "a red heart, seed 4"]


def alone_of(output):
    recipe = output.recipes[0]
    return recipe.sampler, recipe.guidance_scale, recipe.seed


def test_words_take_one_anothers_place_in_prompts(tiny):
    sweep, made = made_by(tiny, ["a cat", "a red cat"], ["prompt:cat=dog,heart"], negative_prompt="a blue cat")
    assert [one.recipe.prompt for one in made] == ["a dog", "a heart", "a red dog", "a red heart"]
    assert [one.recipe.negative_prompt for one in made] == ["a blue dog", "a blue heart"] * 2
    assert [title for title, _ in sweep.sheets(made)] == ["a cat", "a red cat"]
    _, made = made_by(tiny, "", ["prompt:red=blue", 'prompt=a cat,"a red dog!, the moon"'])
    assert [one.recipe.prompt for one in made] == ["a cat", "a blue dog!, the moon"]


def test_the_weight_of_a_lora_is_that_of_its_picture_alone(tiny_model, tmp_path):
    from safetensors.torch import save_file

    from tests.gen.lora import kohya, shapes_of

    generator = Generator.from_pretrained(tiny_model, device="cpu", dtype="float32")
    save_file(kohya("lora_unet", shapes_of(generator.network, "blocks")), tmp_path / "style.safetensors")
    generator.load_adapter(tmp_path / "style.safetensors", weight=0.25)
    _, made = made_by(generator, "a cat", ["lora:style=0,.5,1"], seed=3)
    assert generator.adapters == {"style": 0.25}
    for one, weight in zip(made, (0.0, 0.5, 1.0), strict=True):
        generator.set_adapters({"style": weight})
        assert same(one.image, generator("a cat", **BASE).images[0])
    assert len({one.image.tobytes() for one in made}) == 3
    fresh = Generator.from_pretrained(tiny_model, device="cpu", dtype="float32")
    _, again = made_by(fresh, "a cat", ["lora:style=0,.5,1"], seed=3, lora_dir=tmp_path)
    assert all(same(one.image, other.image) for one, other in zip(made, again, strict=True))


def test_options_are_varied_beside_those_that_are_given(tiny):
    _, made = made_by(tiny, "a cat", ["sampler-option:eta=0,1"], sampler="ddim", sampler_options={"s_noise": 1.0})
    assert [dict(one.recipe.sampler_options) for one in made] == [{"s_noise": 1.0, "eta": 0}, {"s_noise": 1.0, "eta": 1}]
    assert not same(made[0].image, made[1].image)


def test_every_plain_setting_is_one_that_a_call_takes():
    kinds = keyword_kinds()
    assert {"num_inference_steps", "sampler", "guidance_interval", "strength", "clip_skip", "height"} <= set(kinds)
    assert not {"callback_on_step_end", "latents", "progress", "image", "lora_dir", "_check_only"} & set(kinds)
    assert read_axis("guidance_interval=-3:2,-1.5:4").values == ((-3.0, 2.0), (-1.5, 4.0))
    assert read_axis("bins=true,false").values == (True, False)
    assert read_axis("cache=none,first_block").values == (None, "first_block")


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ([], "varies one to 3 settings, 0 were given"),
        (["steps=1", "seed=1", "width=8", "height=8"], "4 were given"),
        (["steps"], "says no setting and its values"),
        (["stps=4"], "did you mean 'steps'"),
        (["steps=four"], "steps is 'four'; give whole numbers"),
        (["steps=4,4"], "the value '4' twice"),
        (["steps=4", "num_inference_steps=5"], "varied twice"),
        (["bins=maybe"], "give true or false"),
        (["guidance-interval=3"], "two numbers with a colon"),
        (["nothing:x=3"], "before the colon stands one of lora, prompt,"),
        (["sampler-options=3"], "vary one of them: sampler-option:NAME=VALUES"),
        (["prompt:dog=cat"], "'dog' stands in no prompt"),
        (["prompt=a dog"], "give them in one place"),
        (["seed=1-2000"], "1000 are the most"),
        (["progress=true"], "no setting 'progress'"),
        (["image=/etc/passwd"], "no setting 'image'"),
    ],
)
def test_what_is_no_axis_is_a_sentence(vary, message):
    with pytest.raises(ValueError, match=message):
        Sweep.of("a cat", vary, {})


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (["steps=2,0"], "With steps 0: num_inference_steps is 0"),
        (["seed=1,2", "sampler=euler,eulr"], "With seed 1, sampler eulr: .*did you mean 'euler'"),
        (["sampler-option:eta=0,1"], "no option 'eta'"),
        (["width=32,33"], "With width 33: .*nearest allowed: 32 and 40"),
        (["lora:style=0,1"], "style"),
        (["cache=none,frist_block"], "first_block"),
    ],
)
def test_what_a_call_refuses_is_said_before_anything_is_drawn(tiny, monkeypatch, vary, message):
    monkeypatch.setattr("gen.generator.make_all", lambda *_: pytest.fail("drawn"))
    with pytest.raises(ValueError, match=message):
        Sweep.of("a cat", vary, {}).check(tiny)


def test_a_check_draws_nothing_and_refuses_as_a_call(tiny, monkeypatch):
    monkeypatch.setattr("gen.generator.make_all", lambda *_: pytest.fail("drawn"))
    tiny.check("a cat", num_inference_steps=3)
    with pytest.raises(ValueError, match="num_inference_steps is 0"):
        tiny.check("a cat", num_inference_steps=0)


def test_a_setting_without_effect_is_said_once(tiny):
    sweep, made = made_by(tiny, "a cat", ["steps=2,3", "sampler=euler,dpm_adaptive"])
    assert sweep.without_effect(made) == ["steps has no effect with sampler dpm_adaptive."]
    sweep, made = made_by(tiny, "a cat", ["guidance-scale=0,1", "seed=1,2"])
    assert sweep.without_effect(made) == ["guidance-scale has no effect here: all its pictures are the same."]
    sweep, made = made_by(tiny, "a cat", ["steps=2,3", "seed=1,2"])
    assert sweep.without_effect(made) == []


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys, tiny_model):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main(["sweep", *map(str, arguments), "--model", str(tiny_model), "--device", "cpu", "--dtype", "float32"])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_the_command_leaves_sheets_recipes_and_cells(sweep, tiny):
    code, out, err = sweep("a cat", "--vary", "steps=2,3", "--vary", "sampler=euler,heun", "-o", "g.png", "--cells", "all")
    assert code == 0, err
    assert out.split()[-2:] == ["g.png", "g.json"] and "4 pictures: steps (2) x sampler (2), by tiny" in err
    table = json.loads(Path("g.json").read_text())
    assert [(cell["steps"], cell["sampler"]) for cell in table["cells"]] == [
        (2, "euler"),
        (3, "euler"),
        (2, "heun"),
        (3, "heun"),
    ]
    for cell, file in zip(table["cells"], out.split(), strict=False):
        recipe = Recipe.from_json(json.dumps(cell["recipe"]))
        assert recipe == read_recipe(file)
        assert same(tiny.replay(recipe, progress=False).images[0], Image.open(file))
    with Image.open("g.png") as sheet:  # two columns and two rows of 32 pixels, with labels above and beside
        assert 2 * 32 < sheet.width < 2 * 32 + 200 and 2 * 32 < sheet.height < 2 * 32 + 120
        first = sheet.convert("RGB")
        cell = Image.open(out.split()[0]).convert("RGB")
        places = [(x, y) for x in range(sheet.width - 31) for y in range(sheet.height - 31)]
        assert any(same(first.crop((x, y, x + 32, y + 32)), cell) for x, y in places)
    assert sweep("a cat", "--vary", "steps=2", "-o", "g.png")[1].split() == ["g-1.png", "g-1.json"]


def test_a_stop_keeps_what_is_done(sweep, monkeypatch):
    calls, call = [], Generator.__call__

    def stopping(self, *given, **more):
        calls.append(more["_check_only"])
        if calls.count(False) == 3:
            raise KeyboardInterrupt
        return call(self, *given, **more)

    monkeypatch.setattr(Generator, "__call__", stopping)
    code, out, err = sweep("a cat", "--vary", "steps=2,3", "--vary", "sampler=euler,heun", "-o", "g.png")
    assert code == 130 and out.split() == ["g.png", "g.json"] and "2 of 4 pictures" in err
    assert len(json.loads(Path("g.json").read_text())["cells"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a cat"], "varies one to 3 settings"),
        (["--vary", "steps=2,3"], "write one in quotes"),
        (["a cat", "--vary", "steps=2,0"], "With steps 0"),
        (["a cat", "--vary", "steps=2", "-o", "x.jpg"], "ends in .png"),
    ],
)
def test_the_command_refuses_in_one_sentence(sweep, arguments, message):
    code, out, err = sweep(*arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1 and "defect" not in err
    assert not list(Path().iterdir())


def test_the_student_draws_where_it_serves_all_cells():
    from gen.cli.choose import choose_model

    kept = [cell.call for cell in Sweep.of("a cat", ["steps=2,4"], {}).cells()]
    names = {choose_model(None, None, {key: value for key, value in call.items() if key != "prompt"}) for call in kept}
    assert names == {"fast"}
