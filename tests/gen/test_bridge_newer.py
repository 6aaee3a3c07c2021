"""The newer families, one row each in `tests.gen.newer_families`: the pipeline's own picture at its defaults, and what is ours
on top: caches by hooks, adapters per sample, files of LoRA, previews."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import save_file

from gen.adapters.resolve import Index
from gen.generator import Generator
from gen.io.images import read_picture
from samplers.denoiser import Context
from tests.gen import pipelines, pipelines_chat
from tests.gen.lora import factors, kohya
from tests.gen.newer_families import CLOSE, FAMILIES, NEGATIVE, PROMPT, attentions, latents_for, ours, theirs
from tests.gen.pipelines import SIZE
from tests.gen.test_bridge_editing import picture

WEIGHT = 0.7
every_family = pytest.mark.parametrize("name", FAMILIES)


@every_family
@pytest.mark.parametrize("steps", [4, 20])
def test_a_call_at_defaults_gives_the_pipelines_picture(bridged, name, steps):
    """Called with a number of steps alone; a negative prompt takes the place of the empty one."""
    row, (pipeline, generator) = FAMILIES[name], bridged(name)
    x = latents_for(generator, 2 if steps == 4 else 1)
    reference = theirs(row, pipeline, x, num_inference_steps=steps, **row.defaults)
    found = ours(generator, x, num_inference_steps=steps)
    assert reference.std() > 0.02
    torch.testing.assert_close(found, reference, **CLOSE)
    if row.negative is not None:
        negative = row.negative(pipeline, NEGATIVE)
        reference = theirs(row, pipeline, x, num_inference_steps=steps, **{**row.defaults, **negative})
        told = ours(generator, x, num_inference_steps=steps, negative_prompt=NEGATIVE)
        torch.testing.assert_close(told, reference, **CLOSE)
        assert (told - found).abs().max() > 1e-3


@every_family
def test_scales_and_no_guidance_are_the_pipelines(bridged, name):
    row, (pipeline, generator) = FAMILIES[name], bridged(name)
    x = latents_for(generator, 1)
    found = ours(generator, x, num_inference_steps=4, guidance_scale=2.5)
    torch.testing.assert_close(
        found, theirs(row, pipeline, x, num_inference_steps=4, **{**row.defaults, **row.scale(2.5)}), **CLOSE
    )
    plain = ours(generator, x, num_inference_steps=4, guidance_scale=1.0)
    torch.testing.assert_close(plain, theirs(row, pipeline, x, num_inference_steps=4, **row.unguided), **CLOSE)
    assert (plain - found).abs().max() > 1e-3


@every_family
def test_fewer_tokens_are_read_where_a_call_says_so(bridged, name):
    row, (pipeline, generator) = FAMILIES[name], bridged(name)
    if "max_sequence_length" not in generator.text_encoder.takes:
        pytest.skip("it has one way of reading")
    x = latents_for(generator, 1)
    call = {"num_inference_steps": 2, "max_sequence_length": 20}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        short = ours(generator, x, **call)
    torch.testing.assert_close(short, theirs(row, pipeline, x, **{**row.defaults, **call}), **CLOSE)
    assert (short - ours(generator, x, num_inference_steps=2)).abs().max() > 1e-4


@every_family
def test_prompts_of_other_lengths_beside_one_another(bridged, name):
    """A batch is what each picture is alone, and a prompt that is too long says what is left out."""
    _, generator = bridged(name)
    x = latents_for(generator, 2)
    options = {"num_inference_steps": 2, "output_type": "pt", "progress": False, "height": 32, "width": 32}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both = generator(["a cat", PROMPT + " " + PROMPT], latents=x, negative_prompt=NEGATIVE, **options).images
        for i, prompt in enumerate(("a cat", PROMPT + " " + PROMPT)):
            alone = generator(prompt, latents=x[i : i + 1], negative_prompt=NEGATIVE, **options).images
            torch.testing.assert_close(both[i : i + 1], alone, **CLOSE)
    with pytest.warns(UserWarning, match=r"longer than the \d+ tokens that the text encoder reads; not read: '"):
        generator.encode_prompt(["many words " * 100])
    weighted, plain = (generator.encode_prompt([prompt]).tokens for prompt in ("a (cat:1.3)", "a cat"))
    changed = (weighted - plain).abs().amax(-1)[0] > 0
    assert int(changed.sum()) == FAMILIES[name].cat


@every_family
def test_no_bit_of_a_picture_depends_on_the_lengths_of_prompts_beside_it(bridged, name):
    _, generator = bridged(name)
    prompts, x = ["a cat", PROMPT + " " + PROMPT, "a dog"], latents_for(generator, 3)
    options = {"num_inference_steps": 2, "output_type": "latent", "progress": False, "height": 32, "width": 32}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = generator(prompts, latents=x, batch_invariant=True, **options).images
        for i, prompt in enumerate(prompts):
            alone = generator(prompt, latents=x[i : i + 1], batch_invariant=True, **options).images
            assert torch.equal(together[i : i + 1], alone), prompt


@every_family
def test_block_caches_find_every_block(bridged, name):
    """Never skipping changes no bit; a cache that skips runs fewer blocks and gives another picture; all is put back."""
    row, (_, generator) = FAMILIES[name], bridged(name)
    x, seen = latents_for(generator, 1), set()
    plain = ours(generator, x, num_inference_steps=4)
    never = ours(generator, x, num_inference_steps=4, cache="first_block", cache_options={"threshold": 1e-9})
    assert torch.equal(never, plain)
    skipped = ours(generator, x, num_inference_steps=4, cache="first_block", cache_options={"threshold": 1e3})
    assert (skipped - plain).abs().max() > 1e-5 and skipped.isfinite().all()

    def hook(index, count, tokens, run):
        seen.add((index, count))
        return run()

    condition, time = generator.encode_prompt([PROMPT]), torch.tensor([0.5])
    with torch.no_grad():
        generator.network(x, time, condition, Context(hooks={"block": hook}))
    assert seen == {(i, row.blocks) for i in range(row.blocks)}
    # the picture's patches are the last tokens: what happens there is seen there, and nowhere else in the first block's input
    moved, kept = x.clone(), []
    moved[..., -1, -1] += 1.0
    for latents in (x, moved):
        with torch.no_grad():
            generator.network(
                latents,
                time,
                condition,
                Context(hooks={"block": lambda index, count, tokens, run: kept.append(tokens) or run()}),
            )
    changed = (kept[0] - kept[row.blocks]).abs().amax(-1)[0] > 0
    patches = (x.shape[2] // generator.network.config.patch) * (x.shape[3] // generator.network.config.patch)
    assert changed[-1] and (row.mixed or changed[:-1].sum() == 0) and not changed[:-patches].any()
    assert not [module for module in generator.network.modules() if "forward" in vars(module)]
    with pytest.raises(ValueError, match="cannot work on this network: its attention is over text and image together"):
        ours(generator, x, num_inference_steps=2, guidance="pag")


@every_family
def test_guidance_of_ours_goes_on_top(bridged, name):
    _, generator = bridged(name)
    x = latents_for(generator, 1)
    plain = ours(generator, x, num_inference_steps=3)
    for guidance in ("apg", "cfg_zero", "slg"):
        made = ours(generator, x, num_inference_steps=3, guidance=guidance, guidance_scale=3.0)
        assert made.isfinite().all() and (made - plain).abs().max() > 1e-4, guidance


@every_family
def test_edits_and_canvases_go_on_top(bridged, name):
    """A picture to start from, a mask that keeps to the pixel, and a panorama of windows."""
    _, generator = bridged(name)
    size = SIZE if generator.factor * generator.network.config.patch <= 4 else 2 * SIZE
    call = {"num_inference_steps": 2, "seed": 3, "output_type": "pt", "progress": False}
    picture, mask = torch.full((3, size, size), 0.5), torch.zeros(1, size, size)
    mask[:, :, size // 2 :] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sides = {"height": size, "width": size}
        started, again = (
            generator("a cat", image=picture, strength=strength, **sides, **call).images for strength in (0.5, 1.0)
        )
        edited = generator("a cat", image=picture, mask=mask, **sides, **call).images
        window = {"window": (size, size), "stride": (size, size // 2)}
        wide = generator.panorama("a cat", width=2 * size, height=size, **window, **call).images
    assert started.isfinite().all() and (started - again).abs().max() > 1e-3
    assert torch.equal(edited[..., : size // 2], picture[None, ..., : size // 2]) and edited[..., size // 2 :].std() > 0.01
    assert wide.shape == (1, 3, size, 2 * size) and wide.isfinite().all() and wide.std() > 0.01


def lora_file(tensors: dict[str, torch.Tensor], path):
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def spelled(naming: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """A file on layers of these names in kohya's, ComfyUI's or diffusers' form."""
    if naming == "kohya":
        return kohya("lora_unet", shapes)
    prefix = "transformer" if naming == "diffusers" else "diffusion_model"
    tensors = {}
    for seed, (name, (out, width)) in enumerate(shapes.items()):
        key = f"{prefix}.{name}"
        tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = factors(out, width, seed=seed)
    return tensors


