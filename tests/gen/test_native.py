"""Networks of others in ours: diffusers' pipelines give their own pictures, checkpoints what their authors' code says."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from gen.cli import app as cli
from gen.generator import Generator
from gen.io.weights import CheckpointError
from gen.models import imagenet
from gen.models.bridge.hub import needed_files
from gen.models.bridge.parts import TextPart, open_text_encoder
from gen.models.components import save_component
from gen.models.formats import read_checkpoint, write_checkpoint
from gen.pipeline.png import read_recipe
from samplers.denoiser import Condition, Context
from tests.gen import pipelines, published
from tests.gen.test_bridge_parity import CLOSE, NEGATIVE, PROMPT, STEPS, grid_of, noise, ours, theirs

ON_CPU = {"device": "cpu", "dtype": "float32"}
QUICK = {"num_inference_steps": 2, "seed": 3, "output_type": "pt", "progress": False}
UVIT = {"dim": 16, "depth": 2, "size": 8}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders as their libraries write them: an autoencoder, T5 and CLIP."""
    root = tmp_path_factory.mktemp("parts")
    pipelines.vae(scaling_factor=0.18215).save_pretrained(root / "vae")
    for name, encoder, tokenizer in (
        ("t5", pipelines.t5(3), pipelines.t5_tokenizer()),
        ("clip", pipelines.clip(1), pipelines.clip_tokenizer()),
    ):
        encoder.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


def write(path, shapes, **options):
    save_file(published.tensors(shapes, **options), path)
    return path


@pytest.mark.parametrize("name", ["dit", "pixart"])
def test_the_pipelines_picture(bridged, name):
    """From the same noise, with guidance and with a negative prompt: 1e-4 in pixels of 0 to 1."""
    pipeline, generator = bridged(name, native=None, **({"shared": True} if name == "dit" else {}))
    assert type(generator.network).__name__ == "DiT"
    x, grid = noise(generator, 2), None
    if name == "pixart":
        pipeline.scheduler.set_timesteps(STEPS)
        grid = grid_of(pipeline.scheduler, generator.denoiser.path)
    torch.testing.assert_close(ours(name, generator, x, 4.0, schedule=grid), theirs(name, pipeline, x, 4.0), **CLOSE)
    if name == "pixart":
        told = ours(name, generator, x, 4.0, negative_prompt=NEGATIVE, schedule=grid)
        torch.testing.assert_close(told, theirs(name, pipeline, x, 4.0, negative_prompt=[NEGATIVE] * 2), **CLOSE)
        assert (told - ours(name, generator, x, 4.0, schedule=grid)).abs().max() > 1e-3


def test_sigma_reads_300_tokens_and_its_empty_prompt(bridged):
    pipeline, generator = bridged("pixart", native=True, sigma=True)
    network = generator.network.config
    assert (network.text_tokens, network.null_length) == (300, 1)  # "" is the end token alone
    x = noise(generator, 1)
    pipeline.scheduler.set_timesteps(STEPS)
    grid = grid_of(pipeline.scheduler, generator.denoiser.path)
    torch.testing.assert_close(ours("pixart", generator, x, 4.0, schedule=grid), theirs("pixart", pipeline, x, 4.0), **CLOSE)


@torch.no_grad()
def test_native_and_bridged_are_one_function(bridged):
    """Sizes told to the network, other sizes than the trained one, rows without text, learned variance."""
    _, bridge = bridged("pixart", sized=True)
    _, native = bridged("pixart", native=True, sized=True)
    x, time = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(0)), torch.tensor([500.0, 20.0])
    size = torch.tensor([[32.0, 48.0]] * 2)
    condition = bridge.encode_prompt([PROMPT, "a"])
    for given in (condition, condition.null(), Condition()):
        told = Condition(given.label, given.tokens, given.mask, extra={"size": size, "aspect": size[:, :1] / size[:, 1:]})
        expected = bridge.network(x, time, given, Context())
        torch.testing.assert_close(native.network(x, time, told, Context()), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        native(PROMPT, height=32, width=48, **QUICK).images, bridge(PROMPT, height=32, width=48, **QUICK).images, **CLOSE
    )


def test_native_or_not_is_the_callers_choice(bridged, tmp_path):
    with pytest.raises(ValueError, match=r"no network of our own for Stable Diffusion; .*DiTPipeline.* have one"):
        Generator.from_pretrained(pipelines.save(pipelines.stable_diffusion(), tmp_path / "sd"), native=True)
    folder = pipelines.save(pipelines.dit(), tmp_path / "dit")
    # blocks that differ in their embeddings of time and label are no DiT of ours: diffusers' network runs
    assert Generator.from_pretrained(folder, **ON_CPU).network.bridged
    with pytest.raises(ValueError, match="repeats one tensor with other values"):
        Generator.from_pretrained(folder, native=True, **ON_CPU)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"double_self_attention": True}))
    with pytest.raises(ValueError, match=r"Our own network cannot take the place.*double_self_attention"):
        Generator.from_pretrained(folder, native=True)


