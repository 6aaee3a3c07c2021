"""Full fine-tuning: the step is that of torch's own AdamW on the whole network, and what is exported is the whole model."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from customization.registry import METHODS
from customization.train import check_method, read_config
from distill.checkpointing.folder import load_latest
from gen.cli.other_packages import TEACHING
from gen.generator import Generator
from tests.customization.kit import pictures, train_until, trainer
from tests.gen import pipelines
from tests.gen.test_bridge_parity import noise, ours, theirs

CONFIG = Path(__file__).parents[2] / "configs" / "lora" / "full.yaml"
OWN = {"type": "full", "adapter": None}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    made = pipelines.stable_diffusion()
    made.set_progress_bar_config(disable=True)
    return made, pipelines.save(made, tmp_path_factory.mktemp("full") / "model")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("pictures") / "images")


def test_the_export_is_a_pipeline_that_diffusers_opens(pipeline, images, tmp_path):
    """Its picture there is ours here and that of the trained network; all of the denoiser changed, and nothing else."""
    from diffusers import StableDiffusionPipeline

    _, folder = pipeline
    run = trainer(tmp_path / "run", images, folder, objective=OWN, max_steps=3, optimizer={"lr": 1e-3})
    run.train()
    export, trained = tmp_path / "run" / "export", run.objective.generator
    x = noise(trained, 1)
    wanted = ours("stable_diffusion", trained, x, 4.0)
    opened = StableDiffusionPipeline.from_pretrained(export, safety_checker=None)
    opened.set_progress_bar_config(disable=True)
    assert_close(theirs("stable_diffusion", opened, x, 4.0), wanted, atol=1e-4, rtol=0)
    fresh = Generator.from_pretrained(export, "cpu", "float32")
    assert_close(ours("stable_diffusion", fresh, x, 4.0), wanted, atol=1e-6, rtol=0)
    before = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    after = load_file(export / "unet" / "diffusion_pytorch_model.safetensors")
    assert before.keys() == after.keys() and not any(torch.equal(after[name], before[name]) for name in before)
    for part, file in (("text_encoder", "model"), ("vae", "diffusion_pytorch_model")):
        old, new = (load_file(root / part / f"{file}.safetensors") for root in (folder, export))
        assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
    assert json.loads((export / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"


def test_a_step_is_that_of_torch_on_the_whole_network(pipeline, images, tmp_path):
    """The loss and AdamW written out on a copy of the U-Net."""
    _, folder = pipeline
    rate = {"lr": 1e-3, "betas": [0.9, 0.99], "eps": 1e-6, "weight_decay": 0.0, "clip": 1e9}
    schedule = {"type": "constant", "warmup": 0}
    run = trainer(tmp_path / "run", images, folder, objective=OWN, max_steps=1, optimizer=rate, schedule=schedule)
    objective = run.objective
    network = objective.generator.network.network
    unet, given = copy.deepcopy(network).requires_grad_(True), {}
    noised = objective.noise
    objective.noise = lambda draws, like: given.setdefault("eps", noised(draws, like))
    watched = network.register_forward_pre_hook(
        lambda _, args, kwargs: given.update(args=args, kwargs=kwargs), with_kwargs=True
    )
    run.train()
    watched.remove()
    inputs = {name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in given["kwargs"].items()}
    out = unet(*(value.detach() for value in given["args"]), **inputs)[0]
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.0)
    (out - given["eps"]).square().mean().backward()
    optimizer.step()
    expected = unet.state_dict()
    for name, value in network.state_dict().items():  # a gradient's rounding beside epsilon moves a step by some of the rate
        assert_close(value, expected[name], atol=5e-5, rtol=0, msg=name)


def test_a_resumed_run_is_the_run_bit_for_bit(pipeline, images, tmp_path):
    """With averages, which are what is exported, and text encoders that train."""
    _, folder = pipeline
    settings = {"objective": {**OWN, "text_encoders": True}, "ema": {"decay": 0.5}, "optimizer": {"lr": 1e-3}}
    whole = trainer(tmp_path / "whole", images, folder, average=True, **settings)
    whole.train()
    first = trainer(tmp_path / "half", images, folder, average=True, checkpoint_every=2, **settings)
    train_until(first, 4)
    assert load_latest(tmp_path / "half").step == 2
    resumed = trainer(tmp_path / "half", images, folder, average=True, **settings)
    resumed.train()
    for part, file in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        exports = [load_file(tmp_path / run / "export" / part / f"{file}.safetensors") for run in ("whole", "half")]
        assert all(torch.equal(exports[0][name], exports[1][name]) for name in exports[0]), part
    average = whole.roles.averaged["adapter"].named
    name = "conv_in.weight"
    assert torch.equal(
        load_file(tmp_path / "whole/export/unet/diffusion_pytorch_model.safetensors")[name], average[f"denoiser.{name}"]
    )
    own = whole.objective.generator.network.network.get_parameter(name)
    assert not torch.equal(own, average[f"denoiser.{name}"])  # the network keeps what trains


def test_some_layers_alone_and_a_model_of_ours(tiny_model, images, tmp_path):
    run = trainer(tmp_path / "run", images, tiny_model, objective={**OWN, "layers": ["qkv"], "save_dtype": "bfloat16"})
    run.train()
    names = [name for name, value in run.networks["adapter"].named.items()]
    assert names and all(".qkv." in name for name in names)
    opened = Generator.from_pretrained(tmp_path / "run" / "export", "cpu", "float32")
    after, before = opened.network.state_dict(), Generator.from_pretrained(tiny_model, "cpu", "float32").network.state_dict()
    for name, value in before.items():
        assert torch.equal(after[name], value.bfloat16().float()) != ("qkv" in name), name


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dtype": "bfloat16"}, "full keeps the weights that train in float32, not bfloat16; leave dtype out"),
        ({"tokens": {"<new>": {}}}, "has no place for tokens; leave it out, or use lora"),
        ({"text_adapter": {"rank": 2}}, "has no place for text_adapter"),
        ({"format": "kohya"}, "no adapter in the format kohya; leave format out"),
        ({"type": "esd", "huber": {}, "noise_offset": 0.1}, "leave noise_offset and huber out"),
        ({"adapter": {"rank": 2}}, "this method trains weights of the network itself, and has no adapter"),
    ],
)
def test_what_does_not_fit_is_one_sentence(settings, said):
    with pytest.raises(ValueError, match=said):
        check_method({**OWN, **settings})


def test_an_unknown_layer_is_named(pipeline, images, tmp_path):
    with pytest.raises(ValueError, match=r"layers names 'to_z', but no layer of the denoiser ends in it"):
        trainer(tmp_path / "run", images, pipeline[1], objective={**OWN, "layers": ["to_z"]})


def test_fewstep_train_takes_its_config(fewstep, pipeline, images, tmp_path):
    assert set(TEACHING) <= set(METHODS)
    check_method(read_config(CONFIG, ())[0].objective)
    said = fewstep(
        "train", CONFIG, f"objective.model={pipeline[1]}", f"data.images={images}", "data.prompt=a cat",
        f"output={tmp_path / 'run'}", "precision=fp32", "max_steps=1", "preview_every=0", "device=cpu", "batch_size=1",
    )  # fmt: skip
    assert (tmp_path / "run" / "export" / "model_index.json").is_file(), said
