"""One part of a diffusers folder, opened safely: the class comes from the caller's table, never from the file.

Configs are read and checked before any library sees them; weights are safetensors, every tensor expected, present and finite.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import logging
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from gen.io.digests import file_digest
from gen.io.errors import regular_file
from gen.io.weights import PICKLES, CheckpointError, TensorFile, read_json
from gen.models.bridge.positions import check_positions
from gen.models.bridge.reasons import first_line
from gen.nn.initialisation import TooLarge, no_larger_than, opening_device, wants_sizes_only

# Everything a pipeline may be made of, and the library that has it.
CLASSES: dict[str, str] = {
    "UNet2DConditionModel": "diffusers",
    **dict.fromkeys(("ControlNetModel", "ControlNetUnionModel", "FluxControlNetModel", "SD3ControlNetModel"), "diffusers"),
    "QwenImageControlNetModel": "diffusers",
    "T2IAdapter": "diffusers",
    "BriaTransformer2DModel": "diffusers",
    "Kandinsky3UNet": "diffusers",
    "PixArtTransformer2DModel": "diffusers",
    "DiTTransformer2DModel": "diffusers",
    "SD3Transformer2DModel": "diffusers",
    "AuraFlowTransformer2DModel": "diffusers",
    "ChromaTransformer2DModel": "diffusers",
    "CogView4Transformer2DModel": "diffusers",
    "FluxTransformer2DModel": "diffusers",
    "HiDreamImageTransformer2DModel": "diffusers",
    "Lumina2Transformer2DModel": "diffusers",
    "SanaTransformer2DModel": "diffusers",
    "Flux2Transformer2DModel": "diffusers",
    "Krea2Transformer2DModel": "diffusers",
    **dict.fromkeys(("QwenImageTransformer2DModel", "QwenImage21Transformer2DModel"), "diffusers"),
    "ZImageTransformer2DModel": "diffusers",
    "AutoencoderKL": "diffusers",
    "AutoencoderTiny": "diffusers",
    **dict.fromkeys(("AutoencoderDC", "AutoencoderKLFlux2"), "diffusers"),
    **dict.fromkeys(("AutoencoderKLQwenImage", "AutoencoderKLQwenImage21"), "diffusers"),
    "AutoencoderKLWan": "diffusers",
    "ChatGLMModel": "transformers",
    "VQModel": "diffusers",
    "CLIPTextModel": "transformers",
    "CLIPTextModelWithProjection": "transformers",
    **dict.fromkeys(("CLIPVisionModelWithProjection", "SiglipVisionModel"), "transformers"),
    "T5EncoderModel": "transformers",
    "UMT5EncoderModel": "transformers",
    "Gemma2Model": "transformers",
    "GlmModel": "transformers",
    "LlamaModel": "transformers",
    "Mistral3Model": "transformers",
    "Qwen2_5_VLModel": "transformers",
    "Qwen3Model": "transformers",
    "Qwen3VLModel": "transformers",
    "ChatGLMTokenizer": "transformers",
    "CLIPTokenizer": "transformers",
    "T5Tokenizer": "transformers",
    "GemmaTokenizer": "transformers",
    "LlamaTokenizer": "transformers",
    "PreTrainedTokenizerFast": "transformers",
    "Qwen2Tokenizer": "transformers",
}
# classes of a library's kind that another library has: the module there
ELSEWHERE = {
    "ChatGLMModel": "diffusers.pipelines.kolors.text_encoder",
    "ChatGLMTokenizer": "diffusers.pipelines.kolors.tokenizer",
}
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}

# encoders that files hold as parts of larger models -> beginnings of the names of what is left there
BESIDES: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("LlamaModel", "Mistral3Model", "Qwen2_5_VLModel", "Qwen3Model", "Qwen3VLModel"), ("lm_head.", "language_model.lm_head.")
)

# What makes a library fetch or run code that a config names, or read weights in formats that have not been checked.
FORBIDDEN = ("auto_map", "trust_remote_code", "custom_pipelines", "quantization_config", "attn_implementation")
_ATTENTION = (None, "eager", "sdpa")
VARIANTS = ("", "fp16", "bf16", "fp32")
CODED = ("F8_E4M3", "F8_E5M2", "I8", "U8")  # dtypes of weights in fewer bits
# ways to write a tokenizer's vocabulary, each a set of files that belong together
VOCABULARIES: dict[str, tuple[tuple[str, ...], ...]] = {
    "ChatGLMTokenizer": (("tokenizer.model",),),
    "CLIPTokenizer": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "T5Tokenizer": (("tokenizer.json",), ("spiece.model",)),
    "GemmaTokenizer": (("tokenizer.json",), ("tokenizer.model",)),
    "LlamaTokenizer": (("tokenizer.json",), ("tokenizer.model",)),
    "PreTrainedTokenizerFast": (("tokenizer.json",),),
    "Qwen2Tokenizer": (("tokenizer.json",), ("vocab.json", "merges.txt")),
}


def check_config(path: Path, value: Any, name: str = "") -> None:
    """CheckpointError for a config (nested as it may be) with anything that chooses code, or absurd depths. name: the class
    that it is of; those of `ELSEWHERE` were published with code of their own, which nothing here reads."""
    waiting = [value]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        if not isinstance(node, Mapping):
            continue
        for key, inner in node.items():
            if key == "auto_map" and name in ELSEWHERE:
                continue
            if key in FORBIDDEN or (key == "_attn_implementation" and inner not in _ATTENTION):
                raise CheckpointError(path, f"has {key!r}, which chooses code to run; remove it if you trust the file.")
            if "layers" in key and isinstance(inner, int) and inner > 1000:
                raise CheckpointError(path, f"asks for {inner} layers in {key!r}; no known network has more than 1000.")
            waiting.append(inner)


def variants_for(variant: str | None, dtype: torch.dtype) -> tuple[str, ...]:
    """Variants of weights in the order of preference: the one asked for; else those of half the size where the network runs in
    half precision anyway, and full weights where it doesn't. ValueError for a name that no file can have."""
    if variant is not None and not re.fullmatch(r"[A-Za-z0-9_-]{0,32}", variant):
        raise ValueError(f"The variant is {variant!r}; give fp16, bf16, or another that a repository names its files by.")
    first: tuple[str, ...] = ("",)
    if variant is not None:
        first = (variant,)
    elif dtype == torch.float16:
        first = ("fp16",)
    elif dtype == torch.bfloat16:
        first = ("bf16", "fp16")
    return tuple(dict.fromkeys((*first, *VARIANTS)))


