"""Settings of the page as calls and back, fields from the registries, and what is wrong with them in words."""

from __future__ import annotations

from dataclasses import fields

import pytest

from gen import Generator
from gen.calls.call import AdapterUse, Call
from gen.cli.energies import ENERGIES
from gen.pipeline.guidance_stack import GuidanceStack
from gen.tasks.energies import ENERGIES as own_energies
from gen.tasks.energies import EnergyInfo
from gen.ui.checks import UNREADABLE, FieldError
from gen.ui.fields import other_names
from gen.ui.forms import OptionField, fields_of, read_catalogue
from gen.ui.gallery import FileKind
from gen.ui.models import AUTOMATIC, chosen_model
from gen.ui.settings import DrawSettings
from samplers.cache import CACHES
from samplers.guidance import GUIDANCE
from samplers.registry import GRIDS, SOLVERS, get_grid, get_solver


@pytest.fixture(scope="module")
def catalogue():
    return read_catalogue(ENERGIES)


def test_every_method_of_the_registries_has_a_form(catalogue, tiny):
    assert set(catalogue.samplers) == {info.name for info in SOLVERS.values()}
    assert set(catalogue.schedules) == {info.name for info in GRIDS.values()} - {"table"}
    for table in (catalogue.samplers, catalogue.schedules, catalogue.guidance, catalogue.caches, catalogue.compositions):
        for method in table.values():
            assert method.about and len({field.name for field in method.fields}) == len(method.fields)
            for field in method.fields:
                assert field.kind in ("switch", "number", "whole", "text")
                assert field.default == "" or field.read(field.default) is not None, (method.name, field)


def test_the_defaults_that_a_form_shows_are_the_methods_own(catalogue, tiny, class_model):
    """Giving a method what its form shows changes nothing: the same object comes out."""
    paths = (tiny.denoiser.path, Generator.from_pretrained(class_model).denoiser.path)
    for name, method in catalogue.samplers.items():
        shown = {f.name: f.read(f.default) for f in method.fields if f.default}
        assert repr(get_solver(name, **shown)) == repr(get_solver(name)), name
    for name, method in catalogue.schedules.items():
        shown = {f.name: f.read(f.default) for f in method.fields if f.default}
        grids = {path: grid for path in paths if (grid := grid_of(name, path)) is not None}
        assert grids, name
        assert all(list(get_grid(name, path, 10, **shown)) == grid for path, grid in grids.items()), name
    for name, method in catalogue.guidance.items():
        GuidanceStack.of(name, {f.name: f.read(f.default) for f in method.fields if f.default}, None, None)


def grid_of(name, path):
    """The levels of a schedule with its own defaults; None on a path that it is not for."""
    try:
        return list(get_grid(name, path, 10))
    except ValueError:
        return None


def test_an_option_is_read_as_its_kind():
    def make(a: bool = True, b: int = 2, c: float = 1.5, d: str = "x", e: float = 3, f=None):
        del a, b, c, d, e, f

    kinds = {field.name: field.kind for field in fields_of(make, "abcdef")}
    assert kinds == {"a": "switch", "b": "whole", "c": "number", "d": "text", "e": "number", "f": "text"}
    assert OptionField("a", "number").read("1e-3") == 1e-3 and OptionField("a", "number").read(" ") is None
    assert OptionField("a", "text").read("1,2") == [1, 2] and OptionField("a", "text").read("hue") == "hue"
    for kind, typed in (("switch", "1"), ("whole", "1.5"), ("whole", "true"), ("number", "x"), ("number", "true")):
        with pytest.raises(ValueError, match="a is"):
            OptionField("a", kind).read(typed)


def test_empty_fields_are_left_to_the_model():
    call = DrawSettings(prompt="a cat").to_call()
    assert call.arguments == {"prompt": "a cat", "num_images_per_prompt": 1, "batch_size": 1} and call.model == AUTOMATIC
    assert DrawSettings().to_call().arguments["prompt"] == ""


def test_everything_set_comes_back_from_its_call(catalogue):
    settings = DrawSettings(
        prompt="a cat",
        negative="blurry",
        width=64,
        height=32,
        number=3,
        at_once=2,
        steps=7,
        sampler="euler_a",
        sampler_options={"eta": "0.5"},
        schedule="karras",
        schedule_options={"rho": "5.0"},
        scale=2.5,
        rule="cfg++",
        modifiers=["rescale", "nag"],
        guidance_options={"factor": "0.5"},
        interval_low=-5.0,
        interval_high=3.0,
        caches=["reuse"],
        cache_options={"stride": "3"},
        seed=9,
        adapters={"a.safetensors": 0.5, "b.safetensors": 1.0},
        composition="switch",
        composition_options={"every": "2"},
        guide="colour",
        guide_method="dps",
        guide_strength=2.0,
        guide_options={"colour": "red"},
        image="in.png",
        strength=0.5,
        controlnet="canny",
        control="edges.png",
        control_weight=0.7,
        ip_adapter="face.safetensors",
        ip_image="face.png",
        ip_scale=0.6,
        hires=2.0,
        hires_strength=0.4,
        hires_steps=5,
        hires_upscaler="latent",
        hires_window=32,
        variation_seed=4,
        variation_strength=0.1,
    )
    call = settings.to_call(catalogue)
    assert call.arguments["guidance"] == "cfg++ + rescale + nag" and call.arguments["guidance_interval"] == [-5.0, 3.0]
    assert call.arguments["composition_options"] == {"every": 2}
    assert call.arguments["ip_adapter_image"] == "face.png" and call.arguments["ip_adapter_scale"] == 0.6
    other = DrawSettings(prompt="old", seed=1)
    other.load(call)
    assert other == settings and other.to_call(catalogue) == call


