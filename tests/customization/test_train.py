"""Training runs: what trains, what stays, that a run stopped and gone on with is the run, and that files come out of it."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from distill.checkpointing.folder import load_latest
from gen.adapters import read_adapter
from gen.generator import Generator
from tests.customization.kit import pictures, train_until, trainer


def test_a_resumed_run_is_the_run_bit_for_bit_and_the_model_stays(tmp_path, tiny_model):
    images = pictures(tmp_path / "images")
    settings = {"objective": {"text_adapter": {"rank": 2}}, "data": {"flip": 0.5, "drop_caption": 0.3, "variants": 2}}
    whole = trainer(tmp_path / "whole", images, tiny_model, **settings)
    before = {k: v.clone() for k, v in whole.objective.generator.network.state_dict().items() if "lora" not in k}
    start = {k: v.detach().clone() for k, v in whole.networks["adapter"].named.items()}
    whole.train()
    after = whole.objective.generator.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    moved = {name.partition(".")[0] for name, value in whole.networks["adapter"].named.items() if not value.equal(start[name])}
    assert moved == {"denoiser", "text_encoder"}

    first = trainer(tmp_path / "half", images, tiny_model, checkpoint_every=2, **settings)
    train_until(first, 4)
    assert load_latest(tmp_path / "half").step == 2
    resumed = trainer(tmp_path / "half", images, tiny_model, **settings)
    resumed.train()
    for name, value in whole.networks["adapter"].named.items():
        assert torch.equal(value, resumed.networks["adapter"].named[name]), name


def test_the_export_acts_as_the_trained_network_does(tmp_path, tiny_model):
    run = trainer(tmp_path / "run", pictures(tmp_path / "images"), tiny_model, objective={"adapter": {"rank": 2, "alpha": 3}})
    run.train()
    trained = run.objective.generator
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    prompt = ["a red cat", "a dog"]
    with torch.no_grad():
        wanted = trained(prompt, latents=x, output_type="latent", progress=False).images
    fresh = Generator.from_pretrained(tiny_model, "cpu", "float32")
    plain = fresh(prompt, latents=x, output_type="latent", progress=False).images
    adapter = read_adapter(tmp_path / "run" / "export" / "adapter.safetensors")
    fresh.load_adapter(adapter)
    assert_close(fresh(prompt, latents=x, output_type="latent", progress=False).images, wanted, rtol=1e-4, atol=1e-4)
    assert (plain - wanted).abs().max() > 0.01
    assert adapter.metadata["ss_network_alpha"] == "3" and adapter.metadata["ss_steps"] == "4"