def weight_files(
    names: Iterable[str], stem: str, variants: tuple[str, ...] = VARIANTS
) -> tuple[str | None, list[str], str | None]:
    """(variant, weight files, index file) among the file names of a part; no files if it has no safetensors.

    variants: in the order of preference, full weights being ""; one file comes before shards.
    """
    names = set(names)
    for variant in variants:
        dotted = f".{variant}" if variant else ""
        if (single := f"{stem}{dotted}.safetensors") in names:
            return variant or None, [single], None
        mark = re.escape(dotted)
        shard = re.compile(rf"{re.escape(stem)}(?:{mark}-\d+-of-\d+|-\d+-of-\d+{mark})\.safetensors")
        shards = sorted(name for name in names if shard.fullmatch(name))
        if shards and (index := f"{stem}.safetensors.index{dotted}.json") in names:
            return variant or None, shards, index
    return None, [], None


def find_weights(folder: Path, stem: str, variants: tuple[str, ...] = VARIANTS) -> tuple[str | None, list[Path]]:
    """(variant, files) of a part; CheckpointError where there are none that may be opened."""
    names = [entry.name for entry in folder.iterdir()]
    variant, files, index = weight_files(names, stem, variants)
    if not files:
        if pickles := sorted(name for name in names if name.endswith(PICKLES)):
            raise CheckpointError(
                folder,
                f"has only {pickles[0]}, a pickle file, which can run code when opened; convert it to safetensors first.",
            )
        raise CheckpointError(folder, f"has no {stem}.safetensors; the download is incomplete.")
    if index is not None:
        listed = read_json(folder / index).get("weight_map")
        values = (
            set(listed.values()) if isinstance(listed, dict) and all(isinstance(v, str) for v in listed.values()) else set()
        )
        if not values or not values <= set(files):
            odd = sorted(values - set(files))
            raise CheckpointError(folder / index, f"lists {odd[0]!r}, which is not there." if odd else "lists no weight files.")
        files = sorted(values)
    for name in files:
        if not (folder / name).is_file():
            raise CheckpointError(folder / name, "is not a regular file; give the path of a file.")
    return variant, [folder / name for name in files]


