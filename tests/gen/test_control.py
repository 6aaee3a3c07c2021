"""ControlNets, against diffusers' pipelines with the same networks; several, ranges, what they go with, and hostile folders."""

from __future__ import annotations

import json
import math
import warnings
from functools import cache
from types import SimpleNamespace

import pytest
import torch

from gen.generator import Generator
from gen.io.weights import CheckpointError
from gen.models.control import find_control, open_control
from gen.pipeline.png import read_recipe
from gen.pipeline.recipe import Recipe
from gen.pipeline.settings import Sampling, make_settings
from tests.gen import newer_families, original_layouts, pipelines
from tests.gen.test_bridge_parity import CLOSE, noise, ours, pack, theirs

EDGES = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
OTHER = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(2))
CALL = {"seed": 1, "num_inference_steps": 2, "progress": False, "output_type": "latent"}
FAMILIES = ("stable_diffusion", "sdxl", "sd3", "flux")


def network_for(name: str, pipeline, seed: int, **options):
    """A ControlNet for a tiny pipeline, none of its weights zero."""
    import diffusers

    if name in ("stable_diffusion", "sdxl", "sdxl_refiner"):
        control = diffusers.ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(4, 8), **options)
    elif name == "sd3":
        kept = {key: value for key, value in pipeline.transformer.config.items() if not key.startswith("_")}
        known = ("sample_size", "patch_size", "in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim",
                 "caption_projection_dim", "pooled_projection_dim", "out_channels", "pos_embed_max_size")  # fmt: skip
        sizes = {key: kept[key] for key in known} | {"num_layers": 1, **options}
        control = diffusers.SD3ControlNetModel(**sizes)
    elif name == "qwen_image":
        known = ("in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim", "axes_dims_rope")
        sizes = {key: pipeline.transformer.config[key] for key in known}
        control = diffusers.QwenImageControlNetModel(**sizes, **{"num_layers": 1, **options})
    else:
        known = ("in_channels", "num_layers", "num_single_layers", "attention_head_dim", "num_attention_heads",
                 "joint_attention_dim", "pooled_projection_dim", "guidance_embeds", "axes_dims_rope")  # fmt: skip
        sizes = {key: pipeline.transformer.config[key] for key in known}
        control = diffusers.FluxControlNetModel(patch_size=1, **sizes, **options)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in control.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.05)
    return control.eval()


@pytest.fixture(scope="module")
def opened(bridged, tmp_path_factory):
    """name, seed, options -> (our generator, a ControlNet, its folder)."""

    @cache
    def open_one(name: str, seed: int = 5, **options):
        pipeline, generator = bridged(name)
        control = network_for(name, pipeline, seed, **options)
        folder = tmp_path_factory.mktemp("controls") / f"{name}-{seed}"
        control.save_pretrained(folder, safe_serialization=True)
        return generator, control, folder

    return open_one


def controlled(name: str, pipeline, controls):
    import diffusers

    kind = {
        "stable_diffusion": "StableDiffusionControlNetPipeline",
        "sdxl": "StableDiffusionXLControlNetPipeline",
        "sd3": "StableDiffusion3ControlNetPipeline",
        "flux": "FluxControlNetPipeline",
        "qwen_image": "QwenImageControlNetPipeline",
    }[name]
    parts = dict(pipeline.components)
    if name == "stable_diffusion":
        parts["requires_safety_checker"] = False
    made = getattr(diffusers, kind)(**parts, controlnet=controls)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(autouse=True)
