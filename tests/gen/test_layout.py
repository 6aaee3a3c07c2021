"""Layouts: from mappings, files and paintings; against regions built by hand; their recipes; what is refused, and where."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from gen.adapters import Adapter, Delta
from gen.cli.app import main
from gen.generator import Generator
from gen.io.errors import RecipeError
from gen.nn.conditions import join
from gen.pipeline.png import read_recipe
from gen.tasks.layout.file import LayoutError, colour_masks, painted_layout, read_layout
from gen.tasks.layout.masks import pack_mask, unpack_mask
from gen.tasks.layout.spec import read_spec
from gen.tasks.layout.task import Layout, place, windows
from samplers.guidance import ClassifierFree
from samplers.multi_model.masks import rest, soften
from samplers.multi_model.regions import Region, Regions
from samplers.noise import normal
from samplers.path import RectifiedFlow
from samplers.registry import get_grid, get_solver
from samplers.sample import sample

CALL = {"seed": 7, "num_inference_steps": 3, "progress": False}
NOISE = np.random.default_rng(1).integers(0, 256, (512, 512), dtype=np.uint8)
TWO = {
    "background": "the moon",
    "regions": [
        {"prompt": "a red heart", "box": [0, 0, 0.5, 1]},
        {"prompt": "a cat", "box": [20, 8, 12, 16], "soft": 6, "guidance_scale": 5.0, "weight": 2.0},
    ],
}


def latents(generator, layout, **call):
    return generator.layout(layout, output_type="latent", **{**CALL, **call}).images


def test_one_region_is_a_plain_call(tiny):
    whole = {"regions": [{"prompt": "a red heart", "box": [0, 0, 1, 1]}]}
    plain = tiny("a red heart", output_type="latent", **CALL)
    made = tiny.layout(whole, output_type="latent", **CALL)
    assert torch.equal(made.images, plain.images) and made.nfe == plain.nfe
    for prompt in ("a cat", ""):
        plain = tiny(prompt, "blurry", output_type="latent", guidance_scale=2.0, **CALL).images
        other = {"regions": [{"prompt": prompt, "box": [0, 0, 32, 32]}]}
        assert torch.equal(latents(tiny, other, negative_prompt="blurry", guidance_scale=2.0), plain)


def test_a_scale_of_0_is_none_in_regions_too(tiny):
    """As in a call, a 0 does not drop the region's prompt."""
    half = {"prompt": "a red heart", "box": [0, 0, 0.5, 1]}
    with_scale = {scale: {"background": "a cat", "regions": [{**half, "guidance_scale": scale}]} for scale in (0.0, 1.0)}
    first, second = (tiny.layout(one, output_type="latent", **CALL) for one in with_scale.values())
    assert torch.equal(first.images, second.images) and first.recipes[0].layout.regions[0].guidance_scale == 1.0
    assert not torch.equal(first.images, latents(tiny, {"background": "a cat", "regions": [half]}))


def test_a_layout_is_regions_around_the_network(tiny):
    left, right = torch.zeros(2, 1, 1, 8, 8)
    left[..., :4], right[..., 2:6, 5:8] = 1, 1
    right = soften(right, 6 / 4)
    texts = join([tiny.encode_prompt([p]) for p in ("a red heart", "a cat", "the moon")])
    regions = (
        Region(left, texts[:1]),
        Region(right, texts[1:2], weight=2.0, guidance_scale=5.0),
        Region(rest([left, right]), texts[2:]),
    )
    levels, eps = get_grid("uniform", RectifiedFlow(), 3), normal([7, 8], (4, 8, 8), "latents")
    with torch.no_grad():
        field = Regions(tiny.denoiser, regions, lambda d, scale, negative: ClassifierFree(d, scale, negative), 3.0)
        expected = sample(field, get_solver("dpmpp_2m"), eps, levels)
    made = tiny.layout(TWO, num_images_per_prompt=2, output_type="latent", **CALL)
    assert torch.allclose(made.images, expected, atol=1e-4)  # rows come in other blocks
    assert made.nfe == 3 * (3 + 1)  # the unconditional part once for all regions
    assert made.recipes[0].prompt == "the moon"


