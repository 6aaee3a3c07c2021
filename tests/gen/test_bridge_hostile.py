"""Folders that must not be opened, and the sentence that each gets; what a scheduler's config may say; what is fetched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gen.generator import Generator
from gen.io.weights import CheckpointError
from gen.models.bridge.load import CLASSES, find_weights, library_class, weight_files
from gen.models.bridge.pipeline import PIPELINES, needed_files, read_index
from gen.models.bridge.schedule import SAMPLERS, sampling
from gen.models.folder import model_config
from tests.gen import pipelines


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return pipelines.save(pipelines.stable_diffusion(), tmp_path_factory.mktemp("good") / "sd")


@pytest.fixture
def folder(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "sd"))


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        Generator.from_pretrained(folder, device="cpu", dtype="float32")
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("unet", {"block_out_channels": [8, 4096]}),
        ("unet", {"cross_attention_dim": 10**6}),
        ("vae", {"block_out_channels": [8, 4096]}),
        ("text_encoder", {"vocab_size": 10**7}),
        ("text_encoder", {"intermediate_size": 10**6}),
    ],
)
def test_parts_that_ask_for_more_than_their_weights(folder, part, values):
    """Refused from the file's header, before the network has memory; as small a change is one that does not fit."""
    change(folder / part / "config.json", **values)
    refused(folder, rf"{part}/config.json: asks for a tensor \(.*\), with which the network is larger than its weights")


def test_tables_that_are_computed_have_a_bound(folder):
    change(folder / "unet" / "config.json", sample_size=10**6)
    refused(folder, "asks for pictures of 1000000 in 'sample_size'; no known network goes beyond 4096")


def test_a_class_that_is_not_in_the_table(folder):
    for name, match in (
        ("StableDiffusionGatedPipeline", "is a 'StableDiffusionGatedPipeline'; did you mean StableDiffusionPipeline"),
        ("os.system", "is a 'os.system'.*pipelines that can be opened"),
        (["a"], "pipelines that can be opened"),
    ):
        change(folder / "model_index.json", _class_name=name)
        refused(folder, match)


@pytest.mark.parametrize(
    "entry", [["evil", "UNet2DConditionModel"], ["../evil", "UNet2DConditionModel"], ["diffusers", "FluxTransformer2DModel"]]
)
def test_a_part_from_elsewhere(folder, entry):
    """A sentinel module in the folder shows that nothing was imported from it."""
    (folder / "evil.py").write_text("from pathlib import Path; Path(__file__).with_name('ran').touch()")
    change(folder / "model_index.json", unet=entry)
    refused(
        folder, f"gives unet as {entry[0]}.{entry[1]}; Stable Diffusion has UNet2DConditionModel there".replace("..", r"\.\.")
    )
    assert not (folder / "ran").exists()


def test_names_of_parts_come_from_the_table_alone(folder):
    """A part called ../../x in the index is never looked at; a missing one is said to be missing."""
    change(folder / "model_index.json", **{"../../outside": ["diffusers", "AutoencoderKL"], "safety_checker": ["x", "Y"]})
    assert set(read_index(folder)[1]) == {"unet", "vae", "text_encoder", "tokenizer"}
    change(folder / "model_index.json", vae=None)
    refused(folder, "has no vae, which Stable Diffusion needs")
    change(folder / "model_index.json", vae="AutoencoderKL")
    refused(folder, "a pair such as")


def test_missing_parts(folder):
    shutil.rmtree(folder / "text_encoder")
    refused(folder, "text_encoder: is missing")
    (folder / "text_encoder").mkdir()
    refused(folder, "config.json: does not exist")


def test_pickles_are_not_opened(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))
    refused(folder, "has only diffusion_pytorch_model.bin, a pickle file")
    file.with_suffix(".bin").unlink()
    refused(folder, "has no diffusion_pytorch_model.safetensors; the download is incomplete")