def means(monkeypatch):
    """The pipelines draw a picture's latents; ours are the means."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_picture_with_control_is_the_pipelines_own(bridged, opened, name):
    pipeline, _ = bridged(name)
    generator, control, folder = opened(name)
    keyword = "image" if name in ("stable_diffusion", "sdxl") else "control_image"
    x = noise(generator, 1)
    picture = EDGES[None] if keyword == "image" else EDGES[None] * 2 - 1  # tensors are taken as they are
    reference = theirs(
        name, controlled(name, pipeline, control), x, 4.0, controlnet_conditioning_scale=0.7, **{keyword: picture}
    )
    found = ours(name, generator, x, 4.0, control=EDGES, controlnet=folder, control_weight=0.7)
    torch.testing.assert_close(found, reference, **CLOSE)
    assert (ours(name, generator, x, 4.0) - found).abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_several_are_summed_with_their_weights(bridged, opened, name):
    pipeline, _ = bridged(name)
    (generator, first, one), (_, second, two) = opened(name), opened(name, 6)
    keyword = "image" if name in ("stable_diffusion", "sdxl") else "control_image"
    x = noise(generator, 1)
    pictures = [EDGES[None], OTHER[None]] if keyword == "image" else [EDGES[None] * 2 - 1, OTHER[None] * 2 - 1]
    multi = [first, second]
    if name == "flux":
        from diffusers import FluxMultiControlNetModel

        multi = FluxMultiControlNetModel(multi)
    reference = theirs(
        name, controlled(name, pipeline, multi), x, 4.0, controlnet_conditioning_scale=[0.7, 0.4], **{keyword: pictures},
    )  # fmt: skip
    asked = {"control": [EDGES, OTHER], "controlnet": [one, two], "control_weight": [0.7, 0.4]}
    torch.testing.assert_close(ours(name, generator, x, 4.0, **asked), reference, **CLOSE)


@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl"])
@pytest.mark.parametrize("channels", [3, 1])
def test_t2i_adapters_give_the_pipelines_picture(bridged, tmp_path, name, channels):
    import diffusers

    pipeline, generator = bridged(name)
    # the tiny U-Nets halve the picture where SDXL's does
    sizes = {"channels": [8, 16], "num_res_blocks": 1, "downscale_factor": 4, "adapter_type": "full_adapter_xl"}
    adapter = pipelines.seeded(diffusers.T2IAdapter, in_channels=channels, seed=8, **sizes)
    adapter.save_pretrained(tmp_path / "adapter", safe_serialization=True)
    parts = dict(pipeline.components)
    if name == "stable_diffusion":
        parts.pop("image_encoder", None)
        made = diffusers.StableDiffusionAdapterPipeline(**parts, adapter=adapter, requires_safety_checker=False)
    else:
        made = diffusers.StableDiffusionXLAdapterPipeline(**parts, adapter=adapter)
    made.set_progress_bar_config(disable=True)
    x = noise(generator, 1)
    grey = (EDGES * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
    picture = (EDGES if channels == 3 else grey)[None]
    reference = theirs(name, made, x, 4.0, image=picture, adapter_conditioning_scale=0.6)
    if not isinstance(reference, torch.Tensor):  # that pipeline knows no "pt"
        reference = torch.from_numpy(reference).permute(0, 3, 1, 2)
    found = ours(name, generator, x, 4.0, control=EDGES, controlnet=tmp_path / "adapter", control_weight=0.6)
    torch.testing.assert_close(found, reference, **CLOSE)
    assert (ours(name, generator, x, 4.0) - found).abs().max() > 1e-3


def test_a_union_is_told_its_control(bridged, opened):
    pipeline, _ = bridged("flux")
    generator, control, folder = opened("flux", 7, num_mode=3)
    x = noise(generator, 1)
    made = controlled("flux", pipeline, control)
    options = {"control_image": EDGES[None] * 2 - 1, "control_mode": 2, "controlnet_conditioning_scale": 1.0}
    reference = theirs("flux", made, x, 4.0, **options)
    found = ours("flux", generator, x, 4.0, control=EDGES, controlnet=folder, control_mode=2)
    torch.testing.assert_close(found, reference, **CLOSE)
    with pytest.raises(ValueError, match="is a union; give control_mode"):
        generator("a cat", control=EDGES, controlnet=folder, **CALL)


def test_a_union_of_sdxl_is_told_its_control(bridged, tmp_path):
    import diffusers

    pipeline, generator = bridged("sdxl")
    config = pipeline.unet.config
    known = (
        *("in_channels", "down_block_types", "block_out_channels", "layers_per_block", "norm_num_groups"),
        *("cross_attention_dim", "attention_head_dim", "addition_embed_type", "addition_time_embed_dim"),
        *("transformer_layers_per_block", "projection_class_embeddings_input_dim", "use_linear_projection"),
    )
    width = config.block_out_channels[0]
    control = pipelines.seeded(
        diffusers.ControlNetUnionModel, **{name: config[name] for name in known}, num_control_type=4, num_trans_channel=width,
        num_trans_head=2, num_proj_channel=width, conditioning_embedding_out_channels=(4, 8), seed=5,
    )  # fmt: skip
    control.save_pretrained(tmp_path / "union", safe_serialization=True)
    made = diffusers.StableDiffusionXLControlNetUnionPipeline(**pipeline.components, controlnet=control)
    made.set_progress_bar_config(disable=True)
    x = noise(generator, 1)
    asked = {"control": EDGES, "controlnet": tmp_path / "union", "control_weight": 0.7}
    found = ours("sdxl", generator, x, 4.0, control_mode=2, **asked)
    options = {"control_image": [EDGES[None]], "control_mode": [2], "controlnet_conditioning_scale": 0.7}
    torch.testing.assert_close(found, theirs("sdxl", made, x, 4.0, **options), **CLOSE)
    others = [ours("sdxl", generator, x, 4.0, control_mode=mode, **asked) for mode in (0, 3)]
    assert all((other - found).abs().max() > 1e-4 for other in others)
    prompts = ["a cat", "moon " * 40]  # of unequal length, which are read one by one
    both = generator(prompts, "blurry", control_mode=1, **asked, **CALL).images
    for i, prompt in enumerate(prompts):
        alone = generator(prompt, "blurry", control_mode=1, **asked, **{**CALL, "seed": 1 + i}).images[0]
        torch.testing.assert_close(alone, both[i], atol=2e-4, rtol=0)
    with pytest.raises(ValueError, match="is a union; give control_mode"):
        generator("a cat", **asked, **CALL)
    with pytest.raises(ValueError, match="give a whole number from 0 to 3"):
        generator("a cat", control_mode=4, **asked, **CALL)


def test_xlabs_controlnets_of_flux_read_pixels(tmp_path):
    """Their few layers repeat over FLUX's, where those of others are stretched; several at once, and no others beside them."""
    import diffusers

    pipeline = pipelines.flux()
    config = dict(pipeline.vae.config) | {"block_out_channels": (8,) * 4, "norm_num_groups": 4}
    config |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    pipeline.vae = pipelines.seeded(diffusers.AutoencoderKL.from_config, config)  # 8 pixels, as the published one
    pipeline.transformer = pipelines.seeded(
        diffusers.FluxTransformer2DModel.from_config, {**pipeline.transformer.config, "num_layers": 4}
    )
    generator = Generator.from_pretrained(pipelines.save(pipeline, tmp_path / "flux"), device="cpu", dtype="float32")
    nets, folders = [], []
    for seed in (8, 9):
        pixels = {"num_layers": 2, "num_single_layers": 0, "patch_size": 2, "conditioning_embedding_channels": 4}
        known = ("in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim", "pooled_projection_dim",
                 "guidance_embeds", "axes_dims_rope")  # fmt: skip
        sizes = {key: pipeline.transformer.config[key] for key in known}
        nets.append(pipelines.seeded(diffusers.FluxControlNetModel, **sizes, **pixels, seed=seed))
        nets[-1].save_pretrained(tmp_path / f"control-{seed}", safe_serialization=True)
        folders.append(tmp_path / f"control-{seed}")
    pictures = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    x = torch.randn(1, generator.channels, 8, 8, generator=torch.Generator().manual_seed(3))
    call = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "pt"}

    def mine(drawn_by=generator, **more):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return drawn_by("a cat", latents=x, guidance_scale=3.0, progress=False, **call, **more).images

    def reference(controls, picture, scale):
        made = controlled("flux", pipeline, controls)
        options = {"control_image": picture, "controlnet_conditioning_scale": scale, "guidance_scale": 3.0}
        return made("a cat", latents=pack(x), **options, **call).images

    one = mine(control=pictures[0], controlnet=folders[0], control_weight=0.7)
    torch.testing.assert_close(one, reference(nets[0], pictures[0][None] * 2 - 1, 0.7), **CLOSE)
    assert (mine() - one).abs().max() > 1e-3
    both = mine(control=pictures, controlnet=folders, control_weight=[0.7, 0.4])
    own = Generator.from_pretrained(tmp_path / "flux", device="cpu", dtype="float32", native=True)
    asked = {"control": pictures, "controlnet": folders, "control_weight": [0.7, 0.4]}
    torch.testing.assert_close(mine(own, **asked), both, atol=1e-5, rtol=0)
    several = diffusers.FluxMultiControlNetModel(nets)
    torch.testing.assert_close(both, reference(several, [one[None] * 2 - 1 for one in pictures], [0.7, 0.4]), **CLOSE)
    other = pipelines.seeded(diffusers.FluxControlNetModel, **sizes, patch_size=1, num_layers=2, num_single_layers=0)
    other.save_pretrained(tmp_path / "other", safe_serialization=True)
    with pytest.raises(ValueError, match="in the way of XLabs and others are spread"):
        mine(control=pictures, controlnet=[folders[0], tmp_path / "other"])


