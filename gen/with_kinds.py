"""What a `Generator` makes beside a plain call: a picture restored, laid out by regions, or read in several ways."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen.io import validators as request

if TYPE_CHECKING:
    from gen.pipeline.output import Output

RESTORE_SCALE = 2.0  # of guidance, at most: more pulls a picture from its measurement, and seams and stains show


class WithKinds:
    """Calls with a kind of run (`gen.pipeline.task`) that has arguments of its own; all else is as in a call."""

    def restore(
        self: Any, image: Any, task: str, prompt: str | Sequence[str] | None = None, *, mask: Any = None, **call: Any
    ) -> Output:
        """Pictures that explain a damaged one. Their recipes replay, given the image (and mask) again.

        task: inpaint (mask: white is made anew, black stays, to the pixel), superres (image is a `factor`-th of the size, 4),
        colorize, deblur (a Gaussian blur of `radius` pixels, 2). image and mask as in a call. Options of all tasks: noise, the
        standard deviation of the picture's noise in [0, 1] (0.02); kind, how the posterior is approximated (exact, pigdm,
        projection; by default pigdm for a model of pixels, projection for one of latents), weight, spread and iterations of
        `samplers.guidance.Posterior`; simulate: the image is whole, and is damaged first. Other arguments are those of a call;
        guidance_scale is 2 at most where it is not given.
        """
        from gen.tasks.restore import COMMON, TASKS

        known = {*COMMON, *(name for options in TASKS.values() for name in options)}
        options = {name: call.pop(name) for name in list(call) if name in known}
        if call.get("strength") is not None:
            raise ValueError("A restoration takes no strength; leave it out, or give weight.")
        guidable = self.text_encoder is not None or self.classes
        if guidable and call.get("guidance_scale") is None and call.get("guidance") is None:
            call["guidance_scale"] = min(RESTORE_SCALE, self.config.defaults.guidance_scale)
        given = {"task": task, "image": image, "mask": mask, "options": options}
        return self(prompt, **call, _asked={"restoration": given})

    def layout(self: Any, layout: Any, **call: Any) -> Output:
        """Pictures with a prompt for every region: `layout` is a mapping (`gen.tasks.layout.LayoutSpec`), or the path of a
        YAML or
        JSON file of one. Their recipes replay without it. Other arguments are those of a call; height and width come from the
        layout where it has them, and what no region covers from its background."""
        from gen.tasks.layout import read_spec
        from gen.tasks.layout_file import read_layout

        spec = read_layout(layout) if isinstance(layout, str | Path) else read_spec(layout)
        for name, own in (("height", spec.height), ("width", spec.width)):
            if own is not None and call.setdefault(name, own) != own:
                raise ValueError(f"The layout has {name} {own}, and {name} {call[name]} is asked for; give one of them.")
        if self.text_encoder is not None:
            call.setdefault("prompt", spec.background)
        return self(**call, layout=spec)

    def ambiguous(
        self: Any,
        prompt: str,
        others: str | Sequence[str],
        view: str | Sequence[str] = "rotate180",
        *,
        pixels_from: float | None = None,
        **call: Any,
    ) -> Output:
        """Pictures of `prompt` that show `others` when they are seen as `view` says: one of `gen.tasks.views.VIEWS`, or one
        for each
        of several others. pixels_from: the log-SNR from which the views agree as decoded pictures rather than as latents
        (-1.5; lower is slower). Other arguments are those of a call, and recipes replay. latents that come back, or reach a
        callback, are those of the picture as it is, and of all views one after another."""
        from gen.tasks.views import check_pixels_from

        names = [view] if isinstance(view, str) else list(view)
        prompts = request.texts("others", others)
        subject = {"prompt": prompt} if self.text_encoder is not None else {"class_labels": prompt}
        return self(**subject, **call, _asked={"views": {"views": (prompts, names, check_pixels_from(pixels_from))}})
