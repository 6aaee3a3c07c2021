"""Teaching pipelines of diffusers: diffusers and peft open what comes out, and make the picture that we make."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from gen.adapters import read_adapter, write_adapter
from gen.generator import Generator
from tests.customization.kit import objective, pictures, trainer
from tests.gen import pipelines
from tests.gen.test_bridge_parity import STEPS, grid_of, noise, ours, theirs

WORDED = "a <new> cat, 3 red dogs"


def open_theirs(pipeline, export, several: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.load_lora_weights(export, weight_name="adapter.safetensors")
        words = load_file(export / "new.safetensors")
        if several:
            first = {"text_encoder": pipeline.text_encoder, "tokenizer": pipeline.tokenizer}
            second = {"text_encoder": pipeline.text_encoder_2, "tokenizer": pipeline.tokenizer_2}
            pipeline.load_textual_inversion(words["clip_l"], "<new>", **first)
            pipeline.load_textual_inversion(words["clip_g"], "<new>", **second)
        else:
            pipeline.load_textual_inversion(export / "new.safetensors")


@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl"])
def test_a_trained_lora_with_a_word_makes_the_same_picture_in_diffusers(name, tmp_path):
    pipeline = getattr(pipelines, name)()
    pipeline.set_progress_bar_config(disable=True)
    folder = pipelines.save(pipeline, tmp_path / "model")
    settings = {
        "adapter": {"rank": 2, "alpha": 3, "targets": ["to_q", "to_out.0", "ff.net.2"]},
        "text_adapter": {"rank": 2, "targets": ["q_proj"]},
        "tokens": {"<new>": {"vectors": 2}},
        "token_rate": 5.0,
    }
    images = pictures(tmp_path / "images", 2)
    run = trainer(tmp_path / "run", images, folder, objective=settings, data={"prompt": "a <new> cat"}, max_steps=3)
    run.train()
    assert sorted(run.roles.optimizers["adapter"].peaks) == [1e-2, 5e-2]
    export = tmp_path / "run" / "export"
    generator = Generator.from_pretrained(folder, "cpu", "float32")
    x = noise(generator, 1)
    plain = ours(name, generator, x, 4.0, prompt=[WORDED])
    report = generator.load_adapter(export / "adapter.safetensors")
    assert report.complete and "<new> (2)" in report.text()
    made = ours(name, generator, x, 4.0, prompt=[WORDED])
    assert (made - plain).abs().max() > 0.02
    open_theirs(pipeline, export, name == "sdxl")
    assert_close(made, theirs(name, pipeline, x, 4.0, prompt=[WORDED]), atol=1e-4, rtol=0)

    adapter = read_adapter(export / "adapter.safetensors")
    for format in ("kohya", "diffusers"):
        again = read_adapter(write_adapter(adapter, tmp_path / f"{format}.safetensors", format))
        assert again.words.keys() == {"<new>"} and again.format == format
        for part, vectors in adapter.words["<new>"].items():
            assert torch.equal(vectors, again.words["<new>"][part])
        fresh = Generator.from_pretrained(folder, "cpu", "float32")
        fresh.load_adapter(again)
        assert_close(ours(name, fresh, x, 4.0, prompt=[WORDED]), made, atol=1e-6, rtol=0)


def test_pixart_trains_under_diffusers_names_and_runs_in_our_network(tmp_path):
    pipeline = pipelines.pixart()
    folder = pipelines.save(pipeline, tmp_path / "model")
    run = trainer(tmp_path / "run", pictures(tmp_path / "images", 2), folder, gradient_checkpointing=True)
    run.train()
    tensors = load_file(tmp_path / "run" / "export" / "adapter.safetensors")
    assert "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight" in tensors
    bridged, native = (Generator.from_pretrained(folder, "cpu", "float32", native=native) for native in (False, None))
    assert type(native.network).__name__ == "DiT"
    x = noise(bridged, 1)
    plain = ours("pixart", bridged, x, 4.0)
    for generator in (bridged, native):
        generator.load_adapter(tmp_path / "run" / "export" / "adapter.safetensors")
    made = ours("pixart", bridged, x, 4.0)
    assert (made - plain).abs().max() > 1e-3
    assert_close(ours("pixart", native, x, 4.0), made, atol=1e-4, rtol=0)
    in_peft = write_adapter(read_adapter(tmp_path / "run" / "export" / "adapter.safetensors"), tmp_path / "peft", "peft").parent
    pipeline.transformer = peft.PeftModel.from_pretrained(pipeline.transformer, in_peft).base_model.model
    pipeline.scheduler.set_timesteps(STEPS)  # whole timesteps, which our grid of this name does not keep to
    reference = theirs("pixart", pipeline, x, 4.0)
    made = ours("pixart", bridged, x, 4.0, schedule=grid_of(pipeline.scheduler, bridged.denoiser.path))
    assert_close(reference, made, atol=1e-4, rtol=0)


def test_a_format_without_text_encoders_is_refused_before_training(tiny_model):
    for format in ("peft", "ai-toolkit"):
        with pytest.raises(ValueError, match=f"the {format} format holds one network and has no place for text_adapter"):
            objective(tiny_model, text_adapter={"rank": 2}, format=format)