def in_the_names_of_xlabs(network):
    """A FluxControlNetModel's tensors as XLabs' files name them."""
    top = {"controlnet_x_embedder": "pos_embed_input"} | {
        f"input_hint_block.{name}": f"input_hint_block.{2 * i}"
        for i, name in enumerate(("conv_in", *(f"blocks.{i}" for i in range(6)), "conv_out"))
    }
    own, of_flux = {}, {}
    for name, value in network.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        if layer in top or layer.startswith("controlnet_blocks."):
            own[f"{top.get(layer, layer)}.{leaf}"] = value
        else:
            of_flux[name] = value
    tensors = own | original_layouts.flux(SimpleNamespace(state_dict=lambda: of_flux))
    return {name: value.clone().contiguous() for name, value in tensors.items()}


def test_xlabs_own_files(tmp_path):
    """The same network to the bit; a file for another one, a damaged one and one of something else are refused."""
    import diffusers
    from safetensors.torch import save_file

    sizes = {
        "in_channels": 16, "num_layers": 2, "num_single_layers": 0, "attention_head_dim": 128, "num_attention_heads": 1,
        "joint_attention_dim": 24, "pooled_projection_dim": 8, "guidance_embeds": True, "axes_dims_rope": (16, 56, 56),
    }  # fmt: skip
    made = pipelines.seeded(diffusers.FluxControlNetModel, **sizes, patch_size=2, conditioning_embedding_channels=4, seed=8)
    tensors, path = in_the_names_of_xlabs(made), tmp_path / "flux-canny-controlnet.safetensors"
    save_file(tensors, path)

    def network(**others):
        config = {**sizes, **others}
        return SimpleNamespace(controlled_by=("FluxControlNetModel",), bridged=True, network=SimpleNamespace(config=config))

    control = open_control(find_control(str(path))[0], network(), 8, torch.float32, torch.device("cpu"))
    opened = control.network.state_dict()
    assert opened.keys() == made.state_dict().keys()
    assert all(torch.equal(value, opened[name]) for name, value in made.state_dict().items())
    assert control.repeats and not control.reads_latents and control.digest
    assert {name: control.network.config[name] for name in made.config if name[0] != "_"} == {
        name: list(value) if isinstance(value, tuple) else value for name, value in made.config.items() if name[0] != "_"
    }
    with pytest.raises(CheckpointError, match="joint_attention_dim 24, and this model's network 32"):
        open_control(path, network(joint_attention_dim=32), 8, torch.float32, torch.device("cpu"))
    for change, said in (
        ({"double_blocks.0.other": torch.zeros(1)}, "has the unknown tensor 'double_blocks.0.other'"),
        ({"controlnet_blocks.1.weight": None}, "lacks"),
        ({"pos_embed_input.weight": None}, "is no ControlNet that opens from one file"),
    ):
        kept = {name: value for name, value in {**tensors, **change}.items() if value is not None}
        save_file(kept, path)
        with pytest.raises(CheckpointError, match=said):
            open_control(path, network(), 8, torch.float32, torch.device("cpu"))


