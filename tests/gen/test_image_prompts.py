"""IP-Adapters, against diffusers' pipelines with the same files; masks, ranges, what they go with, and hostile files."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from gen.io.weights import CheckpointError
from tests.gen import ip_adapters
from tests.gen.test_bridge_parity import CLOSE, NEGATIVE, noise, ours, pack, theirs

SEEN = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(1))
OTHER = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(2))
CALL = {"seed": 1, "num_inference_steps": 2, "progress": False, "output_type": "latent"}
FAMILIES = ("stable_diffusion", "sdxl")


def picture(tensor):
    from PIL import Image

    return Image.fromarray((tensor.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())


def rounded(tensor):
    return (tensor * 255).round() / 255


@pytest.fixture(scope="module")
def files(bridged, tmp_path_factory):
    """name, kind, seed -> the file of an adapter for a tiny pipeline."""

    @cache
    def make(name: str, kind: str = "plain", seed: int = 0):
        pipeline, _ = bridged(name)
        folder = tmp_path_factory.mktemp("ip")
        return ip_adapters.save(folder, ip_adapters.ip_adapter(pipeline.unet, kind, seed), kind.replace(" ", "-"))

    return make


@pytest.fixture
def adapted(bridged):
    """name, files -> a pipeline of its own with these adapters."""
    import copy

    def make(name: str, *paths):
        pipeline, _ = bridged(name)
        parts = {key: copy.deepcopy(part) if key == "unet" else part for key, part in pipeline.components.items()}
        parts["image_encoder"] = ip_adapters.image_encoder()
        parts["feature_extractor"] = None
        if name == "stable_diffusion":
            parts["requires_safety_checker"] = False
        made = type(pipeline)(**parts)
        made.set_progress_bar_config(disable=True)
        made.load_ip_adapter([str(path.parent) for path in paths], subfolder="", weight_name=[path.name for path in paths])
        return made

    return make


@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize("kind", ["plain", "plus", "full"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_picture_with_an_image_prompt_is_the_pipelines_own(bridged, files, adapted, name, kind, steps):
    _, generator = bridged(name)
    file, x = files(name, kind), noise(generator, 2)
    pipeline = adapted(name, file)
    pipeline.set_ip_adapter_scale(0.7)
    asked = {"negative_prompt": [NEGATIVE] * 2, "num_inference_steps": steps}
    reference = theirs(name, pipeline, x, 4.0, ip_adapter_image=picture(SEEN), **asked)
    given = {"ip_adapter": file, "ip_adapter_image": rounded(SEEN), "ip_adapter_scale": 0.7}
    found = ours(name, generator, x, 4.0, **given, **asked)
    torch.testing.assert_close(found, reference, **CLOSE)
    assert (ours(name, generator, x, 4.0, **asked) - found).abs().max() > 1e-3
    reference = theirs(name, pipeline, x, 4.0, ip_adapter_image=picture(SEEN), num_inference_steps=steps)
    torch.testing.assert_close(ours(name, generator, x, 4.0, num_inference_steps=steps, **given), reference, **CLOSE)


@pytest.mark.parametrize("xlabs", [False, True], ids=["usual names", "XLabs' names"])
def test_adapters_of_flux(bridged, tmp_path, xlabs):
    """One, and two at once, of unequal strength by block; under guidance by a negative prompt, whose picture is black."""
    import copy

    pipeline, generator = bridged("flux")
    files = [
        ip_adapters.save(tmp_path, ip_adapters.for_flux(pipeline.transformer, seed, xlabs=xlabs), f"adapter-{seed}")
        for seed in (0, 1)
    ]
    x, call = noise(generator, 1), {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "pt"}
    seen, blocks = [picture(SEEN), picture(OTHER)], len(pipeline.transformer.transformer_blocks)

    def reference(count, scale, **more):
        parts = {**pipeline.components, "transformer": copy.deepcopy(pipeline.transformer)}
        made = type(pipeline)(**{**parts, "image_encoder": ip_adapters.image_encoder(), "feature_extractor": None})
        made.set_progress_bar_config(disable=True)
        made.load_ip_adapter([str(tmp_path)] * count, weight_name=[path.name for path in files[:count]], subfolder="")
        made.set_ip_adapter_scale(scale)
        given = {"latents": pack(x), "ip_adapter_image": seen[:count], **call, **more}
        return made("a cat", **given).images

    def mine(count, scale, **more):
        asked = {"ip_adapter": files[:count], "ip_adapter_image": seen[:count], "ip_adapter_scale": scale} if count else {}
        return generator("a cat", latents=x, progress=False, **asked, **call, **more).images

    one = mine(1, 0.7, guidance_scale=3.0)
    torch.testing.assert_close(one, reference(1, 0.7, guidance_scale=3.0), **CLOSE)
    assert (one - mine(0, None, guidance_scale=3.0)).abs().max() > 1e-3
    guided = {"guidance": "cfg", "guidance_scale": 2.0, "negative_prompt": NEGATIVE}
    by_block = {f"block_{i}": 0.9 / (i + 1) for i in range(blocks)}
    found = mine(2, [0.5, by_block], **guided)
    scales = [[0.5] * blocks, list(by_block.values())]
    torch.testing.assert_close(found, reference(2, scales, true_cfg_scale=2.0, negative_prompt=NEGATIVE), **CLOSE)
    never = mine(1, 0.7, guidance_scale=3.0, cache="first_block", cache_options={"threshold": 1e-9})
    assert torch.equal(never, one) and generator.network.takes_image_prompts
    with pytest.raises(ValueError, match=r"names 'transformer_blocks\.9', where this network"):
        mine(1, {"block_9": 1.0})
    with pytest.raises(CheckpointError, match=r"has the unknown .*bias.*each for its own"):
        unet = bridged("stable_diffusion")[1]
        unet("a cat", ip_adapter=files[0], ip_adapter_image=seen[0], **CALL)


@pytest.mark.parametrize("name", FAMILIES)
def test_several_adapters_with_several_pictures(bridged, files, adapted, name):
    _, generator = bridged(name)
    first, second, x = files(name, "plain"), files(name, "plus", 1), noise(generator, 1)
    pipeline = adapted(name, first, second)
    pipeline.set_ip_adapter_scale([0.7, 0.4])
    shown = [picture(SEEN), [picture(SEEN), picture(OTHER)]]
    reference = theirs(name, pipeline, x, 4.0, ip_adapter_image=shown)
    asked = {"ip_adapter": [first, second], "ip_adapter_image": [rounded(SEEN), [rounded(SEEN), rounded(OTHER)]]}
    found = ours(name, generator, x, 4.0, **asked, ip_adapter_scale=[0.7, 0.4])
    torch.testing.assert_close(found, reference, **CLOSE)


@pytest.mark.parametrize("name", FAMILIES)
def test_masks_say_where_each_picture_counts(bridged, files, adapted, name):
    _, generator = bridged(name)
    file, x = files(name, "plain"), noise(generator, 1)
    left = torch.zeros(1, 32, 32)
    left[..., :20] = 1
    pipeline = adapted(name, file)
    pipeline.set_ip_adapter_scale([[0.7, 0.4]])
    masks = {"cross_attention_kwargs": {"ip_adapter_masks": [torch.stack([left, 1 - left], dim=1)]}}
    reference = theirs(name, pipeline, x, 4.0, ip_adapter_image=[[picture(SEEN), picture(OTHER)]], **masks)
    asked = {"ip_adapter": file, "ip_adapter_image": [rounded(SEEN), rounded(OTHER)], "ip_adapter_scale": [0.7, 0.4]}
    found = ours(name, generator, x, 4.0, **asked, ip_adapter_mask=[left, 1 - left])
    torch.testing.assert_close(found, reference, **CLOSE)
    whole = torch.ones(1, 32, 32)
    everywhere = ours(name, generator, x, 4.0, **asked, ip_adapter_mask=[whole, whole])
    torch.testing.assert_close(ours(name, generator, x, 4.0, **asked), everywhere, **CLOSE)


@pytest.mark.parametrize("kind", ["face", "face plus", "face plusv2"])
@pytest.mark.parametrize("name", FAMILIES)
def test_faces_are_given_as_embeddings(bridged, files, adapted, name, kind):
    pytest.importorskip("peft")
    _, generator = bridged(name)
    file, x = files(name, kind), noise(generator, 1)
    pipeline = adapted(name, file)
    pipeline.set_ip_adapter_scale(0.7)
    face = torch.randn(1, ip_adapters.FACE, generator=torch.Generator().manual_seed(3))
    asked = {"ip_adapter": file, "ip_adapter_image_embeds": face, "ip_adapter_scale": 0.7}
    if kind != "face":
        asked["ip_adapter_image"] = rounded(SEEN)
        seen = pipeline.prepare_ip_adapter_image_embeds([picture(SEEN)], None, "cpu", 1, True)[0]
        projection = pipeline.unet.encoder_hid_proj.image_projection_layers[0]
        projection.clip_embeds, projection.shortcut = seen, kind.endswith("v2")
    reference = theirs(
        name, pipeline, x, 4.0, ip_adapter_image_embeds=[torch.stack([torch.zeros_like(face), face])]
    )  # fmt: skip
    torch.testing.assert_close(ours(name, generator, x, 4.0, **asked), reference, **CLOSE)
    with pytest.raises(ValueError, match="reads embeddings of faces, which another network makes"):
        generator("a cat", ip_adapter=file, ip_adapter_image=SEEN, **CALL)
    with pytest.raises(ValueError, match="are of width 3, and this IP-Adapter reads 20"):
        generator("a cat", **{**asked, "ip_adapter_image_embeds": torch.zeros(1, 3)}, **CALL)


def test_layers_that_take_part(bridged, files, adapted):
    _, generator = bridged("sdxl")
    file, x = files("sdxl", "plain"), noise(generator, 1)
    pipeline = adapted("sdxl", file)
    scale = {"up": {"block_0": [0.0, 0.6]}, "down": 0.3}
    pipeline.set_ip_adapter_scale({"up": {"block_0": [0.0, 0.6]}, "down": {"block_1": [0.3]}})
    reference = theirs("sdxl", pipeline, x, 4.0, ip_adapter_image=picture(SEEN))
    asked = {"ip_adapter": file, "ip_adapter_image": rounded(SEEN)}
    found = ours("sdxl", generator, x, 4.0, **asked, ip_adapter_scale=scale)
    torch.testing.assert_close(found, reference, **CLOSE)
    ours("sdxl", generator, x, 4.0, **asked)
    assert len({prompt.layers for prompt in generator.network.image_prompts.values()}) >= 2  # a name for each choice of layers
    for wrong, said in (
        ({"upp": 1.0}, "names 'upp'; its parts are down, mid, up, of FLUX"),
        ({"up": {"block_7": 1.0}}, "names 'up_blocks.7', where this network has no attention"),
        ({"up": {"one": 1.0}}, "its blocks are block_0"),
    ):
        with pytest.raises(ValueError, match=said):
            generator("a cat", **asked, ip_adapter_scale=wrong, **CALL)


GOES_WITH = [
    {"prompt": "a [red:blue:0.5] cat AND a dog:0.5"},
    {"prompt": ""},
    {"negative_prompt": None},
    {"guidance": "nag"},
    {"guidance": "pag"},
    {"guidance": "apg + rescale"},
    {"cache": "reuse"},
    {"cache": "pyramid"},
    {"image": torch.full((3, 32, 32), 0.5), "strength": 0.9},
    {"image": torch.full((3, 32, 32), 0.5), "mask": torch.ones(1, 32, 32)},
    {"reference": torch.full((3, 32, 32), 0.5)},
    {"negtome": "batch", "prompt": ["a cat", "a dog"]},
    {"concepts": ["cat", "dog"], "prompt": "a cat, a dog"},
    {"prompt": ["a cat", "moon " * 40]},  # of unequal length
]


@pytest.mark.parametrize("call", GOES_WITH, ids=[" ".join(call) + str(i) for i, call in enumerate(GOES_WITH)])
def test_it_goes_with_the_rest(bridged, files, call):
    _, generator = bridged("stable_diffusion")
    asked = {"prompt": "a cat", "negative_prompt": "blurry", **call}
    shown = {"ip_adapter": files("stable_diffusion", "plus"), "ip_adapter_image": SEEN}
    made, plain = generator(**asked, **shown, **CALL), generator(**asked, **CALL)
    assert bool(made.images[0].isfinite().all()) and (made.images[0] - plain.images[0]).abs().max() > 1e-3
    if isinstance(asked["prompt"], list) and "negtome" not in call:
        for i, prompt in enumerate(asked["prompt"]):
            alone = generator(**{**asked, "prompt": prompt}, **shown, **{**CALL, "seed": 1 + i})
            torch.testing.assert_close(alone.images[0], made.images[i], atol=2e-4, rtol=0)


def test_it_goes_with_control_and_lora(bridged, files, tmp_path):
    """Each of them changes the picture beside the image prompt, and the image prompt beside each of them."""
    from tests.gen.test_control import EDGES, network_for

    pipeline, generator = bridged("stable_diffusion")
    network_for("stable_diffusion", pipeline, 5).save_pretrained(tmp_path / "control", safe_serialization=True)
    shown = {"ip_adapter": files("stable_diffusion"), "ip_adapter_image": SEEN}
    followed = {"control": EDGES, "controlnet": tmp_path / "control"}
    pictures = [generator("a cat", **one, **CALL).images[0] for one in ({}, shown, followed, {**shown, **followed})]
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0"
    width = pipeline.unet.get_submodule(layer).weight.shape[0]
    random = torch.Generator().manual_seed(4)
    shapes = {"A": (2, width), "B": (width, 2)}
    lora = {f"unet.{layer}.lora_{w}.weight": torch.randn(shape, generator=random) for w, shape in shapes.items()}
    from safetensors.torch import save_file

    save_file(lora, tmp_path / "lora.safetensors")
    generator.load_adapter(tmp_path / "lora.safetensors", "style")
    try:
        pictures += [generator("a cat", **one, **CALL).images[0] for one in ({}, shown)]
        # with the adapter in the weights, where it acts on all that goes into the layer
        generator.fuse_adapters()
        fused = generator("a cat", **shown, **CALL).images[0]
        generator.unfuse_adapters()
        torch.testing.assert_close(fused, pictures[-1], atol=1e-4, rtol=0)
    finally:
        generator.unload_adapter("style")
    for i, one in enumerate(pictures):
        assert all((one - other).abs().max() > 1e-3 for other in pictures[:i])
    assert torch.equal(generator("a cat", **CALL).images[0], pictures[0])


def test_regions_and_their_negative_prompts(bridged, files):
    _, generator = bridged("stable_diffusion")
    shown = {"ip_adapter": files("stable_diffusion"), "ip_adapter_image": SEEN}
    whole = {"regions": [{"prompt": "a cat", "box": [0, 0, 1, 1], "negative_prompt": "blurry"}]}
    placed = generator.layout(whole, **shown, **CALL)
    plain = generator("a cat", "blurry", **shown, **CALL)
    torch.testing.assert_close(placed.images[0], plain.images[0], atol=1e-5, rtol=0)
    never = generator.layout(whole, **shown, ip_adapter_range=(900, 1000), **CALL)
    bare = generator("a cat", "blurry", **CALL)
    torch.testing.assert_close(never.images[0], bare.images[0], atol=1e-5, rtol=0)


def test_windows_of_a_canvas_have_their_part_of_the_masks(bridged, files):
    """Two windows that do not overlap are two pictures beside one another, each with its picture."""
    _, generator = bridged("stable_diffusion")
    left = torch.zeros(1, 32, 64)
    left[..., :32] = 1
    latents = torch.randn(1, generator.channels, 16, 32, generator=torch.Generator().manual_seed(0))
    call = {
        **CALL,
        "guidance_scale": 3.0,
        "sampler": "euler",
        "negative_prompt": "blurry",
        "ip_adapter": files("stable_diffusion"),
    }
    asked = {"width": 64, "height": 32, "window": 32, "stride": 32, "weights": "flat"}
    both = {"ip_adapter_image": [SEEN, OTHER], "ip_adapter_mask": [left, 1 - left]}
    wide = generator.panorama("a cat", latents=latents, **both, **asked, **call)
    for i, own in enumerate((SEEN, OTHER)):
        half = latents[..., 16 * i : 16 * (i + 1)]
        alone = generator("a cat", latents=half, height=32, width=32, ip_adapter_image=own, **call)
        torch.testing.assert_close(wide.images[0][..., 16 * i : 16 * (i + 1)], alone.images[0], atol=1e-4, rtol=0)


def test_it_acts_within_its_range(bridged, files):
    from gen.pipeline.settings import Sampling, make_settings

    _, generator = bridged("stable_diffusion")
    call = {**CALL, "num_inference_steps": 4}
    shown = {"ip_adapter": files("stable_diffusion"), "ip_adapter_image": SEEN}
    levels = make_settings(generator, Sampling(num_inference_steps=4), 32, 32).levels
    middle = (levels[1].logsnr + levels[2].logsnr) / 2
    whole, plain = generator("a cat", **shown, **call), generator("a cat", **call)
    half = generator("a cat", **shown, ip_adapter_range=(-1000, middle), **call)
    for other in (whole, plain):
        assert (half.images[0] - other.images[0]).abs().max() > 1e-3
    never = generator("a cat", **shown, ip_adapter_range=(900, 1000), **call)
    assert torch.equal(never.images[0], plain.images[0])


def test_recipes_know_the_pictures(bridged, files, tmp_path):
    from gen.pipeline.recipe import Recipe

    _, generator = bridged("sdxl")
    given = {"ip_adapter": files("sdxl"), "ip_adapter_image": [SEEN, OTHER]}
    how = {"ip_adapter_scale": [0.5, 0.9], "ip_adapter_range": (-3.0, 9.0)}
    made = generator(["a cat", "a dog"], "blurry", **given, **how, **CALL)
    recipe = Recipe.from_json(made.recipes[1].to_json())
    record = recipe.image_prompts[0]
    assert record.scale == (0.5, 0.9) and record.interval == (-3.0, 9.0) and len(record.images) == 2
    assert torch.equal(generator.replay(recipe, "latent", progress=False, **given).images[0], made.images[1])
    layered = generator("a cat", **given, ip_adapter_scale={"up": 0.5}, **CALL)
    again = generator.replay(Recipe.from_json(layered.recipes[0].to_json()), "latent", progress=False, **given)
    assert torch.equal(again.images[0], layered.images[0])
    with pytest.raises(ValueError, match="made with 1 IP-Adapter, which its recipe does not hold"):
        generator.replay(recipe, progress=False)
    with pytest.raises(ValueError, match="This ip_adapter_image is not what the picture was made with"):
        generator.replay(recipe, progress=False, **{**given, "ip_adapter_image": [OTHER, SEEN]})
    with pytest.raises(ValueError, match="This ip_adapter is not what"):
        generator.replay(recipe, progress=False, **{**given, "ip_adapter": files("sdxl", "plain", 7)})


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"ip_adapter": None}, "ip_adapter_image was given without ip_adapter"),
        ({"ip_adapter_image": None}, "given without a picture; give ip_adapter_image"),
        ({"ip_adapter_scale": [1.0, 2.0]}, "has 2 numbers where an adapter has 1 pictures"),
        ({"ip_adapter_scale": "much"}, "ip_adapter_scale is 'much'"),
        ({"ip_adapter_mask": [SEEN[:1], SEEN[:1]]}, "has 2 masks where an adapter has 1 pictures"),
        ({"ip_adapter_range": (2.0, 1.0)}, "its first value must be the lower"),
        ({"ip_adapter": 3}, "ip_adapter is 3; give the file"),
        ({"ip_adapter": "nowhere.safetensors"}, "does not exist"),
        ({"ip_adapter_image": [SEEN] * 17}, "17 pictures; give 16 at most"),
        ({"ip_adapter_image_embeds": torch.zeros(1, 12)}, "say the same twice"),
        ({"ip_adapter_image_embeds": torch.full((1, 12), torch.nan), "ip_adapter_image": None}, "give finite numbers"),
        ({"ip_adapter_encoder": "no/where/at/all"}, "is no folder"),
    ],
)
def test_wrong_requests_are_one_sentence(bridged, files, asked, said):
    _, generator = bridged("stable_diffusion")
    with pytest.raises(ValueError, match=said):
        generator("a cat", **{"ip_adapter": files("stable_diffusion"), "ip_adapter_image": SEEN, **asked}, **CALL)


def test_files_from_outside_are_checked(bridged, files, tiny, tmp_path):
    pipeline, generator = bridged("stable_diffusion")
    good = ip_adapters.ip_adapter(pipeline.unet)
    with pytest.raises(ValueError, match="This model takes no IP-Adapter"):
        tiny("a cat", ip_adapter=files("stable_diffusion"), ip_adapter_image=SEEN, **CALL)
    hostile = {
        "no adapter": ({"weight": torch.zeros(2)}, "is no IP-Adapter"),
        "more": ({**good, "other.weight": torch.zeros(2)}, "has the unknown tensor 'other.weight'"),
        "inside": ({**good, "ip_adapter.1.to_z.weight": torch.zeros(2)}, "has the unknown 1.to_z.weight"),
        "kind": ({**good, "image_proj.x": torch.zeros(2)}, "does not fit ImageProjection: 'x'"),
        "nan": ({**good, "image_proj.norm.bias": torch.full((16,), torch.nan)}, "holds NaN"),
        "fewer": ({k: v for k, v in good.items() if k != "ip_adapter.1.to_v_ip.weight"}, "has to_v_ip missing"),
        "empty": ({"image_proj.norm.weight": torch.zeros(0), "image_proj.proj.weight": torch.zeros(4, 4)}, "damaged image"),
        "layers": ({k: v for k, v in good.items() if ".1." not in k}, "is for a network of"),
    }
    for name, (tensors, said) in hostile.items():
        file = ip_adapters.save(tmp_path / name, tensors)
        with pytest.raises(ValueError, match=said):
            generator("a cat", ip_adapter=file, ip_adapter_image=SEEN, **CALL)
    with pytest.raises(ValueError, match=r"it is for another network"):
        generator("a cat", ip_adapter=files("sdxl"), ip_adapter_image=SEEN, **CALL)
    alone = tmp_path / "alone" / "deep"
    alone.mkdir(parents=True)
    (alone / "a.safetensors").write_bytes(files("stable_diffusion").read_bytes())
    with pytest.raises(ValueError, match="There is no folder image_encoder near"):
        generator("a cat", ip_adapter=alone / "a.safetensors", ip_adapter_image=SEEN, **CALL)
    ip_adapters.image_encoder(embeds=10).save_pretrained(tmp_path / "narrow", safe_serialization=True)
    with pytest.raises(ValueError, match=r"reads features of width 12, and .* gives 10"):
        generator(
            "a cat", ip_adapter=alone / "a.safetensors", ip_adapter_encoder=tmp_path / "narrow", ip_adapter_image=SEEN, **CALL
        )


def test_a_pickle_opens_after_its_conversion(bridged, files, tmp_path, monkeypatch):
    from gen.cli import app

    pipeline, generator = bridged("stable_diffusion")
    flat = ip_adapters.ip_adapter(pipeline.unet)
    nested = {
        part: {k.removeprefix(f"{part}."): v for k, v in flat.items() if k.startswith(part)}
        for part in ("image_proj", "ip_adapter")
    }
    torch.save(nested, tmp_path / "a.bin")
    asked = {"ip_adapter_image": SEEN, "ip_adapter_encoder": files("stable_diffusion").parent}
    with pytest.raises(ValueError, match="--from-pickle"):
        generator("a cat", ip_adapter=tmp_path / "a.bin", **asked, **CALL)
    assert app.main(["convert", "--from-pickle", str(tmp_path / "a.bin"), str(tmp_path / "a.safetensors")]) == 0
    made = generator("a cat", ip_adapter=tmp_path / "a.safetensors", **asked, **CALL)
    usual = generator("a cat", ip_adapter=files("stable_diffusion"), ip_adapter_image=SEEN, **CALL)
    assert torch.equal(made.images[0], usual.images[0])


def test_the_command_line_sees_pictures(bridged, files, tmp_path, monkeypatch):
    from gen.cli import app
    from gen.generator import Generator
    from gen.pipeline.png import read_recipe

    _, generator = bridged("stable_diffusion")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Generator, "from_pretrained", lambda *given, **named: generator)
    picture(SEEN).save("cat.png")
    adapter = ["--ip-adapter", files("stable_diffusion")]
    command = ["image", "a cat", "--seed", 1, "--steps", 1, "-o", "a.png", "--model", "sd", *adapter]
    command += ["--image-prompt", "cat.png:0.6", "--image-prompt-range", "-9", "9"]
    assert app.main([str(part) for part in command]) == 0
    record = read_recipe(tmp_path / "a.png").image_prompts[0]
    assert record.scale == (0.6,) and record.interval == (-9.0, 9.0)
    again = ["replay", "a.png", "--model", "sd", *adapter, "--image-prompt", "cat.png"]
    assert app.main([str(part) for part in again]) == 0