def test_what_has_no_field_is_kept(catalogue):
    call = Call(
        {"prompt": "a", "clip_skip": 1, "negtome": "batch", "schedule": "table", "schedule_options": {"values": [2, 1]}}
    )
    settings = DrawSettings()
    settings.load(call)
    assert settings.more == {"clip_skip": 1, "negtome": "batch"}
    again = settings.to_call(catalogue).arguments
    assert {name: again[name] for name in ("clip_skip", "negtome")} == settings.more


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("steps", 1.5),
        ("steps", 1001),
        ("scale", -1),
        ("scale", UNREADABLE),
        ("steps", UNREADABLE),
        ("width", 1e9),
        ("number", 0),
        ("seed", -1),
        ("seed", True),
        ("sampler_options.eta", "much"),
        ("guide_options.colour", ""),
        ("control", "x"),
        ("ip_image", "x"),
        ("ip_adapter", "x"),
        ("hires", "x"),
    ],
)
def test_what_is_wrong_is_said_of_its_field(catalogue, field, value):
    settings = DrawSettings(sampler="euler_a", guide="colour", guide_options={"colour": "red"})
    name, _, option = field.partition(".")
    if option:
        getattr(settings, name)[option] = value
    elif field == "control":
        settings.controlnet = "folder"
    elif field.startswith("ip_"):
        setattr(settings, "ip_image" if field == "ip_adapter" else "ip_adapter", "file")
    elif field == "hires":
        settings.hires_steps = 3
    else:
        setattr(settings, name, value)
    with pytest.raises(FieldError) as refusal:
        settings.to_call(catalogue)
    assert refusal.value.field == field and str(refusal.value).endswith(".")


def test_a_number_that_cannot_be_read_is_refused_in_every_field():
    numbers = [one.name for one in fields(DrawSettings) if "int" in str(one.type) or str(one.type).startswith("float")]
    assert len(numbers) > 15
    for name in numbers:
        given = {"steps": 3, "hires": 2.0, "guide": "colour", "image": "a.png", "controlnet": "net", "control": "b.png"}
        settings = DrawSettings(**{**given, "ip_adapter": "c", "ip_image": "d.png", "suffix": ".jpg", name: UNREADABLE})
        with pytest.raises(FieldError) as refusal:
            settings.to_call(), settings.kind()
        assert refusal.value.field == name


def test_pictures_are_kept_as_it_is_said_and_a_loaded_call_does_not_change_that():
    settings = DrawSettings(suffix=".webp", quality=80)
    assert settings.kind() == FileKind(".webp", 80)
    settings.load(Call({"prompt": "a"}))
    assert settings.kind() == FileKind(".webp", 80) and settings.prompt == "a"
    assert DrawSettings(suffix=".png", quality=80).kind() == FileKind()
    with pytest.raises(FieldError, match="from 1 to 100") as refusal:
        DrawSettings(suffix=".jpg", quality=0).kind()
    assert refusal.value.field == "quality"


def test_every_rule_cache_and_energy_can_be_chosen(catalogue):
    """But a rule that needs a second model, which no call as plain data has."""
    assert set(GUIDANCE) - set(catalogue.guidance) == {"autoguidance"}
    assert set(catalogue.caches) == set(CACHES)
    assert set(catalogue.energies) == {*own_energies, *ENERGIES}
    for name, energy in catalogue.energies.items():
        info = {**own_energies, **{one: EnergyInfo(one, *row) for one, row in ENERGIES.items()}}[name]
        assert {field.name for field in energy.fields} == set(info.options) - {"scale"}
        assert {field.name for field in energy.fields if field.needed} == set(info.needs)
        if info.external:
            assert all(field.kind in ("file", "picture") for field in energy.fields if field.needed), name
    style = DrawSettings(guide="style", guide_options={"image": "1,2.png"}).to_call(catalogue)
    assert style.arguments["guide_options"] == {"image": "1,2.png"}


def test_other_programs_names_are_known(catalogue):
    also = other_names(catalogue.samplers)
    assert also["DPM++ 2M"] == "dpmpp_2m" and also["Euler a"] == "euler_a"


def test_automatic_is_the_student_where_it_serves():
    assert chosen_model(Call({"prompt": "a", "num_inference_steps": 4, "batch_size": 1})) == "fast"
    assert chosen_model(Call({"prompt": "a", "num_inference_steps": 20})) == "default"
    assert chosen_model(Call({"prompt": "a", "sampler": "euler"})) == "default"
    assert chosen_model(Call({"prompt": "a"}, adapters=(AdapterUse("a.safetensors"),))) == "default"
    assert chosen_model(Call({"prompt": "a", "negative_prompt": "b", "guidance": "nag"})) == "fast"
