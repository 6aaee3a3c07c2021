"""Options of AUTOMATIC1111's web UI, as far as they are done here: what a client chose, and what a request overrides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gen.calls.kinds import TEXT, WHOLE, check_kind_of, shown
from gen.io.validators import check_int
from gen.serve.http.errors import BadRequest
from gen.serve.http.formats import PNG, PictureFormat
from samplers.lookup import nearest

_PREFIXES = ("save_", "samples_", "grid_", "live_preview", "show_", "outdir_", "directories_", "ui_", "hidden_")
_CHANGE_NOTHING = ("return_grid", "do_not_show_images", "enable_pnginfo", "add_model_hash_to_info", "add_model_name_to_info",
                   "sd_checkpoint_hash", "send_seed", "send_size")  # fmt: skip
_NEUTRAL = {"sd_vae": "Automatic", "eta_noise_seed_delta": 0, "ENSD": 0, "randn_source": "CPU", "token_merging_ratio": 0}


@dataclass(frozen=True)
class WebUIOptions:
    """Options of the web UI that are done here: for one client, or for one request.

    checkpoint: the model. clip_layers: the last one of CLIP that is read, counted from its end. format: of files.
    """

    checkpoint: str
    clip_layers: int = 1
    format: PictureFormat = PNG

    def with_settings(self, settings: Mapping[str, Any], models: list[str]) -> WebUIOptions:
        """These, changed as a client asks; BadRequest for one that changes pictures and is not done here."""
        options = self
        for name, value in settings.items():
            if value is None:
                continue
            if name == "sd_model_checkpoint":
                options = replace(options, checkpoint=model_named(value, models))
            elif name == "CLIP_stop_at_last_layers":
                check_kind_of(name, value, WHOLE)
                options = replace(options, clip_layers=check_int(name, value, 1, 12))
            elif name in ("samples_format", "jpeg_quality"):
                options = replace(options, format=_format_with(options.format, name, value))
            elif name not in _CHANGE_NOTHING and not name.startswith(_PREFIXES) and not _is_neutral(name, value):
                raise BadRequest(f"The setting {shown(name)} is not done here; leave it out.", name[:100], 422)
        return options


def _is_neutral(name: str, value: Any) -> bool:
    """Is this what pictures are made with anyway?"""
    return name in _NEUTRAL and (value == _NEUTRAL[name] or str(value).lower() in ("automatic", "none", ""))


def _format_with(format: PictureFormat, name: str, value: Any) -> PictureFormat:
    if name == "jpeg_quality":
        check_kind_of(name, value, WHOLE)
        return replace(format, quality=check_int(name, value, 1, 100))
    check_kind_of(name, value, TEXT)
    return replace(PictureFormat.asked(value, None), quality=format.quality)


def model_named(title: Any, models: list[str]) -> str:
    """The model of a title as /sd-models lists it. BadRequest for any other."""
    name = str(title).partition(" [")[0].removesuffix(".safetensors")
    if not isinstance(title, str) or name not in models:
        near = nearest(name, models)
        hint = f" Did you mean {near!r}?" if near else ""
        raise BadRequest(f"There is no model {shown(title)} here; there are {', '.join(models)}.{hint}", None, 422)
    return name


class WebUISessions:
    """What each client has chosen by the web UI's options; the clients that chose last are remembered."""

    KEPT = 1000

    def __init__(self, models: list[str]) -> None:
        self.models = models
        self._chosen: dict[str, WebUIOptions] = {}

    def options(self, client: str, settings: dict[str, Any] | None = None) -> WebUIOptions:
        """A client's options, changed by the settings of a request."""
        return self._chosen.get(client, WebUIOptions(self.models[0])).with_settings(settings or {}, self.models)

    def choose(self, client: str, settings: dict[str, Any]) -> None:
        """From now on."""
        options = self.options(client, settings)
        self._chosen.pop(client, None)
        self._chosen[client] = options
        while len(self._chosen) > self.KEPT:
            del self._chosen[next(iter(self._chosen))]