@every_family
@pytest.mark.parametrize("naming", ["diffusers", "comfy", "kohya"])
@torch.no_grad()
def test_diffusers_gets_the_same_from_a_lora(bridged, tmp_path, name, naming):
    """On every attention of every block at least, by every naming that both read."""
    pytest.importorskip("peft")
    row, (pipeline, generator) = FAMILIES[name], bridged(name)
    shapes = row.lora.get(naming, attentions)(pipeline.transformer)
    file = lora_file(spelled(naming, shapes), tmp_path / f"{naming}.safetensors")
    x, time, condition = latents_for(generator, 2), torch.tensor([0.3, 0.8]), generator.encode_prompt(["a cat", PROMPT])
    plain = generator.network(x, time, condition, Context())
    own, both = generator.network.network, naming not in row.ours_alone
    if both:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="a")
            pipeline.set_adapters("a", WEIGHT)
    report = generator.load_adapter(file, "a", WEIGHT)
    try:
        assert report.complete and len(report.matched) == len(shapes)
        found = generator.network(x, time, condition, Context(adapters={"a": WEIGHT}))
        if both:
            generator.network.network = pipeline.transformer
            torch.testing.assert_close(found, generator.network(x, time, condition, Context()), atol=1e-4, rtol=1e-4)
        assert (found - plain).abs().max() > 0.01
        generator.network.network = own
        per_sample = generator.network(x, time, condition, Context(adapters={"a": torch.tensor([0.0, WEIGHT])}))
        torch.testing.assert_close(per_sample, torch.cat([plain[:1], found[1:]]), atol=1e-5, rtol=1e-5)
        saved = generator.save_adapter("a", tmp_path / "saved.safetensors")
    finally:
        generator.network.network = own
        generator.unload_adapter("a")
        if both:
            pipeline.unload_lora_weights()
    generator.load_adapter(saved, "b", WEIGHT)
    try:
        torch.testing.assert_close(
            generator.network(x, time, condition, Context(adapters={"b": WEIGHT})), found, atol=1e-5, rtol=1e-5
        )
    finally:
        generator.unload_adapter("b")