def test_damaged_weights(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = load_file(file)
    name = next(iter(whole))
    save_file({**whole, name: whole[name] * float("nan")}, file, {"format": "pt"})
    refused(folder, "holds NaN or infinite values")
    save_file({k: v for k, v in whole.items() if k != name}, file, {"format": "pt"})
    refused(folder, f"unet: .*{name}")
    save_file({**whole, "extra.weight": torch.ones(2)}, file, {"format": "pt"})
    refused(folder, "has unknown extra.weight")
    save_file({**whole, name: torch.ones(1, 2)}, file, {"format": "pt"})
    refused(folder, "unet: ")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    refused(folder, "is a Git LFS pointer")


def test_damaged_text_encoder(folder):
    """transformers would fill a missing tensor with random numbers."""
    file = folder / "text_encoder" / "model.safetensors"
    whole = load_file(file)
    name = next(name for name in whole if name.endswith("fc1.weight"))
    save_file({k: v for k, v in whole.items() if k != name}, file, {"format": "pt"})
    refused(folder, "text_encoder: .*lacks .*fc1.weight")


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("unet/config.json", {"auto_map": {"AutoModel": "evil.Net"}}),
        ("text_encoder/config.json", {"nested": [{"trust_remote_code": True}]}),
        ("text_encoder/config.json", {"_attn_implementation": "someone/kernels"}),
        ("text_encoder/config.json", {"quantization_config": {"quant_method": "evil"}}),
        ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}),
    ],
)
def test_configs_that_choose_code(folder, part, values):
    change(folder / part, **values)
    refused(folder, "which chooses code to run|is quantised by 'evil', which is not read")


def test_absurd_and_odd_configs(folder):
    change(folder / "unet" / "config.json", layers_per_block=10**9)
    refused(folder, "asks for 1000000000 layers")
    (folder / "unet" / "config.json").write_text("[1]")
    refused(folder, "not an object")


def test_a_network_with_other_channels(folder):
    """An inpainting U-Net takes nine."""
    pipelines.unet(in_channels=9).save_pretrained(folder / "unet")
    refused(folder, "takes 9 channels and the autoencoder makes 4; networks for inpainting")


def test_shards_that_lead_elsewhere(folder):
    part = folder / "unet"
    (part / "diffusion_pytorch_model.safetensors").rename(part / "diffusion_pytorch_model-00001-of-00001.safetensors")
    index = part / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../../secret.safetensors"}}))
    refused(folder, "lists '../../secret.safetensors', which is not there")
    index.write_text(json.dumps({"weight_map": []}))
    refused(folder, "lists no weight files")
    names = load_file(part / "diffusion_pytorch_model-00001-of-00001.safetensors")
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "diffusion_pytorch_model-00001-of-00001.safetensors")})
    )
    assert len(Generator.from_pretrained(folder, device="cpu", dtype="float32").weights) == 3


def test_a_fifo_among_the_weights_does_not_hang(folder):
    import os

    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.unlink()
    os.mkfifo(file)
    refused(folder, "is not a regular file")


def test_every_class_of_the_tables_exists():
    import diffusers

    for name in CLASSES:
        assert library_class(name).__name__ in (name, "TokenizersBackend")  # transformers' name for fast tokenizers
    for pipeline, family in PIPELINES.items():
        assert hasattr(diffusers, pipeline)
        assert all(names[0] in CLASSES for names in family.classes.values())
    assert all(hasattr(diffusers, name) for name in SAMPLERS)


STEM = "model"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"model.safetensors", "model.fp16.safetensors", "model.bin"}, (None, ["model.safetensors"], None)),
        ({"model.fp16.safetensors", "other.safetensors"}, ("fp16", ["model.fp16.safetensors"], None)),
        ({"model.bin"}, (None, [], None)),
        (
            {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"},
            (None, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "model.safetensors.index.json"),
        ),
        (
            {"model.fp16-00001-of-00001.safetensors", "model.safetensors.index.fp16.json"},
            ("fp16", ["model.fp16-00001-of-00001.safetensors"], "model.safetensors.index.fp16.json"),
        ),
        ({"model-00001-of-00002.safetensors"}, (None, [], None)),  # without its index
    ],
)
def test_which_weights_are_read(names, expected):
    assert weight_files(names, STEM) == expected