def digest(files: Iterable[Path]) -> str:
    """sha256 of one file; of several, that of the list of their names and sha256."""
    files = list(files)
    if len(files) == 1:
        return file_digest(files[0])
    listed = "".join(f"{file_digest(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(listed.encode()).hexdigest()


def read_part_config(folder: Path, name: str = "") -> dict[str, Any]:
    """`config.json` of a part, checked; CheckpointError where the part is missing."""
    if not folder.is_dir():
        raise CheckpointError(folder, "is missing; the pipeline's model_index.json names it. Download it again.")
    value = read_json(folder / "config.json")
    stored = value.get("quantization_config")
    if isinstance(stored, dict) and stored.get("quant_method") == "bitsandbytes":
        value.pop("quantization_config")  # the weights say how they are stored (`gen.models.bridge.files.stored`)
    elif stored is not None:
        method = stored.get("quant_method") if isinstance(stored, dict) else stored
        raise CheckpointError(
            folder,
            f"is quantised by {method!r}, which is not read; bitsandbytes' weights, fp8 and GGUF are. Take the full weights, "
            "with quantize= (--quantize) for less memory.",
        )
    check_config(folder / "config.json", value, name)
    return value


def load_network(
    folder: Path,
    name: str,
    dtype: torch.dtype,
    besides: tuple[str, ...] = (),
    variants: tuple[str, ...] = VARIANTS,
    scheme: str | None = None,
) -> tuple[nn.Module, str]:
    """(network in evaluation mode, digest of its files). `name` is one of CLASSES.

    besides: beginnings of the names of tensors that the file may have on top, where it is that of a larger model.
    variants: as of `weight_files`.
    scheme: of `gen.nn.quantized`, in which linear layers are quantised as they are read.
    """
    library, besides = CLASSES[name], besides or BESIDES.get(name, ())
    config = read_part_config(folder, name)
    _check_regular(folder)
    variant, files = find_weights(folder, STEMS[library], variants)
    headers = {key: header for file in files for key, header in _headers(file).items()}
    shapes = {key: tuple(shape) for key, (shape, _) in headers.items()}
    coded = any(kind in CODED for _, kind in headers.values())
    if scheme is None and not coded and wants_sizes_only():
        from gen.models.bridge.files.fill import build

        network = nn.Module.to(build(folder / "config.json", name, config, shapes), dtype)
        if callable(tie := getattr(network, "tie_weights", None)):
            tie()
        return network, ""
    if scheme is not None or coded:
        from gen.models.bridge.files.folder import fill_folder

        network = fill_folder(folder, name, config, files, dtype, besides, scheme)
        return network, "" if wants_sizes_only() else digest(files)
    check_positions(folder / "config.json", config)
    options: dict[str, Any] = {"torch_dtype" if library == "diffusers" else "dtype": dtype, "variant": variant}
    if (device := opening_device()).type != "cpu":
        options["device_map"] = {"": device}  # each tensor goes there as it is read
    with quietly():
        try:
            with no_larger_than(shapes, 4):
                network, info = library_class(name).from_pretrained(
                    folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
                )
        except TooLarge as error:
            raise CheckpointError(folder / "config.json", f"{error}.") from None
        except Exception as error:  # whatever a library makes of a damaged file
            raise CheckpointError(folder, f"cannot be opened as a {name}: {first_line(error)}") from None
    _check_loaded(folder, name, network, info, besides)
    return network.eval().requires_grad_(False), digest(files)


def _headers(file: Path) -> dict[str, tuple[list[int], str]]:
    """(shape, dtype) by name, from the file's header; CheckpointError for a damaged one."""
    try:
        with safe_open(file, "pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
            return {key: (part.get_shape(), part.get_dtype()) for key, part in slices.items()}
    except Exception:
        TensorFile(file)  # says what is wrong with it
        raise


def _check_regular(folder: Path) -> None:
    """Libraries open more files of a folder than they are told to, and would wait for a pipe for ever."""
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir():
            regular_file(entry)


def load_tokenizer(folder: Path, name: str) -> Any:
    """A tokenizer from its folder; CheckpointError where its vocabulary is missing, or reads no words: the library would make
    a tokenizer to which all words are the same."""
    if not folder.is_dir():
        raise CheckpointError(folder, "is missing; the pipeline's model_index.json names it. Download it again.")
    _check_regular(folder)
    for file in folder.glob("*.json"):
        if file.name in ("tokenizer_config.json", "special_tokens_map.json"):
            check_config(file, read_json(file), name)
    _check_vocabulary(folder, name)
    with quietly():
        try:
            tokenizer = library_class(name).from_pretrained(folder, local_files_only=True)
            first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a cat", "to hold"))
        except Exception as error:
            raise CheckpointError(folder, f"cannot be opened as a {name}: {first_line(error)}") from None
    if first == second:
        raise CheckpointError(folder, "holds a vocabulary that reads no words; the download is damaged. Download it again.")
    return tokenizer


def _check_vocabulary(folder: Path, name: str) -> None:
    names = {entry.name for entry in folder.iterdir()}
    complete = [files for files in VOCABULARIES[name] if names.issuperset(files)]
    if not complete:
        begun = next((files for files in VOCABULARIES[name] if names & set(files)), None)
        ways = " or ".join(" and ".join(files) for files in VOCABULARIES[name])
        lacks = f"lacks {', '.join(sorted(set(begun) - names))}" if begun else "has no vocabulary"
        raise CheckpointError(folder, f"{lacks}: a {name} needs {ways}. The download is incomplete; download it again.")
    if any(file.endswith(".model") for file in complete[0]):
        needed = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
        if missing := [package for package, module in needed.items() if not _installed(module)]:
            raise CheckpointError(
                folder,
                f"has its vocabulary as {complete[0][0]} only, which the packages sentencepiece and protobuf read; "
                f"missing here: {' and '.join(missing)}. Run pip install sentencepiece protobuf.",
            )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def library_class(name: str) -> Any:
    """The class of one of CLASSES, its library imported now."""
    if name in ELSEWHERE:
        return getattr(importlib.import_module(ELSEWHERE[name]), name)
    if CLASSES[name] == "diffusers":
        import diffusers

        return getattr(diffusers, name)
    import transformers

    return getattr(transformers, name)


def library_name(part: Any) -> str:
    """The library of a part as model_index.json names it: a pipeline's own classes by the pipeline's folder."""
    library, *inside = type(part).__module__.split(".")
    return inside[1] if inside[:1] == ["pipelines"] else library


def device_of(network: Any) -> torch.device:
    """The device that a network's inputs belong on: where an offloading hook runs it, else where its weights are."""
    for module in network.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(network.parameters()).device


def _check_loaded(folder: Path, name: str, network: nn.Module, info: Mapping[str, Any], besides: tuple[str, ...] = ()) -> None:
    for kind, what in (("missing_keys", "lacks"), ("unexpected_keys", "has unknown"), ("mismatched_keys", "has misshapen")):
        keys = sorted(str(key) for key in info.get(kind) or ())
        if kind == "unexpected_keys" and besides:
            keys = [key for key in keys if not key.startswith(besides)]
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise CheckpointError(folder, f"does not fit {name}: it {what} {', '.join(keys[:3])}{more}.")
    for key, value in network.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(folder, f"tensor {key!r} holds NaN or infinite values; the file is damaged.")


_opening = threading.RLock()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the libraries' progress bars and advice; what matters is checked afterwards. One thread at a time: the libraries
    change what is torch's own while they open a model."""
    from transformers.utils import logging as bars

    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    with _opening:
        levels, shown = [logger.level for logger in loggers], bars.is_progress_bar_enabled()
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            bars.disable_progress_bar()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if shown:
                bars.enable_progress_bar()