@pytest.mark.parametrize(
    "changes", [{}, {"bootstrap": 0.5}, {"at_once": 1, "soft": 4}, {"width": 64, "height": 48, "window": 16}]
)
def test_recipes_replay_bit_for_bit(tiny, changes):
    noisy = np.random.default_rng(0).integers(0, 256, (changes.get("height", 32), changes.get("width", 32)), dtype=np.uint8)
    masked = {"prompt": "a dog", "mask": noisy, "negative_prompt": "blurry"}
    spec = {**TWO, **changes, "regions": [*TWO["regions"], masked]}
    made = tiny.layout(spec, num_images_per_prompt=2, output_type="pt", **CALL)
    recipe = type(made.recipes[1]).from_json(made.recipes[1].to_json())
    assert torch.equal(tiny.replay(recipe, "pt", progress=False).images[0], made.images[1])
    assert not torch.equal(made.images[0], made.images[1])
    if changes:
        plain = tiny.layout({**spec, **dict.fromkeys(("bootstrap", "at_once", "window")), "soft": 0}, output_type="pt", **CALL)
        assert plain.images.shape != made.images[:1].shape or not torch.equal(plain.images[0], made.images[0])


def test_caches_and_other_guidance(tiny):
    call = {"num_inference_steps": 4, "guidance": "apg + rescale", "cache": "reuse", "sampler": "unipc"}
    made = tiny.layout({**TWO, "bootstrap": 0.0}, output_type="pt", **{**CALL, **call})
    assert torch.equal(tiny.replay(made.recipes[0], "pt", progress=False).images, made.images)
    assert made.nfe < 4 * 4  # every other step takes what the step before left


def test_a_picture_does_not_depend_on_those_beside_it(tiny):
    spec = {**TWO, "bootstrap": 0.5}
    both = tiny.layout(spec, num_images_per_prompt=2, output_type="latent", **CALL).images
    alone = latents(tiny, spec, seed=8)
    assert torch.allclose(both[1:], alone, atol=1e-5)


def test_classes_are_prompts_of_a_class_model(class_model):
    generator = Generator.from_pretrained(class_model, device="cpu", dtype="float32")
    plain = generator(class_labels="dog", output_type="latent", **CALL).images
    assert torch.equal(latents(generator, {"regions": [{"prompt": "dog", "box": [0, 0, 8, 8]}]}), plain)
    with pytest.raises(ValueError, match=r"no class 'dogg'.*Did you mean 'dog'"):
        latents(generator, {"regions": [{"prompt": "dogg", "box": [0, 0, 8, 8]}]})


def test_adapters_by_region(tiny_model):
    generator = Generator.from_pretrained(tiny_model, device="cpu", dtype="float32")
    random = torch.Generator().manual_seed(0)
    factors = {"down": torch.randn(2, 32, generator=random), "up": torch.randn(32, 2, generator=random)}
    layers = {"denoiser.mid_block.attn.to_q": Delta(factors, 1.0)}
    generator.load_adapter(Adapter("style", layers), weight=0.0)
    boxes = [0, 0, 0.5, 1], [0.5, 0, 0.5, 1]
    regions = [{"prompt": "a cat", "box": box} for box in boxes]
    plain = latents(generator, {"regions": regions}, num_inference_steps=1)
    own = latents(generator, {"regions": [{**regions[0], "adapters": {"style": 0.7}}, regions[1]]}, num_inference_steps=1)
    assert torch.allclose(own[..., 4:], plain[..., 4:], atol=1e-6) and not torch.allclose(
        own[..., :4], plain[..., :4], atol=1e-3
    )
    generator.set_adapters({"style": 0.7})
    everywhere = latents(generator, {"regions": regions}, num_inference_steps=1)
    assert torch.allclose(own[..., :4], everywhere[..., :4], atol=1e-6)
    with pytest.raises(ValueError, match=r"'stile'.*Did you mean 'style'"):
        latents(generator, {"regions": [{**regions[0], "adapters": {"stile": 1.0}}, regions[1]]})


# ---- windows and masks ----


def test_windows_cover_masks_and_fade_into_one_another():
    random = torch.Generator().manual_seed(1)
    mask = torch.rand(1, 1, 20, 30, generator=random) * (torch.rand(1, 1, 20, 30, generator=random) > 0.5)
    found = windows(mask, 8)
    total = sum(seen for _, seen in found)
    assert (total[mask > 0] > 0).all() and not total[mask == 0].any()
    for (top, left, tall, wide), seen in found:
        assert (tall, wide) == (8, 8) and 0 <= top <= 12 and 0 <= left <= 22
        outside = seen.clone()
        outside[..., top : top + tall, left : left + wide] = 0
        assert not outside.any()
    small = torch.zeros(1, 1, 20, 30)
    small[..., 14:19, 1:4] = 1
    [(box, seen)] = windows(small, 8)
    assert box == (12, 0, 8, 8) and torch.equal(seen, small)
    assert windows(small, 30) == [(None, small)]
    faded = soften(small, 3.0)
    [(box, seen)] = windows(faded, 8)  # what fades beyond one window is cut
    assert box == (12, 0, 8, 8) and torch.equal(seen[..., 12:, :8], faded[..., 12:, :8]) and not seen[..., :12, :].any()
    [(box, _)] = windows(small, 24)  # one side fits, the other does not
    assert box == (0, 0, 20, 24)