def test_controlnets_of_qwen_image(bridged, opened, tmp_path):
    """The pipeline's own picture: one and, of a union, several at once; under guidance, both branches get what control
    adds to the prompt."""
    import diffusers

    pipeline, _ = bridged("qwen_image")
    generator, control, folder = opened("qwen_image")
    row, x = newer_families.FAMILIES["qwen_image"], newer_families.latents_for(generator, 1)
    asked = {"control_image": EDGES[None] * 2 - 1, "controlnet_conditioning_scale": 0.7}
    made = controlled("qwen_image", pipeline, control)
    for scale, guided in ((1.0, {}), (4.0, {"negative_prompt": ["blurry"]})):
        reference = newer_families.theirs(row, made, x, true_cfg_scale=scale, num_inference_steps=3, **asked, **guided)
        mine = {"guidance_scale": scale, "num_inference_steps": 3, **({"negative_prompt": "blurry"} if guided else {})}
        found = newer_families.ours(generator, x, control=EDGES, controlnet=folder, control_weight=0.7, **mine)
        torch.testing.assert_close(found, reference, **CLOSE)
        assert (newer_families.ours(generator, x, **mine) - found).abs().max() > 1e-3
    several = controlled("qwen_image", pipeline, diffusers.QwenImageMultiControlNetModel([control]))
    pictures = [EDGES[None] * 2 - 1, OTHER[None] * 2 - 1]
    both = {"control_image": pictures, "controlnet_conditioning_scale": [0.7, 0.4]}
    reference = newer_families.theirs(row, several, x, true_cfg_scale=1.0, num_inference_steps=3, **both)
    mine = {"control": [EDGES, OTHER], "controlnet": [folder], "control_weight": [0.7, 0.4], "guidance_scale": 1.0}
    torch.testing.assert_close(newer_families.ours(generator, x, num_inference_steps=3, **mine), reference, **CLOSE)
    network_for("qwen_image", pipeline, 5, extra_condition_channels=4).save_pretrained(
        tmp_path / "fill", safe_serialization=True
    )
    with pytest.raises(CheckpointError, match="reads a mask beside its picture"):
        generator("a cat", control=EDGES, controlnet=tmp_path / "fill", **CALL)