@torch.no_grad()
def test_z_image_under_its_authors_names(bridged):
    """Fused q, k and v, and other names of the rest, which diffusers' converter does not know: the same rows."""
    _, generator = bridged("z_image")
    index = Index(generator.network.network)
    for stack in ("layers", "noise_refiner", "context_refiner"):
        rows = [(target.module.rpartition(".")[2], target.cut) for target in index.find(f"{stack}.0.attention.qkv")]
        assert rows == [("to_q", (0, 32)), ("to_k", (32, 64)), ("to_v", (64, 96))]
        assert index.find(f"{stack}.0.attention.out")[0].module == f"{stack}.0.attention.to_out.0"
    for theirs_name in ("x_embedder", "final_layer.linear", "final_layer.adaLN_modulation.1"):
        module = index.find(theirs_name)[0].module
        assert module.replace("all_", "").replace("2-1.", "").replace(".2-1", "") == theirs_name


@every_family
def test_pictures_to_start_from_masks_and_canvases(bridged, name):
    """Image to image follows its strength, a mask keeps what is black to the pixel, and a wide picture is made in windows."""
    _, generator = bridged(name)
    x, image = latents_for(generator, 1), picture()
    options = {"num_inference_steps": 4, "guidance_scale": 2.0}
    near, far = (ours(generator, x, image=image, strength=strength, **options) for strength in (0.25, 0.75))
    hole = torch.zeros(1, SIZE, SIZE)
    hole[:, :, SIZE // 2 :] = 1
    made = ours(generator, x, image=image, mask=hole, **options)
    kept = read_picture("image", image, "RGB")
    assert torch.equal(made[..., : SIZE // 2], kept[..., : SIZE // 2]) and made[..., SIZE // 2 :].std() > 0.01
    assert near.isfinite().all() and (near - far).abs().mean() > 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wide = generator.panorama(
            PROMPT, width=2 * SIZE, height=SIZE, window=SIZE, seed=1, num_inference_steps=2, progress=False,
            output_type="pt",
        ).images  # fmt: skip
    assert wide.shape[-2:] == (SIZE, 2 * SIZE) and wide.isfinite().all()


@every_family
def test_half_precision(bridged, tmp_path, name):
    """In bfloat16, which keeps three digits, the same picture but for rounding."""
    _, generator = bridged(name)
    x = latents_for(generator, 1)
    full = ours(generator, x, num_inference_steps=2, guidance_scale=1.0)
    folder = generator.save_pretrained(tmp_path / "saved")
    half = Generator.from_pretrained(folder, device="cpu", dtype="bfloat16")
    assert next(half.network.parameters()).dtype == torch.bfloat16
    made = ours(half, x, num_inference_steps=2, guidance_scale=1.0)
    assert 0 < (made - full).abs().mean() < 0.05


@every_family
def test_previews_and_saving(bridged, tmp_path, name):
    """A callback sees a small picture; what is saved opens again in diffusers' form and makes the same picture."""
    _, generator = bridged(name)
    x, shown = latents_for(generator, 1), []

    def show(generator, step, time, tensors):
        shown.extend(generator.preview(tensors["denoised"]))

    call = {"callback_on_step_end": show, "callback_on_step_end_tensor_inputs": ["denoised"]}
    plain = ours(generator, x, num_inference_steps=2, **call)
    assert [picture.size for picture in shown] == [x.shape[:1:-1]] * 2
    folder = generator.save_pretrained(tmp_path / "saved")
    again = Generator.from_pretrained(folder, device="cpu", dtype="float32")
    assert torch.equal(ours(again, x, num_inference_steps=2), plain)


def test_turbo_takes_few_steps_and_reads_words_with_a_whole_language_model(tmp_path):
    """Z-Image-Turbo by the name of its folder; an encoder saved with the head that predicts words opens without it."""
    folder = pipelines.save(pipelines_chat.z_image(whole=True, shift=3.0), tmp_path / "Z-Image-Turbo")
    generator = Generator.from_pretrained(folder, device="cpu", dtype="float32")
    defaults = generator.config.defaults
    assert (defaults.num_inference_steps, defaults.guidance_scale, defaults.schedule_options) == (8, 1.0, {"shift": 3.0})
    assert type(generator.text_encoder.encoder).__name__ == "Qwen3Model"
    pipeline = pipelines_chat.z_image(whole=True, shift=3.0)
    pipeline.set_progress_bar_config(disable=True)
    x = latents_for(generator, 1)
    reference = theirs(FAMILIES["z_image"], pipeline, x, num_inference_steps=8, guidance_scale=0.0)
    torch.testing.assert_close(ours(generator, x), reference, **CLOSE)


def test_distilled_klein_takes_few_steps_without_guidance(bridged):
    pipeline, generator = bridged("flux2_klein", distilled=True)
    x = latents_for(generator, 1)
    assert (generator.config.defaults.num_inference_steps, generator.config.defaults.guidance_scale) == (4, 1.0)
    reference = theirs(FAMILIES["flux2_klein"], pipeline, x, num_inference_steps=4)
    torch.testing.assert_close(ours(generator, x), reference, **CLOSE)


def test_a_word_of_the_chat_is_taken_out_of_prompts(bridged):
    """FLUX.2's template has a place for pictures by this word."""
    _, generator = bridged("flux2")
    found, plain = (generator.encode_prompt([prompt]).tokens for prompt in ("a[IMG] cat", "a cat"))
    assert torch.equal(found, plain)


def test_distilled_krea2_has_a_shift_of_its_own(bridged):
    pipeline, generator = bridged("krea2", distilled=True)
    x = latents_for(generator, 1)
    assert (generator.config.defaults.num_inference_steps, generator.config.defaults.guidance_scale) == (8, 1.0)
    reference = theirs(FAMILIES["krea2"], pipeline, x, num_inference_steps=8, guidance_scale=0.0)
    torch.testing.assert_close(ours(generator, x), reference, **CLOSE)


@pytest.mark.parametrize("layers", [[0, 1], [0, 1, 9], [0, True, 2], "abc", [0, 1, -1]])
def test_layers_that_the_encoder_does_not_have_are_refused(tmp_path, layers):
    folder = pipelines.save(pipelines_chat.krea2(), tmp_path / "krea2")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "text_encoder_select_layers": layers}))
    with pytest.raises(ValueError, match="the network reads 3 layers of an encoder that has 3"):
        Generator.from_pretrained(folder, device="cpu", dtype="float32")