def test_boxes_cover_part_of_a_cell_and_shares_are_pixels():
    record = place(read_spec({"regions": [{"prompt": "", "box": [0.25, 0.0, 0.6875, 1]}]}), 16, 32, 8)
    assert record.regions[0].box == (8, 0, 22, 16)
    mask = Layout(record.model_copy(update={"background": ""}), 16, 32).masks(8)
    assert mask[0].tolist() == [[[[0, 1, 1, 0.75]] * 2]] and mask[1].tolist() == [[[[1, 0, 0, 0.25]] * 2]]


def test_masks_as_text():
    mask = torch.rand(1, 1, 5, 7, generator=torch.Generator().manual_seed(0))
    again = unpack_mask(pack_mask(mask, 0), (5, 7), 0)
    assert (again - mask).abs().max() <= 0.5 / 255 + 1e-7 and pack_mask(again, 0) == pack_mask(mask, 0)
    bomb = pack_mask(torch.ones(1, 1, 1000, 1000), 0)
    for text, size in ((bomb, (5, 7)), ("AAAA", (5, 7)), ("no base64!", (5, 7)), (pack_mask(mask, 0), (5, 8)), (None, (1, 1))):
        with pytest.raises(ValueError, match="The mask of region 3 is"):
            unpack_mask(text, size, 3)


@pytest.fixture
def painting() -> Image.Image:
    """Red left, nearly blue right, white below."""
    pixels = np.full((32, 32, 3), 255, dtype=np.uint8)
    pixels[:20, :16], pixels[:20, 16:] = (255, 0, 0), (10, 5, 240)
    return Image.fromarray(pixels)


def test_colours_of_a_painting_are_regions(tiny, painting):
    masks = colour_masks(painting, ["red", "#0000ff"], 32, 32)
    assert masks["red"].sum() == masks["#0000ff"].sum() == 320 and masks["red"][..., :20, :16].all()
    spec = painted_layout(painting, {"red": "a cat", "#0000ff": "a dog"}, "the moon")
    boxes = [{"prompt": "a cat", "box": [0, 0, 16, 20]}, {"prompt": "a dog", "box": [16, 0, 16, 20]}]
    assert torch.equal(latents(tiny, spec), latents(tiny, {"background": "the moon", "regions": boxes}))
    with pytest.raises(ValueError, match="Nothing in the painting is green; it has #ffffff, #ff0000, #0a05f0"):
        latents(tiny, painted_layout(painting, {"green": "a cat"}, ""))
    with pytest.raises(ValueError, match="The painting is 32 x 32 pixels, but the picture 64 x 32"):
        colour_masks(painting, ["red"], 32, 64)
    with pytest.raises(ValueError, match="'rde' is no colour"):
        colour_masks(painting, ["rde"], 32, 32)
    with pytest.raises(ValueError, match="Two of the colours red, #f00 are the same"):
        colour_masks(painting, ["red", "#f00"], 32, 32)


# ---- files ----

YAML = """\
background: the moon
prompts:
  heart: a red heart
regions:
  - use: heart
    box: [0, 0, 0.5, 1]
  - {prompt: a cat, box: [20, 8, 12, 16], soft: 6, guidance_scale: 5.0, weight: 2.0}
"""


def test_yaml_and_json_say_the_same(tiny, tmp_path):
    (tmp_path / "a.yaml").write_text(YAML)
    (tmp_path / "a.json").write_text(json.dumps(TWO))
    made = [latents(tiny, spec) for spec in (tmp_path / "a.yaml", str(tmp_path / "a.json"), TWO)]
    assert torch.equal(made[0], made[2]) and torch.equal(made[1], made[2])