def test_it_acts_within_its_range(opened):
    """A run in which control acts in its first half is that run's first half, and plain from there on."""
    generator, _, folder = opened("stable_diffusion")
    levels = make_settings(generator, Sampling(num_inference_steps=4), 32, 32).levels
    middle = (levels[1].logsnr + levels[2].logsnr) / 2
    call = {**CALL, "num_inference_steps": 4}
    asked = {"control": EDGES, "controlnet": folder}
    seen = []
    forward = generator.network.control
    generator.network.control = lambda *given: seen.append(bool(out := forward(*given))) or out
    try:
        half = generator("a cat", **asked, control_range=(-1000, middle), **call)
    finally:
        del generator.network.control
    assert seen == [True, True, False, False]
    whole, plain = generator("a cat", **asked, **call), generator("a cat", **call)
    assert not torch.equal(half.images[0], whole.images[0]) and not torch.equal(half.images[0], plain.images[0])
    none = generator("a cat", **asked, control_range=(900, 1000), **call)
    assert torch.equal(none.images[0], plain.images[0])
    zero = generator("a cat", **asked, control_weight=0.0, **call)
    torch.testing.assert_close(zero.images[0], plain.images[0], atol=1e-5, rtol=0)
    everywhere = generator("a cat", **asked, control_range=(-math.inf, math.inf), **call)
    assert torch.equal(everywhere.images[0], whole.images[0]) and everywhere.recipes[0].control[0].interval is None


def test_recipes_know_what_was_followed(opened):
    generator, _, folder = opened("sdxl")
    asked = {"control": [EDGES, OTHER], "controlnet": [folder]}
    made = generator(["a cat", "a dog"], "blurry", control_weight=[0.5, 1.0], control_range=(-3.0, 2.0), **asked, **CALL)
    recipe = Recipe.from_json(made.recipes[1].to_json())
    assert [one.weight for one in recipe.control] == [0.5, 1.0] and recipe.control[0].interval == (-3.0, 2.0)
    assert torch.equal(generator.replay(recipe, "latent", progress=False, **asked).images[0], made.images[1])
    alone = generator("a dog", "blurry", control_weight=[0.5, 1.0], control_range=(-3.0, 2.0), **asked, **{**CALL, "seed": 2})
    assert torch.equal(alone.images[0], made.images[1])
    with pytest.raises(ValueError, match="followed 2 pictures, which its recipe does not hold"):
        generator.replay(recipe, progress=False)
    with pytest.raises(ValueError, match="This control is not the one"):
        generator.replay(recipe, progress=False, control=[OTHER, EDGES], controlnet=[folder])


