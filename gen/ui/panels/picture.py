"""A picture to start from, one to follow through a ControlNet, and one to see through an IP-Adapter."""

from __future__ import annotations

from nicegui import ui

from gen.ui.given import PictureField
from gen.ui.page import Page

TITLE = "From a picture"
SET = {"control": ("control", "controlnet"), "image_prompt": ("ip_adapter", "ip_image")}
KINDS = {"control": "ControlNets", "image_prompt": "IP-Adapters"}


def build(page: Page) -> None:
    """The section's fields; those of ControlNets and IP-Adapters where some are among the models."""
    _given(page, "image", "A picture to start from")
    page.own.number("strength", "How much of it is made anew", "0.8", step=0.05)
    nets, adapters = page.studio.controlnets(), page.studio.ip_adapters()
    said = ui.label("").classes("fs-about").props("data-conditions")
    parts = {}
    if nets:
        with ui.element("div").classes("fs-form") as parts["control"]:
            page.own.choice("controlnet", "ControlNet", {"": "none", **{path: name for name, path in nets.items()}})
            _given(page, "control", "A picture to follow")
            page.own.number("control_weight", "How strongly", "1", step=0.1)
    if adapters:
        with ui.element("div").classes("fs-form") as parts["image_prompt"]:
            page.own.choice("ip_adapter", "IP-Adapter", {"": "none", **{path: name for name, path in adapters.items()}})
            _given(page, "ip_image", "A picture as a prompt")
            page.own.number("ip_scale", "How strongly", "1", step=0.1)

    missing = " and ".join(KINDS[one] for one in KINDS if one not in parts)
    where = "guide a model by a picture. They are listed here when they are among the models: `fewstep ui --models FOLDER`."
    absent = f"{missing} {where}" if missing else ""

    def show() -> None:
        """Of kinds that the model does not take, and of those that are not there, a sentence."""
        name = page.studio.models().get(page.settings.model, page.settings.model)
        refused = [one for one in parts if page.studio.takes(page.settings.model, one) is False]
        for one, part in parts.items():  # what is set stays in sight, or it could not be taken away
            part.set_visibility(one not in refused or any(getattr(page.settings, name) for name in SET[one]))
        words = " and ".join(KINDS[one] for one in refused)
        said.set_text(" ".join(filter(None, (f"The model {name!r} takes no {words}." if refused else "", absent))))
        said.set_visibility(bool(said.text))

    for event in ("settings", "ready", "pictures", "model"):
        page.on(event, show)
    show()


def _given(page: Page, name: str, label: str) -> None:
    field = PictureField(
        page, name, label, lambda: getattr(page.settings, name), lambda file: setattr(page.settings, name, file)
    )
    page.own.know(name, field)
    page.on("settings", field.show)
