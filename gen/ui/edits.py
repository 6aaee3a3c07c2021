"""What is set on the tab "Edit": a picture and what is done with it, as a call. Nothing here knows the page."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from gen.calls.call import Call
from gen.ui.checks import FieldError, number_in, whole_in
from gen.ui.models import AUTOMATIC

# name -> (label, what it does, does it begin with a picture)
MODES: dict[str, tuple[str, str, bool]] = {
    "inpaint": ("Inpaint", "Paint over what is made anew; the rest stays to the pixel. Paint nothing, and all changes.", True),
    "regions": ("Regions", "Drag a box, or paint, for each prompt. The background is what no region covers.", False),
    "outpaint": ("Extend", "Drag the borders outwards; the picture itself stays to the pixel.", True),
    "panorama": ("Panorama", "A picture wider or taller than the model's own, from windows that overlap.", False),
    "upscale": ("Enlarge", "Enlarge the picture, then draw its detail anew in windows.", True),
    "restore": ("Restore", "Find pictures that explain a damaged one: a hole, a small, grey or blurred picture.", True),
}
TASKS = {
    "superres": "enlarge a small one",
    "inpaint": "fill what is painted over",
    "colorize": "colour a grey one",
    "deblur": "sharpen a blurred one",
}
CIRCULAR = {"": "no", "horizontal": "left to right", "vertical": "top to bottom", "both": "both ways"}
SIDES = ("left", "right", "top", "bottom")
_OF_DRAWING = (  # not taken over
    *("image", "strength", "mask", "width", "height", "layout", "prompt", "negative_prompt", "variation_seed"),
    *("variation_strength", "hires", "hires_strength", "hires_steps", "hires_upscaler", "hires_window", "transparent"),
)


@dataclass
class RegionSettings:
    """A region: its prompt, and where it is: a box in pixels, or the file of a mask."""

    prompt: str = ""
    box: tuple[int, int, int, int] | None = None
    mask: str = ""


@dataclass
class EditSettings:
    """None and "" are left to the method. width, height: of regions and panoramas. size: of the picture."""

    mode: str = "inpaint"
    prompt: str = ""
    negative: str = ""
    image: str = ""
    size: tuple[int, int] = (0, 0)
    mask: str = ""
    strength: float | None = None
    regions: list[RegionSettings] = field(default_factory=lambda: [RegionSettings(), RegionSettings()])
    from_picture: bool = False
    soft: float | None = None
    bootstrap: float | None = None
    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0
    width: int | None = None
    height: int | None = None
    circular: str = ""
    stride: int | None = None
    recurrence: int | None = None
    scale: float | None = None
    noise_level: float | None = None
    task: str = "superres"
    factor: int | None = None
    radius: float | None = None
    simulate: bool = False

    @property
    def needs_mask(self) -> bool:
        """Is the picture painted on?"""
        return self.mode == "inpaint" or (self.mode == "restore" and self.task == "inpaint")

    def to_call(self, base: Call) -> Call:
        """The call; FieldError names the field that holds what cannot be.

        base: what the tab "Draw" says of sampler, guidance, LoRAs, seed and the like.
        """
        if self.mode not in MODES:
            raise FieldError("mode", f"There is no way to edit called {self.mode!r:.40}.")
        if MODES[self.mode][2] and not self.image:
            raise FieldError("image", "Choose a picture first: drop one, or take one of the gallery.")
        arguments = {name: value for name, value in base.arguments.items() if name not in _OF_DRAWING}
        arguments |= {"prompt": self.prompt, "negative_prompt": self.negative or None}
        method = {"inpaint": "image", "regions": "layout"}.get(self.mode, self.mode)
        if method != "image":  # whose pictures go through the network in windows, or beside their regions
            arguments.pop("batch_size", None)
        own = getattr(self, f"_{self.mode}")()
        call = replace(base, method=method, arguments={**arguments, **own})
        return replace(call, model="default") if call.model == AUTOMATIC else call  # the student draws nothing but pictures

    # ---- the arguments of each mode ----

    def _inpaint(self) -> dict[str, Any]:
        return {"image": self.image, "mask": self.mask or None, "strength": self._number("strength", 0, 1)}

    def _regions(self) -> dict[str, Any]:
        width, height = self._whole("width", 8, 16_384) or 256, self._whole("height", 8, 16_384) or 256
        if self.from_picture and self.image:
            width, height = self.size
        regions = []
        for number, region in enumerate(self.regions):
            if region.box is None and not region.mask:
                continue
            if not region.prompt.strip():
                raise FieldError(f"region-{number}", "Say what this region shows.")
            place = {"mask": region.mask} if region.mask else {"box": list(region.box or ())}
            regions.append({"prompt": region.prompt, **place})
        if not regions:
            raise FieldError("region-0", "Choose a region, and drag a box on the picture for it.")
        layout: dict[str, Any] = {"width": width, "height": height, "regions": regions}
        if self.prompt.strip():
            layout["background"] = self.prompt
        layout |= {"soft": soft} if (soft := self._number("soft", 0, 1024)) else {}
        layout |= {"bootstrap": low} if (low := self._number("bootstrap", -20, 20)) is not None else {}
        begun = {"image": self.image, "strength": self._number("strength", 0, 1)} if self.from_picture and self.image else {}
        return {"prompt": None, "layout": layout, **begun}

    def _outpaint(self) -> dict[str, Any]:
        sides = {side: self._whole(side, 0, 4096) or 0 for side in SIDES}
        if not any(sides.values()):
            raise FieldError("left", "Drag a border outwards, or say by how many pixels.")
        own = {"image": self.image, "recurrence": self._whole("recurrence", 1, 100)}
        return {**own, **{side: by for side, by in sides.items() if by}, **self._windows()}

    def _panorama(self) -> dict[str, Any]:
        width, height = self._whole("width", 8, 16_384), self._whole("height", 8, 16_384)
        if (width is None) != (height is None):
            raise FieldError("width" if width is None else "height", "Give both sides, or neither.")
        prompts = [line.strip() for line in self.prompt.splitlines() if line.strip()]
        if not prompts:
            raise FieldError("prompt", "Say what the panorama shows; lines beside one another are spread along it.")
        own = {"prompt": prompts if len(prompts) > 1 else prompts[0], "width": width, "height": height}
        return {**own, "circular": self.circular or None, **self._windows()}

    def _upscale(self) -> dict[str, Any]:
        return {
            "image": self.image,
            "scale": self._number("scale", 1, 16),
            "noise_level": self._number("noise_level", 0, 1),
            "strength": self._number("strength", 0, 1),
            **self._windows(),
        }

    def _restore(self) -> dict[str, Any]:
        own: dict[str, Any] = {"image": self.image, "task": self.task, "simulate": self.simulate or None}
        if self.task == "inpaint":
            if not self.mask:
                raise FieldError("mask", "Paint over what is to be filled.")
            own["mask"] = self.mask
        elif self.task == "superres":
            own["factor"] = self._whole("factor", 2, 64)
        elif self.task == "deblur":
            own["radius"] = self._number("radius", 0.1, 1000)
        return own

    def _windows(self) -> dict[str, Any]:
        return {"stride": self._whole("stride", 1, 16_384)}

    # ---- fields ----

    def _whole(self, name: str, low: int, high: int) -> int | None:
        return whole_in(name, getattr(self, name), low, high)

    def _number(self, name: str, low: float, high: float) -> float | None:
        return number_in(name, getattr(self, name), low, high)