@pytest.mark.parametrize(
    "call",
    [
        {"prompt": "a [red:blue:0.5] cat AND a dog:0.5"},
        {"guidance": "nag"},
        {"guidance": "pag"},
        {"cache": "reuse"},
        {"image": torch.full((3, 32, 32), 0.5), "strength": 0.9},
        {"prompt": ["a cat", "moon " * 40]},  # of unequal length
    ],
)
def test_it_goes_with_the_rest(opened, call):
    generator, _, folder = opened("stable_diffusion")
    asked = {"prompt": "a cat", "negative_prompt": "blurry", "control": EDGES, "controlnet": folder, **call}
    made = generator(**asked, **CALL)
    plain = generator(**{name: v for name, v in asked.items() if not name.startswith("control")}, **CALL)
    assert bool(made.images[0].isfinite().all()) and not torch.equal(made.images[0], plain.images[0])
    if isinstance(asked["prompt"], list):
        for i, prompt in enumerate(asked["prompt"]):
            alone = generator(**{**asked, "prompt": prompt}, **{**CALL, "seed": 1 + i})
            torch.testing.assert_close(alone.images[0], made.images[i], atol=2e-4, rtol=0)


def test_it_goes_with_regions(opened):
    generator, _, folder = opened("stable_diffusion")
    whole = {"regions": [{"prompt": "a cat", "box": [0, 0, 1, 1]}]}
    placed = generator.layout(whole, control=EDGES, controlnet=folder, **CALL)
    plain = generator("a cat", control=EDGES, controlnet=folder, **CALL)
    torch.testing.assert_close(placed.images[0], plain.images[0], atol=1e-5, rtol=0)
    asked = {"control": EDGES, "controlnet": folder, **CALL}
    low = make_settings(generator, Sampling(num_inference_steps=2), 32, 32).levels[0].logsnr
    early = generator.layout(whole, **asked, control_range=(low - 1, low + 0.1))
    torch.testing.assert_close(
        early.images[0], generator("a cat", **asked, control_range=(low - 1, low + 0.1)).images[0], atol=1e-5, rtol=0
    )
    assert (early.images[0] - placed.images[0]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="takes no control; leave it out"):
        generator.ambiguous("a cat", "a dog", control=EDGES, controlnet=folder, **CALL)


def test_windows_of_a_canvas_follow_their_part_of_the_picture(opened):
    """A canvas of two windows that do not overlap is two pictures beside one another, each with its half of the edges."""
    generator, _, folder = opened("stable_diffusion")
    edges = torch.cat([EDGES, OTHER], dim=2)
    latents = torch.randn(1, generator.channels, 16, 32, generator=torch.Generator().manual_seed(0))
    call = {**CALL, "guidance_scale": 3.0, "sampler": "euler", "controlnet": folder, "negative_prompt": "blurry"}
    asked = {"width": 64, "height": 32, "window": 32, "stride": 32, "weights": "flat"}
    wide = generator.panorama("a cat AND a dog:0.5", latents=latents, control=edges, **asked, **call)
    for i, own in enumerate((EDGES, OTHER)):
        half = latents[..., 16 * i : 16 * (i + 1)]
        alone = generator("a cat AND a dog:0.5", latents=half, height=32, width=32, control=own, **call)
        torch.testing.assert_close(wide.images[0][..., 16 * i : 16 * (i + 1)], alone.images[0], atol=1e-4, rtol=0)