def test_half_precision_variants_are_read_too(tmp_path):
    folder = pipelines.save(pipelines.dit(shared=True), tmp_path / "dit")
    whole = Generator.from_pretrained(folder, native=True, **ON_CPU)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    variant = Generator.from_pretrained(folder, native=True, **ON_CPU)
    assert torch.equal(variant.network.head.weight, whole.network.head.weight) and variant.weights == whole.weights


def test_a_recipe_says_which_network_ran(tmp_path):
    folder = pipelines.save(pipelines.dit(shared=True), tmp_path / "dit")
    shared = ["--model", str(folder), "--device", "cpu", "--dtype", "float32"]
    for native, backend in (("native", "auto"), ("no-native", "diffusers")):
        picture = tmp_path / f"{native}.png"
        assert cli.main(["image", "7", "--steps", "1", "--seed", "1", "-q", f"--{native}", "-o", str(picture), *shared]) == 0
        assert read_recipe(picture).machine.attention.split()[0] == backend
        again = tmp_path / f"{native}-again.png"
        assert cli.main(["replay", str(picture), "--model", str(folder), "-q", "-o", str(again)]) == 0
        assert again.read_bytes() == picture.read_bytes()


@torch.no_grad()
def test_uvit_on_latents_is_sampled_as_its_authors_do(tmp_path, parts):
    """DDIM by hand: eps at timesteps 1 to 1000 of Stable Diffusion's betas, guidance w, latents / 0.18215 decoded."""
    path = write(tmp_path / "uvit.safetensors", published.uvit(**UVIT, rows=1001))
    generator = Generator.from_pretrained(path, vae=parts / "vae", model_options={"heads": 2}, **ON_CPU)
    assert generator.name == "uvit" and generator.config.sample_size == 16
    network = read_checkpoint(path, heads=2)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    bar = torch.cat([torch.ones(1).double(), (1 - betas).cumprod(0)])  # bar[n], n from 1
    x = start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    label, steps = torch.tensor([207, 207]), [1000, 600, 200, 0]
    for n, m in itertools.pairwise(steps):
        time = torch.full((2,), float(n))
        cond, null = network(x, time, Condition(label)), network(x, time, Condition(torch.tensor([-1, -1])))
        eps = null + 1.4 * (cond - null)
        clean = (x - (1 - bar[n]).sqrt() * eps) / bar[n].sqrt()
        x = (bar[m].sqrt() * clean + (1 - bar[m]).sqrt() * eps).float()
    expected = (pipelines.vae(scaling_factor=0.18215).decode(x / 0.18215).sample / 2 + 0.5).clamp(0, 1)
    path_ = generator.denoiser.path
    levels = [path_(n / 1000) for n in steps]
    found = generator(
        class_labels=["golden retriever", "n02099601"], latents=start / levels[0].sigma, sampler="ddim", schedule=levels,
        guidance_scale=1.4, output_type="pt", progress=False,
    )  # fmt: skip
    torch.testing.assert_close(found.images, expected, **CLOSE)
    assert generator.config.defaults.guidance_scale == 1.4 and expected.std() > 0.02


