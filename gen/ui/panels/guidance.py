"""How strongly a prompt guides, by which rule, and what goes around that rule."""

from __future__ import annotations

from nicegui import ui

from gen.ui.fields import choices_of
from gen.ui.forms import Catalogue
from gen.ui.page import Page
from gen.ui.panels.frame import method_options, once_ready

TITLE = "Guidance"


def build(page: Page) -> None:
    """The section's fields; rules once the registries are read."""
    page.own.number("scale", "Guidance scale", "model's", step=0.5)

    def fill(catalogue: Catalogue) -> None:
        rules = {name: one for name, one in catalogue.guidance.items() if one.group == "a rule"}
        others = {name: name for name, one in catalogue.guidance.items() if one.group != "a rule"}
        chosen = (
            page.own.choice("rule", "Rule", choices_of(rules)),
            page.own.choice("modifiers", "Around it", others, several=True),
        )
        method_options(page, "guidance_options", chosen)
        with ui.element("div").classes("fs-row"):
            page.own.number("interval_low", "From log-SNR", "lowest", step=0.5)
            page.own.number("interval_high", "To log-SNR", "highest", step=0.5)
        ui.label("Autoguidance needs a weaker model beside this one, which only a program gives it.").classes("fs-about")

    once_ready(page, fill)