def test_windows_of_a_layout_follow_theirs(opened):
    generator, _, folder = opened("stable_diffusion")
    halves = [{"prompt": "a cat", "box": [0, 0, 32, 32]}, {"prompt": "a dog", "box": [32, 0, 32, 32]}]
    latents = torch.randn(1, generator.channels, 16, 32, generator=torch.Generator().manual_seed(0))
    edges = torch.cat([EDGES, OTHER], dim=2)
    layout = {"regions": halves, "bootstrap": None}
    wide = generator.layout(layout, latents=latents, width=64, height=32, control=edges, controlnet=folder, **CALL)
    for i, (own, prompt) in enumerate(((EDGES, "a cat"), (OTHER, "a dog"))):
        half = latents[..., 16 * i : 16 * (i + 1)]
        alone = generator(prompt, latents=half, height=32, width=32, control=own, controlnet=folder, **CALL)
        torch.testing.assert_close(wide.images[0][..., 16 * i : 16 * (i + 1)], alone.images[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"control": EDGES}, "control and controlnet go together"),
        ({"control_weight": 0.5}, "was given without control and controlnet"),
        ({"control": [EDGES] * 3, "controlnet": ["a", "b"]}, "has 3 pictures and controlnet 2 folders"),
        ({"control": EDGES, "controlnet": 3}, "give the folder of a ControlNet"),
        (
            {"control": EDGES, "controlnet": "nowhere"},
            "controlnet is 'nowhere', which is no folder here, nor a safetensors file",
        ),
        ({"control_mode": 1}, "is for one control; leave out control_mode"),
        ({"control_weight": [1.0, 2.0]}, "control_weight has 2 entries where 1 are asked for"),
        ({"control_range": (2.0, 1.0)}, "its first value must be the lower"),
    ],
)
def test_wrong_requests_are_one_sentence(opened, asked, said):
    generator, _, folder = opened("stable_diffusion")
    usual = {} if "control" in asked or "was given" in said else {"control": EDGES, "controlnet": folder}
    with pytest.raises(ValueError, match=said):
        generator("a cat", **usual, **asked, **CALL)


def test_files_from_outside_are_checked(opened, tiny, tmp_path):
    import shutil

    generator, _, folder = opened("stable_diffusion")
    with pytest.raises(ValueError, match="takes no ControlNet"):
        tiny("a cat", control=EDGES, controlnet=folder, **CALL)
    with pytest.raises(CheckpointError, match="cross_attention_dim 32, and this model's network 16"):
        generator("a cat", control=EDGES, controlnet=opened("sdxl")[2], **CALL)
    with pytest.raises(CheckpointError, match="is a 'FluxControlNetModel', and this model takes a ControlNetModel"):
        generator("a cat", control=EDGES, controlnet=opened("flux")[2], **CALL)

    def changed(name: str, **values) -> str:
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, **values}))
        return str(copy)

    for name, values, said in (
        ("class", {"_class_name": "os.system"}, "is a 'os.system'"),
        ("code", {"auto_map": {"x": "y.Z"}}, "chooses code to run"),
        ("pool", {"global_pool_conditions": True}, "pools what it adds"),
        ("deep", {"layers_per_block": 5000}, "layers"),
    ):
        with pytest.raises(CheckpointError, match=said):
            generator("a cat", control=EDGES, controlnet=changed(name, **values), **CALL)
    pickled = changed("pickle")
    weights = tmp_path / "pickle" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match="a pickle file"):
        generator("a cat", control=EDGES, controlnet=pickled, **CALL)


def test_the_command_line_follows_pictures(opened, tmp_path, monkeypatch):
    from gen.cli import app
    from gen.generator import Generator
    from gen.pipeline.output import to_pil

    generator, _, folder = opened("stable_diffusion")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Generator, "from_pretrained", lambda *given, **named: generator)
    to_pil(EDGES.permute(1, 2, 0)[None].numpy())[0].save("edges.png")
    control = ["--control", "edges.png", "--controlnet", folder]
    options = ["--control-weight", "0.5", "--control-range", "-5", "5"]
    command = ["image", "a cat", "--seed", 1, "--steps", 1, "-o", "a.png", "--model", "sd", *control, *options]
    assert app.main([str(part) for part in command]) == 0
    recipe = read_recipe(tmp_path / "a.png")
    assert recipe.control[0].weight == 0.5 and recipe.control[0].interval == (-5.0, 5.0)
    assert app.main([str(part) for part in ("replay", "a.png", "--model", "sd", *control)]) == 0
    assert pipelines.SIZE == 32