@torch.no_grad()
def test_text_uvit_reads_clip_and_coco_latents(tmp_path, parts):
    path = write(tmp_path / "coco.safetensors", published.uvit(**UVIT, text=True, clip=16))
    given = {"vae": parts / "vae", "text_encoder": parts / "clip", "model_options": {"heads": 2}}
    generator = Generator.from_pretrained(path, **given, **ON_CPU)
    tokenizer, encoder = pipelines.clip_tokenizer(), pipelines.clip(1)
    features = encoder(tokenizer("", padding="max_length", return_tensors="pt").input_ids).last_hidden_state
    torch.testing.assert_close(generator.network.null_tokens, generator.network.text_embed(features)[0])
    ids = tokenizer("a cat", padding="max_length", return_tensors="pt").input_ids
    torch.testing.assert_close(generator.encode_prompt(["a cat"]).tokens, encoder(ids).last_hidden_state)
    z = torch.randn(1, 4, 8, 8)
    expected = (pipelines.vae().decode(z / 0.23010).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(generator.decode(z), expected, atol=1e-5, rtol=1e-5)
    other = Generator.from_pretrained(path, **given | {"model_options": {"heads": 2, "latent_scale": 0.5}}, **ON_CPU)
    torch.testing.assert_close(other.decode(z), (pipelines.vae().decode(z / 0.5).sample / 2 + 0.5).clamp(0, 1))
    with pytest.warns(UserWarning, match="longer than the 75 tokens"):
        generator("cat " * 80, **QUICK)


def test_uvit_on_pixels_needs_no_parts(tmp_path):
    path = write(tmp_path / "cifar.safetensors", published.uvit(**UVIT | {"channels": 3}))
    generator = Generator.from_pretrained(path, model_options={"heads": 2}, **ON_CPU)
    times = []
    generator.network.register_forward_pre_hook(lambda module, args: times.append(float(args[1][0])))
    assert generator(**QUICK).images.shape == (1, 3, 8, 8) and times == pytest.approx([999, 499.5])
    level = generator.denoiser.path(0.5)  # log alpha = -(0.1 t + 9.95 t^2) / 2
    assert level.alpha == pytest.approx(torch.tensor(-(0.05 + 9.95 / 4) / 2).exp().item())
    with pytest.raises(ValueError, match=r"works on pixels; leave vae= \(--vae\) out"):
        Generator.from_pretrained(path, vae="x", model_options={"heads": 2})


def test_the_authors_dit_and_diffusers_are_sampled_alike(tmp_path, parts):
    """One network in three spellings: the authors' file, a transformer's folder, one of our own network folders."""
    shapes, positions = published.dit(dim=24, depth=2, size=8), published.sincos(8, 2, 24)
    path = write(tmp_path / "dit.safetensors", shapes, positions=positions)
    given = {"vae": parts / "vae", **ON_CPU}
    authors = Generator.from_pretrained(path, model_options={"heads": 2}, **given)
    bar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    level = authors.denoiser.path.discrete(400)
    assert authors.config.clock == "index" and level.alpha == pytest.approx(bar[400].sqrt().item(), rel=1e-6)
    picture = authors(class_labels=["goldfish"], **QUICK).images
    save_component(authors.network, tmp_path / "component")
    own = Generator.from_pretrained(tmp_path / "component", **given)
    torch.testing.assert_close(own(class_labels=[1], **QUICK).images, picture, atol=1e-5, rtol=0)
    with pytest.warns(UserWarning, match="outputs differ a little"):
        write_checkpoint(authors.network, tmp_path / "theirs", "diffusers-dit")
    theirs_ = Generator.from_pretrained(tmp_path / "theirs", **given)
    assert theirs_.network.config.freq_shift == 1 and torch.equal(theirs_.network.head.weight, authors.network.head.weight)
    assert (theirs_(class_labels=[1], **QUICK).images - picture).abs().max() > 1e-4
    with pytest.raises(ValueError, match="'crane' is the name of the labels 134 and 517; give the number"):
        authors(class_labels=["crane"])


def test_pixarts_own_file(tmp_path, parts):
    """Length of text from the file, size conditions, the file's own features of no text, the T5 of a pipeline's folder."""
    shapes = published.pixart(dim=24, depth=1, size=8, tokens=300, text_dim=16, conditions=True)
    path = write(tmp_path / "pixart.safetensors", shapes, positions=published.sincos(8, 2, 24))
    pipeline = pipelines.save(pipelines.pixart(), tmp_path / "pipeline")
    options = {"vae": str(pipeline), "text_encoder": pipeline, "model_options": {"heads": 3}}
    generator = Generator.from_pretrained(path, **options, **ON_CPU)
    assert isinstance(generator.text_encoder, TextPart) and generator.text_encoder.length == 300
    assert torch.equal(generator.network.null_text, load_file(path)["y_embedder.y_embedding"])
    picture = generator(PROMPT, **QUICK).images
    again = Generator.from_pretrained(path, **options | {"vae": parts / "vae", "text_encoder": parts / "t5"}, **ON_CPU)
    assert torch.equal(again(PROMPT, **QUICK).images, picture)
    assert (generator("a dog", **QUICK).images - picture).abs().max() > 1e-4
    assert set(generator.weights) == {"denoiser", "autoencoder", "text_encoder"} and generator.weights == again.weights
    with pytest.raises(CheckpointError, match=r"is a 'clip_text_model' model; this network reads features of T5's"):
        Generator.from_pretrained(path, **options | {"text_encoder": parts / "clip"}, **ON_CPU)


def test_an_encoder_may_be_part_of_a_larger_model(tmp_path, parts):
    """T5's own repositories hold its decoder too."""
    shutil.copytree(parts / "t5", tmp_path / "t5")
    weights = tmp_path / "t5" / "model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"decoder.block.0.weight": torch.zeros(2), "lm_head.weight": torch.zeros(2)}, weights, {"format": "pt"})
    part, _ = open_text_encoder(tmp_path / "t5", "t5", 12, 16, torch.float32)
    assert part.condition("a").tokens.shape == (1, 12, 16)
    save_file(tensors | {"evil.weight": torch.zeros(2)}, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"it has unknown evil\.weight"):
        open_text_encoder(tmp_path / "t5", "t5", 12, 16, torch.float32)
    with pytest.raises(CheckpointError, match="features of width 16, and the network reads 4096"):
        open_text_encoder(parts / "t5", "t5", 12, 4096, torch.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"is a network alone; give vae= \(--vae\), its autoencoder"),
        ({"vae": "no/such/place"}, "is no folder; give the folder or the hub id of the vae"),
        ({"vae": "{t5}"}, "is a None; an autoencoder is one of AutoencoderKL"),
        ({"vae": "{vae}", "text_encoder": "{t5}"}, r"reads no text; leave text_encoder= \(--text-encoder\) out"),
        ({"vae": "{vae}", "native": False}, "opened in our own network only"),
        ({"vae": "{vae}", "model_options": {"head": 2}}, "no 'head'; did you mean 'heads'"),
        ({"vae": "{vae}", "model_options": {"heads": True}}, "heads = True; give a whole number above 0"),
        ({"vae": "{vae}", "model_options": {"latent_scale": -1.0}}, "latent_scale = -1.0; give a number above 0"),
        ({"vae": "{vae}", "model_options": {}}, "number of heads is unknown; give heads"),
    ],
)
def test_what_is_missing_or_wrong_is_a_sentence(tmp_path, parts, options, message):
    path = write(tmp_path / "uvit.safetensors", published.uvit(**UVIT, rows=1001))
    given = {name: value.format(t5=parts / "t5", vae=parts / "vae") if isinstance(value, str) else value
             for name, value in options.items()}  # fmt: skip
    given.setdefault("model_options", {"heads": 2})
    with pytest.raises(ValueError, match=message):
        Generator.from_pretrained(path, **given, **ON_CPU)


