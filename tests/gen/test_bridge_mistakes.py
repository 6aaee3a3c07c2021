"""Bad files and wrong combinations of models of diffusers on the command line: one sentence each, and nothing on disk.

The table has what is asked for beside `fewstep image "a cat" --steps 1`, and words of the answer."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from gen.cli import app
from tests.gen import ip_adapters, more_pipelines, pipelines
from tests.gen.lora import factors

UNET = "unet/diffusion_pytorch_model.safetensors"


def copied(root: Path, name: str, *leave: str, like: str = "sd") -> Path:
    """A pipeline's folder of its own, of which some parts are left out."""
    return Path(shutil.copytree(root / like, root / name, ignore=shutil.ignore_patterns(*leave)))


def edited(file: Path, change) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def retensored(file: Path, change) -> None:
    tensors = dict(load_file(file))
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle ran')",))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder of small pipelines and of everything that can be wrong with them."""
    root = tmp_path_factory.mktemp("mistakes")
    made = {"sd": pipelines.stable_diffusion(), "sdxl": pipelines.sdxl(), "flux": pipelines.flux(), "dit": pipelines.dit()}
    made |= {"pixart": pipelines.pixart(), "fill": more_pipelines.flux_fill(), "lcm": pipelines.latent_consistency()}
    for name, pipeline in made.items():
        pipelines.save(pipeline, root / name)
    whole = copied(root, "cut")
    (whole / UNET).write_bytes((root / "sd" / UNET).read_bytes()[:-1000])
    header = copied(root, "cut_header")
    (header / UNET).write_bytes((root / "sd" / UNET).read_bytes()[:40])
    for name, change in {
        "lacks": lambda tensors: tensors.pop("conv_in.weight"),
        "more": lambda tensors: tensors.update(extra=torch.zeros(2)),
        "wide": lambda tensors: tensors.update({"conv_in.weight": torch.zeros(3, 3)}),
        "nan": lambda tensors: tensors["conv_in.weight"].fill_(torch.nan),
    }.items():
        retensored(copied(root, name) / UNET, change)
    (copied(root, "not_json") / "unet" / "config.json").write_text("{")
    (copied(root, "index_not_json") / "model_index.json").write_text("[]")
    edited(copied(root, "unknown") / "model_index.json", lambda v: v.update(_class_name="StableDifusionPipeline"))
    edited(copied(root, "foreign") / "model_index.json", lambda v: v.update(unet=["os", "system"]))
    edited(copied(root, "code") / "unet" / "config.json", lambda v: v.update(auto_map={"AutoModel": "evil.Model"}))
    edited(copied(root, "deep") / "unet" / "config.json", lambda v: v.update(layers_per_block=100000))
    edited(copied(root, "scheduler") / "scheduler" / "scheduler_config.json", lambda v: v.update(_class_name="MyScheduler"))
    copied(root, "no_vae", "vae")
    copied(root, "no_scheduler", "scheduler")
    copied(root, "no_words", "vocab.json", "tokenizer.json", "merges.txt")
    pickled = copied(root, "pickled", "diffusion_pytorch_model.safetensors")
    (pickled / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    (root / "empty_folder").mkdir()
    (root / "model.ckpt").write_bytes(pickle.dumps(Evil()))
    (root / "pickle.safetensors").write_bytes(pickle.dumps(Evil()))
    (root / "empty.safetensors").write_bytes(b"")
    (root / "words.txt").write_text("a cat")
    (root / "huge.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    save_file({"weight": torch.zeros(2, 2)}, root / "nothing.safetensors")
    (root / "empty.gguf").write_bytes(b"")
    (root / "cut.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 5, 5))
    _gguf(root / "llama.gguf", "llama")
    _adapters(root, made)
    Image.new("RGB", (32, 32), "red").save(root / "red.png")
    return root


def _gguf(path: Path, architecture: str) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tensor("token_embd.weight", torch.zeros(4, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _adapters(root: Path, made) -> None:
    def lora(name: str, key: str, layer, part: str = "unet") -> None:
        down, up = factors(*layer.weight.shape)
        save_file({f"{part}.{key}.lora_A.weight": down, f"{part}.{key}.lora_B.weight": up}, root / name)

    flux, sd = made["flux"].transformer, made["sd"].unet
    key = next(name for name, _ in flux.named_modules() if name.endswith("to_q"))
    lora("flux_lora.safetensors", key, flux.get_submodule(key), "transformer")
    key = next(name for name, _ in sd.named_modules() if name.endswith("attn1.to_q"))
    lora("lora.safetensors", key, sd.get_submodule(key))
    tensors = load_file(root / "lora.safetensors")
    save_file({name: value * torch.nan for name, value in tensors.items()}, root / "nan_lora.safetensors")
    save_file({name: value[:, :3].contiguous() for name, value in tensors.items()}, root / "narrow_lora.safetensors")
    save_file({name: value for name, value in tensors.items() if "lora_A" in name}, root / "half_lora.safetensors")
    (root / "cut_lora.safetensors").write_bytes((root / "lora.safetensors").read_bytes()[:-50])
    (root / "lora.pt").write_bytes(pickle.dumps(Evil()))
    from tests.gen.test_control import network_for

    network_for("sdxl", made["sdxl"], 5).save_pretrained(root / "sdxl_control", safe_serialization=True)
    network_for("stable_diffusion", made["sd"], 5).save_pretrained(root / "canny", safe_serialization=True)
    ip_adapters.save(root / "ip", ip_adapters.ip_adapter(made["sd"].unet))
    ip_adapters.save(root / "sdxl_ip", ip_adapters.ip_adapter(made["sdxl"].unet))
    (root / "alone").mkdir()
    shutil.copy(root / "ip" / "ip-adapter.safetensors", root / "alone" / "ip.safetensors")


RED, CONTROL = "red.png", ("--control", "red.png", "--controlnet")
SHOWN = ("--image-prompt", "red.png", "--ip-adapter")
MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    # files of models
    "cut weights": (("cut",), "incomplete metadata, file not fully covered); download or write it again"),
    "cut header": (("cut_header",), "is not a usable safetensors file"),
    "a tensor lacks": (("lacks",), "it lacks conv_in.weight"),
    "a tensor more": (("more",), "it has unknown extra"),
    "a tensor's shape": (("wide",), "conv_in.weight is [3, 3] in the file, and [8, 4, 3, 3] in the network"),
    "not a number": (("nan",), "holds NaN or infinite values"),
    "a config": (("not_json",), "is not valid JSON"),
    "an index": (("index_not_json",), "holds a JSON list"),
    "an unknown pipeline": (("unknown",), "did you mean StableDiffusionPipeline?"),
    "a class from elsewhere": (("foreign",), "gives unet as os.system"),
    "a config with code": (("code",), "'auto_map', which chooses code"),
    "absurd depth": (("deep",), "no known network has more than 1000"),
    "an unknown scheduler": (("scheduler",), "known are DDIMScheduler"),
    "no autoencoder": (("no_vae",), "vae: is missing"),
    "no scheduler": (("no_scheduler",), "scheduler_config.json: does not exist"),
    "no vocabulary": (("no_words",), "has no vocabulary"),
    "a pickle in a pipeline": (("pickled",), "a pickle file, which can run code"),
    "an empty folder": (("empty_folder",), "which models have; check the name"),
    "a checkpoint that is a pickle": (("model.ckpt",), "Convert it first (`fewstep convert --from-pickle`)"),
    "a pickle by another name": (("pickle.safetensors",), "is a pickle file, which can run code"),
    "an empty file": (("empty.safetensors",), "is empty (0 bytes)"),
    "a text": (("words.txt",), "neither a folder nor a safetensors or GGUF file"),
    "an endless header": (("huge.safetensors",), "header too large"),
    "no model": (("nothing.safetensors",), "is of no format that is known"),
    "an empty GGUF": (("empty.gguf",), "does not begin with GGUF"),
    "a cut GGUF": (("cut.gguf",), "its header ends too early"),
    "a GGUF of a language model": (("llama.gguf",), "holds none of the models that open from one file"),
    # how it is opened
    "unknown bits": (("sd", "--quantize", "int7"), "give int8, fp8, int4, nf4"),
    "quantised in our network": (("pixart", "--native", "--quantize", "int8"), "leave --quantize out"),
    "no network of ours": (("sd", "--native"), "leave --native out"),
    "a variant": (("sd", "--variant", "fp17"), "leave --variant out"),
    "unknown offloading": (("sd", "--offload", "modle"), "give one of 'model', 'group', 'sequential', 'disk'"),
    "an autoencoder that is none": (("sd", "--vae", "words.txt"), "--vae words.txt: is not a usable safetensors file"),
    "a second text encoder": (("sd", "--text-encoder", "flux"), "leave --text-encoder out"),
    "an unknown attention": (("sd", "--attention", "flsh"), "Did you mean flash?"),
    "attention of a GPU": (("sd", "--attention", "flash"), "has CUDA kernels only"),
    "graphs of a GPU": (("sd", "--compile", "full", "--cuda-graphs"), "CUDA graphs are for compile='full' on a CUDA device"),
    "a decoder that is none": (("sd", "--preview-decoder", "nothing.safetensors"), "is no tiny decoder that is known"),
    "a tiny decoder without one": (("sd", "--decoder", "tiny"), "give --preview-decoder, such as TAESD"),
    "a model option": (("sd", "--model-option", "heads=2"), "is a whole model"),
    # LoRAs
    "a LoRA of another family": (("sd", "--lora", "flux_lora.safetensors"), "fits nothing in this model"),
    "a LoRA of other widths": (("sd", "--lora", "narrow_lora.safetensors"), "is (16, 3) where"),
    "half a LoRA": (("sd", "--lora", "half_lora.safetensors"), "it has down but lacks up"),
    "a LoRA of NaN": (("sd", "--lora", "nan_lora.safetensors"), "holds NaN"),
    "a cut LoRA": (("sd", "--lora", "cut_lora.safetensors"), "download or write it again"),
    "a LoRA that is a pickle": (("sd", "--lora", "lora.pt"), "is a pickle file, which can run code"),
    "a LoRA that is not there": (("sd", "--lora", "lorra.safetensors"), "does not exist; check the name"),
    "a LoRA that is a model": (("sd", "--lora", "nothing.safetensors"), "it is for another model"),
    "a LoRA's weight": (("sd", "--lora", "lora.safetensors:much"), "The weight of lora.safetensors is 'much'; give a number"),
    # ControlNets and IP-Adapters
    "a ControlNet of another family": (("sd", *CONTROL, "sdxl_control"), "it is for another model"),
    "a ControlNet where none goes": (("pixart", *CONTROL, "canny"), "give one that was made for it"),
    "a ControlNet that is not there": (("sd", *CONTROL, "controll"), "--controlnet is 'controll'"),
    "a ControlNet that is a pipeline": (("sd", *CONTROL, "flux"), "is a whole pipeline; give a ControlNet's"),
    "a control without a network": (("sd", "--control", RED), "--control and --controlnet go together"),
    "a network without a control": (("sd", "--controlnet", "canny"), "--control and --controlnet go together"),
    "a control that is no picture": (("sd", "--control", "words.txt", "--controlnet", "canny"), "words.txt cannot be opened"),
    "an IP-Adapter of another family": (("sd", *SHOWN, "sdxl_ip/ip-adapter.safetensors"), "it is for another network"),
    "an IP-Adapter where none goes": (("pixart", *SHOWN, "ip/ip-adapter.safetensors"), "This model takes no IP-Adapter"),
    "an IP-Adapter without a picture": (("sd", "--ip-adapter", "ip/ip-adapter.safetensors"), "give --image-prompt"),
    "a picture without an IP-Adapter": (("sd", "--image-prompt", RED), "was given without --ip-adapter"),
    "an IP-Adapter without an encoder": (
        ("sd", *SHOWN, "alone/ip.safetensors"),
        "give --ip-adapter-encoder, the vision encoder",
    ),
    "an IP-Adapter that is none": (("sd", *SHOWN, "nothing.safetensors"), "is no IP-Adapter"),
    # combinations
    "a mask without a picture": (("sd", "--mask", RED), "give --image too"),
    "a picture that is none": (("sd", "--image", "words.txt"), "words.txt cannot be opened"),
    "too strong": (("sd", "--image", RED, "--strength", "2"), "from 0 to 1"),
    "nothing to fill": (("fill",), "fills in what a mask opens"),
    "a strength where nothing fits": (("fill", "--image", RED), "give --mask too"),
    "a cache of blocks": (("sd", "--cache", "first_block"), "use the caches reuse, easy or pyramid"),
    "perturbed attention": (("flux", "--guidance", "pag"), "use other guidance"),
    "a second prompt": (("sd", "--prompt-2", "a dog"), "takes no --prompt-2"),
    "layers that are not there": (("sd", "--clip-skip", "9"), "give at most 3"),
    "longer than it reads": (("sd", "--max-sequence-length", "128"), "takes no --max-sequence-length"),
    "sizes of SDXL": (("sd", "--original-size", "512", "512"), "leave --original-size out"),
    "a sampler": (("sd", "--sampler", "dpmpp_2mm"), "did you mean 'dpmpp_2m'"),
    "a size between": (("sd", "--height", "33"), "32 and 34"),
    "a refiner of other latents": (("sd", "--refiner", "flux", "--refiner-at", "0.5"), "was trained on other noise or latents"),
    "a prompt where none is read": (("dit",), "give a label from 0 to 999"),
}


def said(files: Path, monkeypatch, capsys, arguments: tuple[str, ...]) -> tuple[int, str, str]:
    monkeypatch.chdir(files)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        usual = ("--steps", "1", "--device", "cpu", "--dtype", "float32", "-o", "made.png", "-q")
        code = app.main(["image", "a cat", "--model", *arguments, *usual])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize("name", MISTAKES)
def test_one_sentence_each(files, monkeypatch, capsys, name):
    arguments, words = MISTAKES[name]
    code, _, err = said(files, monkeypatch, capsys, arguments)
    lines = [line for line in err.splitlines() if line.startswith("fewstep: ")]
    assert code == 2 and len(lines) == 1, err
    assert words in lines[0] and len(lines[0]) > 30 and lines[0].endswith((".", ")", "?")), err
    assert "Traceback" not in err and "defect" not in err and not (files / "made.png").exists(), err