def test_pictures_beside_the_file(tiny, painting, tmp_path):
    painting.save(tmp_path / "p.png")
    Image.fromarray(np.asarray(painting)[..., 1]).save(tmp_path / "m.png")
    text = "painting: p.png\nbackground: the moon\nregions:\n- {prompt: a cat, colour: red}\n- {prompt: a dog, mask: m.png}\n"
    (tmp_path / "a.yaml").write_text(text)
    regions = [{"prompt": "a cat", "colour": "red"}, {"prompt": "a dog", "mask": np.asarray(painting)[..., 1]}]
    spec = {"painting": painting, "background": "the moon", "regions": regions}
    assert torch.equal(latents(tiny, tmp_path / "a.yaml"), latents(tiny, spec))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (YAML.replace("use: heart", "use: haert"), "line 5, regions.0.use: region 0 uses the prompt 'haert', which the "
         "layout's prompts lack (it has heart). Did you mean 'heart'?"),
        (YAML.replace("soft: 6", "sfot: 6"), "line 7, regions.1.sfot: There is no key 'sfot'; did you mean 'soft'?"),
        ("layer:\n- {prompt: a}\n", "line 1, layer: There is no key 'layer'; did you mean 'layers'?"),
        ("layers:\n- prompt: a\n  boxx: 1\n", "line 3, layers.0.boxx: There is no key 'boxx'; did you mean 'box'?"),
        ("layers:\n- prompt: a\n  weight: 3\n", "line 3, layers.0.weight: a layer has no weight of its own; leave it out"),
        ("layers:\n- prompt: a\nbackground: b\n", "line 3, background: background is not for a layout of layers"),
        ("prompts: {cat: a}\nlayers:\n- use: cta\n", "line 3, layers.0.use: layer 0 uses the prompt 'cta', which the"),
        (YAML.replace("weight: 2.0", "weight: 0"), "line 7, regions.1.weight: Input should be greater than 0"),
        (YAML.replace("    box: [0, 0, 0.5, 1]\n", ""), "line 5, regions.0: the region has no place; give one of box, mask"),
        (YAML.replace("use: heart", "use: heart\n    prompt: a"), "line 5, regions.0: give the region a prompt, or use"),
        (YAML + "background: a cat\n", "line 8: the key 'background' appears twice"),
        (YAML.replace("box: [20", "mask: ../m.png, box: [20"), "line 7, regions.1.mask: '../m.png' lies outside"),
        (YAML.replace("box: [20, 8, 12, 16]", "mask: none.png"), "line 7, regions.1.mask: "),
        ("width: !!int ''\n", "the tag 'tag:yaml.org,2002:int' is not read"),
        ("a: !!bool x\n", "the tag"),
        ("a: !!timestamp x\n", "the tag"),
        ("a: 0x_\n", "is not YAML or JSON"),
        (YAML.replace("box: [20, 8, 12, 16]", 'mask: "a\\0b.png"'), "line 7, regions.1.mask: "),
        ("a: &x 1\nb: *x\n", "line 2: aliases (*name) are not read"),
        ("regions: [", "line 1"),
        ("- 1\n", "holds no layout"),
        ("background: !!python/name:os.system ''\n", "line 1: the tag 'tag:yaml.org,2002:python/name:os.system' is not read"),
        ("", "is empty"),
    ],
)  # fmt: skip
def test_mistakes_in_files_name_line_and_key(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(LayoutError, match=re.escape(message)) as caught:
        read_layout(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("layout", "call", "message"),
    [
        ({"regions": TWO["regions"][:1]}, {}, "of the picture belongs to no region; give the layout a background"),
        ({**TWO, "window": 12}, {}, "The layout's window is 12 pixels; give a multiple of 8"),
        ({**TWO, "height": 32}, {"height": 64}, "The layout has height 32, and height 64 is asked for"),
        (TWO, {"guidance": "cfg++"}, "which cfg++ cannot; choose other guidance"),
        ({"regions": [{"prompt": "a", "box": [20, 0, 20, 10]}]}, {}, "of region 0 reaches outside the picture of 32 x 32"),
        ({"regions": [{"prompt": "a", "box": [0, 0, 0, 1]}]}, {}, "of region 0 is empty"),
        ({"regions": [{"prompt": "a", "mask": np.ones((9, 9), np.uint8)}]}, {}, "A mask is 9 x 9 pixels, but the picture 32"),
        ({"regions": [{"prompt": "a", "mask": np.zeros((32, 32), np.uint8)}]}, {}, "The mask of region 0 is empty"),
        ({"regions": [{"prompt": "a", "colour": "red"}]}, {}, "the layout has no painting"),
        ({"regions": []}, {}, "The layout is not valid: regions"),
        ({"layers": [{"prompt": "a", "opacty": 1}]}, {}, "layers.0.opacty: There is no key 'opacty'; did you mean 'opacity'?"),
        ([TWO], {}, "layout is list; give a dict"),
        ({"regions": [{"prompt": "a", "mask": NOISE}], "background": "", "width": 2048, "height": 2048}, {}, "too intricate"),
        ("none.yaml", {}, "none.yaml is not a file"),
    ],
)  # fmt: skip
def test_refusals(tiny, layout, call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        latents(tiny, layout, **call)


def test_a_call_has_its_own_size(tiny):
    with pytest.raises(ValueError, match="The layout is for other sides than 32 x 32"):
        tiny("the moon", layout={**TWO, "height": 64}, **CALL)
    assert torch.equal(tiny("the moon", layout=TWO, output_type="latent", **CALL).images, latents(tiny, TWO))


def test_a_recipe_with_a_damaged_layout(tiny):
    recipe = tiny.layout(TWO, output_type="pt", **CALL).recipes[0]
    values = json.loads(recipe.to_json())
    values["layout"]["regions"][0]["weight"] = 0
    with pytest.raises(RecipeError, match=r"layout\.regions\.0\.weight"):
        type(recipe).from_json(json.dumps(values))


def test_the_command_makes_layouts_that_replay(tiny_model, painting, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(YAML)
    painting.save("p.png")
    common = ["--model", str(tiny_model), "--seed", "3", "--steps", "1", "-q"]
    assert main(["layout", "a.yaml", "-n", "2", *common]) == 0
    assert (
        main(["layout", "p.png", "--colour", "red=a cat", "--colour", "blue=a dog", "--background", "the moon", *common]) == 0
    )
    out = capsys.readouterr().out.split()
    assert out == ["a-3.png", "a-4.png", "p-3.png"]
    assert len(read_recipe("p-3.png").layout.regions) == 2
    assert main(["replay", "p-3.png", "--model", str(tiny_model), "-q"]) == 0
    assert main(["layout", "p.png", *common]) == 2 and "say what its colours are" in capsys.readouterr().err
    assert main(["layout", "a.yaml", "--colour", "red=a cat", *common]) == 2


def test_regions_inside_of_attention(tmp_path):
    """One box of all is the plain picture, with an adapter on keys and values too; half of it is another one, and replays."""
    from gen.models.folder import write_model
    from gen.nn.registry import build
    from tests.gen.conftest import CONFIG, randomise, tiny_autoencoder, tiny_text_encoder

    sizes = {"size": 8, "patch": 2, "channels": 4, "dim": 32, "depth": 2, "heads": 2, "text_tokens": 8, "text_dim": 16}
    network = randomise(build({"type": "dit", **sizes}), 1)
    folder = write_model(tmp_path / "dit", CONFIG, network, tiny_autoencoder(), tiny_text_encoder())
    generator = Generator.from_pretrained(folder, device="cpu", dtype="float32")
    whole = {"attention": True, "background": "a cat", "regions": [{"prompt": "a cat", "box": [0, 0, 1, 1]}]}
    plain = generator("a cat", output_type="latent", **CALL).images
    torch.testing.assert_close(latents(generator, whole), plain, rtol=1e-4, atol=1e-5)
    random = torch.Generator().manual_seed(0)
    factors = {"down": torch.randn(2, 32, generator=random), "up": torch.randn(64, 2, generator=random)}
    generator.load_adapter(
        Adapter("style", {f"denoiser.blocks.{i}.cross.kv": Delta(factors, 0.5) for i in range(2)}), weight=1.0
    )
    one = {**CALL, "guidance_scale": 1.0}  # without a prompt, of which a region has none, there is no adapter
    styled = generator("a cat", output_type="latent", **one).images
    generator.set_adapters({"style": 0.0})
    whole["regions"][0]["adapters"] = {"style": 1.0}
    torch.testing.assert_close(latents(generator, whole, guidance_scale=1.0), styled, rtol=1e-4, atol=1e-4)
    assert (styled - plain).abs().max() > 1e-3
    halves = {**whole, "regions": [{"prompt": "a red heart", "box": [0, 0, 0.5, 1], "adapters": {"style": 1.0}}]}
    made = generator.layout(halves, output_type="latent", **CALL)
    again = generator.replay(made.recipes[0], "latent", progress=False)
    assert torch.equal(again.images[0], made.images[0]) and made.recipes[0].layout.attention
    with pytest.raises(ValueError, match="have no weight of their own"):
        read_spec({"attention": True, "regions": [{"prompt": "a", "box": [0, 0, 1, 1], "weight": 2.0}]})