def test_whole_models_take_no_parts(tiny_model, tmp_path):
    for option in ("vae", "text_encoder"):
        with pytest.raises(ValueError, match=f"leave {option} out"):
            Generator.from_pretrained(tiny_model, **{option: tmp_path}, **ON_CPU)
    with pytest.raises(ValueError, match="is a whole model, so model_options"):
        Generator.from_pretrained(tiny_model, model_options={"heads": 2}, **ON_CPU)


def test_another_autoencoder_for_a_pipeline(bridged, tmp_path):
    other = pipelines.seeded(type(pipelines.vae()), **{**pipelines.vae().config, "scaling_factor": 0.5}, seed=4)
    other.save_pretrained(tmp_path / "vae")
    folder = pipelines.save(pipelines.dit(), tmp_path / "dit")
    generator = Generator.from_pretrained(folder, vae=tmp_path / "vae", **ON_CPU)
    z = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        expected = (other.decode(z / 0.5).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(generator.decode(z), expected, atol=1e-5, rtol=1e-5)


def test_on_the_command_line(tmp_path, parts):
    path = write(tmp_path / "uvit.safetensors", published.uvit(**UVIT, rows=1001))
    picture = tmp_path / "fish.png"
    shared = ["--vae", str(parts / "vae"), "--model-option", "heads=2"]
    arguments = ["image", "goldfish", "--model", str(path), *shared, "--steps", "2", "--seed", "1", "-o", str(picture)]
    assert cli.main([*arguments, "--device", "cpu", "--dtype", "float32", "-q"]) == 0
    recipe = read_recipe(picture)
    assert recipe.class_label == 1 and recipe.model.name == "uvit" and set(recipe.model.weights) == {"denoiser", "autoencoder"}
    again = tmp_path / "again.png"
    assert cli.main(["replay", str(picture), "--model", str(path), *shared, "-o", str(again), "-q"]) == 0
    assert again.read_bytes() == picture.read_bytes()


def test_what_of_a_repository_a_part_needs():
    names = ["config.json", "model.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "tokenizer.json", "evil.py"]
    names += ["vae/config.json", "vae/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json", "unet/config.json"]
    assert needed_files(names, "vae") == ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    expected = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer/vocab.json"]
    assert needed_files(names, "text_encoder", ("tokenizer",)) == expected
    with pytest.raises(CheckpointError, match=r"no config\.json and safetensors"):
        needed_files(["config.json", "pytorch_model.bin"], "vae")


@pytest.mark.parametrize("name", ["pixart", "dit"])
def test_a_lora_for_diffusers_names_fits_our_network(bridged, name):
    """Every linear layer that diffusers' network has, but for embeddings that it repeats in each block, by diffusers' name."""
    from gen.adapters.resolve import Index

    _, bridge = bridged(name)
    _, native = bridged(name, native=True, **({"shared": True} if name == "dit" else {}))
    index, network = Index(native.network), bridge.network.network
    for path, module in network.named_modules():
        if isinstance(module, torch.nn.Linear) and ".norm1.emb." not in path:
            [target] = index.find(path)
            rows = target.rows or (0, index.modules[target.module].out_features)
            assert rows[1] - rows[0] == module.out_features, path
            assert index.modules[target.module].in_features == module.in_features, path
    assert index.find("transformer_blocks.0.norm1.emb.timestep_embedder.linear_1") == ()
    if name == "pixart":  # the same weights lie there
        expected = network.caption_projection.linear_2.weight
        [target] = index.find("caption_projection.linear_2")
        assert torch.equal(index.modules[target.module].weight, expected)
        assert index.find("caption_projection_linear_2", underscored=True) == (target,)


def test_parts_come_from_the_hub(tmp_path, parts, monkeypatch):
    """One commit, and of its files only what the part needs."""
    from types import SimpleNamespace

    import huggingface_hub

    fetched = []

    def snapshot_download(repository, revision=None, allow_patterns=(), local_files_only=False):
        fetched.append((repository, revision, sorted(allow_patterns)))
        return str(parts / "vae")

    names = [path.name for path in (parts / "vae").iterdir()] + ["evil.py", "diffusion_pytorch_model.bin"]
    info = SimpleNamespace(sha="1" * 40, siblings=[SimpleNamespace(rfilename=name) for name in names])
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(repo_info=lambda repository: info))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    path = write(tmp_path / "uvit.safetensors", published.uvit(**UVIT, rows=1001))
    generator = Generator.from_pretrained(path, vae="someone/vae", model_options={"heads": 2}, **ON_CPU)
    assert generator.autoencoder.channels == 4
    assert fetched == [("someone/vae", "1" * 40, ["config.json", "diffusion_pytorch_model.safetensors"])]
    info.siblings = [SimpleNamespace(rfilename="config.json")]
    with pytest.raises(ValueError, match="someone/vae on the hub is not a model that fewstep can open"):
        Generator.from_pretrained(path, vae="someone/vae", model_options={"heads": 2}, **ON_CPU)


def test_parts_from_outside_are_checked(tmp_path, parts):
    """No code of a file's choice, no unknown keys in our own configs of foreign parts."""
    folder = shutil.copytree(parts / "vae", tmp_path / "vae")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Evil"}}))
    (folder / "evil.py").write_text("from pathlib import Path; Path(__file__).with_name('ran').touch()")
    path = write(tmp_path / "uvit.safetensors", published.uvit(**UVIT, rows=1001))
    with pytest.raises(CheckpointError, match="has 'auto_map', which chooses code to run"):
        Generator.from_pretrained(path, vae=folder, model_options={"heads": 2}, **ON_CPU)
    assert not (folder / "ran").exists()
    good = Generator.from_pretrained(path, vae=parts / "vae", model_options={"heads": 2}, **ON_CPU)
    saved = good.save_pretrained(tmp_path / "saved")
    for values, message in (
        ({"type": "diffusers_autoencoder", "module": "evil"}, "more than type and latent_scale"),
        ({"type": "diffusers_autoencoder", "latent_scale": "1"}, "more than type and latent_scale"),
        ({"type": "t5", "length": 12}, "'t5'; autoencoder or diffusers_autoencoder is needed here"),
        ({"type": "evil"}, "'evil'; autoencoder or diffusers_autoencoder is needed here"),
    ):
        (saved / "autoencoder" / "config.json").write_text(json.dumps(values))
        with pytest.raises(CheckpointError, match=message):
            Generator.from_pretrained(saved, **ON_CPU)


def test_imagenets_labels():
    names = imagenet.names()
    assert len(names) == 1000 and [names[i] for i in (0, 1, 207, 817, 999)] == [
        "tench", "goldfish", "golden retriever", "sports car", "toilet tissue",
    ]  # fmt: skip
    assert imagenet.label("n01443537") == 1 and imagenet.label("n00000000") is None