def test_half_precision_files_alone_are_enough(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert find_weights(file.parent, "diffusion_pytorch_model")[0] == "fp16"
    Generator.from_pretrained(folder, device="cpu", dtype="float32")


def test_only_what_is_needed_is_fetched(good):
    _, classes, _ = read_index(good)
    names = [str(path.relative_to(good)) for path in good.rglob("*") if path.is_file()]
    extra = ["unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "v1-5.ckpt",
             "safety_checker/model.safetensors", "unet/deep/er.json", "unet/evil.py"]  # fmt: skip
    assert set(needed_files(names + extra, classes)) == set(names)
    with pytest.raises(CheckpointError, match="vae: has no safetensors"):
        needed_files([name for name in names if not name.startswith("vae/")], classes)


NOISE = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


@pytest.mark.parametrize(
    ("config", "path", "schedule", "options", "sampler"),
    [
        (NOISE, "variance_preserving", "scheduler", {"spacing": "leading"}, "ddim"),
        (
            NOISE | {"_class_name": "PNDMScheduler", "steps_offset": 1},
            "variance_preserving",
            "scheduler",
            {"spacing": "leading", "offset": 1, "final": "first"},
            "pndm",
        ),
        (NOISE | {"_class_name": "EulerDiscreteScheduler"}, "variance_preserving", "scheduler", {"rounded": False}, "euler"),
        (
            NOISE | {"_class_name": "DPMSolverMultistepScheduler"},
            "variance_preserving",
            "scheduler",
            {"open_end": True},
            "dpmpp_2m",
        ),
        (
            NOISE | {"set_alpha_to_one": False},
            "variance_preserving",
            "scheduler",
            {"spacing": "leading", "final": "first"},
            "ddim",
        ),
        (NOISE | {"rescale_betas_zero_snr": True}, "variance_preserving", "scheduler", {"spacing": "leading"}, "ddim"),
        (NOISE | {"_class_name": "LCMScheduler"}, "variance_preserving", "trained", {}, "lcm"),
        (FLOW, "rectified_flow", "uniform", {}, "euler"),
        (FLOW | {"shift": 3.0}, "rectified_flow", "uniform", {"shift": 3.0}, "euler"),
        (
            FLOW | {"use_dynamic_shifting": True, "max_shift": 1.2},
            "rectified_flow",
            "dynamic_shift",
            {"base_tokens": 256, "max_tokens": 4096, "base_shift": 0.5, "max_shift": 1.2},
            "euler",
        ),
        (
            {
                "_class_name": "DPMSolverMultistepScheduler",
                "use_flow_sigmas": True,
                "flow_shift": 3.0,
                "prediction_type": "flow_prediction",
            },
            "rectified_flow",
            "scheduler_flow",
            {"start": "below", "shift": 3.0, "clock": "floor"},
            "dpmpp_2m",
        ),
    ],
)
def test_schedulers(config, path, schedule, options, sampler):
    found = sampling(Path("scheduler_config.json"), config)
    defaults = found["defaults"]
    assert (found["path"]["type"], defaults["schedule"], defaults["schedule_options"]) == (path, schedule, options)
    assert defaults["sampler"] == sampler
    model_config({**found, "clock": "1000t" if path == "rectified_flow" else "index", "sample_size": 8})


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"_class_name": "KarrasVeScheduler"}, "has scheduler 'KarrasVeScheduler'; known are DDIMScheduler"),
        (NOISE | {"trained_betas": [0.1]}, "table of betas of its own"),
        (NOISE | {"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid' is not one of linear"),
        (NOISE | {"prediction_type": "flow_prediction"}, "is not one of epsilon, sample"),
        (NOISE | {"beta_start": "1"}, "beta_start is '1', not a number"),
        (NOISE | {"steps_offset": True}, "steps_offset is True, not a whole number"),
        (FLOW | {"prediction_type": "epsilon"}, "which is not flow_prediction"),
        (FLOW | {"use_dynamic_shifting": True, "time_shift_type": "square"}, "time_shift_type 'square'"),
        (NOISE | {"timestep_spacing": "random"}, "timestep_spacing 'random' is not one of leading"),
    ],
)
def test_schedulers_without_an_equal(config, match):
    with pytest.raises(CheckpointError, match=match):
        sampling(Path("scheduler_config.json"), config)
