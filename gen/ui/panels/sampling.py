"""The sampler, its schedule and their options, and the cache."""

from __future__ import annotations

from gen.ui.fields import choices_of, other_names
from gen.ui.forms import Catalogue
from gen.ui.page import Page
from gen.ui.panels.frame import method_options, once_ready

TITLE = "Sampler"


def build(page: Page) -> None:
    """The section's fields."""

    def fill(catalogue: Catalogue) -> None:
        sampler = page.own.choice("sampler", "Sampler", choices_of(catalogue.samplers), also=other_names(catalogue.samplers))
        method_options(page, "sampler_options", (sampler,))
        schedule = page.own.choice(
            "schedule", "Schedule", choices_of(catalogue.schedules), also=other_names(catalogue.schedules)
        )
        method_options(page, "schedule_options", (schedule,))
        caches = page.own.choice("caches", "Cache", {name: name for name in catalogue.caches}, several=True)
        method_options(page, "cache_options", (caches,))
        page.own.number("at_once", "Pictures at once", "as many as fit")

    once_ready(page, fill)
