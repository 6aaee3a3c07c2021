"""The pictures of docs/ui.md that show the tabs Edit and Compare; `make_screenshots.py` calls it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def shoot_tabs(page: Any, keep: Callable[[Any, str], None], gallery: Path) -> None:
    """Use the tabs as a person does. gallery: a folder with pictures that the page has drawn."""
    field(page, "seed").fill("4")
    page.locator("[data-tab=edit]").click()
    with page.expect_file_chooser() as chooser:
        page.locator("[data-upload=edit] .q-uploader__header .q-btn").last.click()
    chooser.value.set_files(next(gallery.glob("a-house*.png")))
    shown(page)
    field(page, "edit.prompt").fill("a house with a red roof")
    drag(page, (0.2, 0.36), (0.5, 0.2), (0.8, 0.36), (0.5, 0.32), (0.25, 0.4), (0.75, 0.4))
    drawn(page)
    keep(page, "edit")

    page.locator("[data-mode-button=regions]").click()
    shown(page)
    for number, (prompt, box) in enumerate(
        (("a sun on a light blue background", (0, 0, 0.5, 0.5)), ("a white cloud on a light blue background", (0.5, 0, 1, 0.5)))
    ):
        page.locator(f"[data-region='{number}']").click()
        field(page, f"edit.region-{number}").fill(prompt)
        page.wait_for_timeout(500)
        drag(page, box[:2], box[2:])
    page.locator("[data-action=add-region]").click()
    field(page, "edit.region-2").fill("a house on a light blue background")
    page.wait_for_timeout(500)
    drag(page, (0, 0.5), (0.5, 1))
    field(page, "edit.prompt").fill("a green tree on a light blue background")
    drawn(page)
    keep(page, "regions")

    page.locator("[data-tab=compare]").click()
    field(page, "sweep.prompt").fill("a red heart")
    field(page, "sweep.across").fill("steps=2,4,8,20")
    field(page, "sweep.down").fill("sampler=euler,heun,dpmpp_2m")
    page.locator("[data-action=draw-sweep]").click()
    page.wait_for_function("document.querySelectorAll('.fs-cell img').length >= 8")
    page.wait_for_timeout(500)
    keep(page, "compare")
    page.wait_for_function("document.querySelectorAll('.fs-cell img').length === 12")


def field(page: Any, name: str) -> Any:
    return page.locator(f"[data-field='{name}']")


def shown(page: Any) -> None:
    page.wait_for_function("document.querySelector('.fs-paint canvas').style.visibility === 'visible'")
    page.wait_for_timeout(300)


def drawn(page: Any) -> None:
    """Until the tab has drawn another picture."""
    page.evaluate("window.before = document.querySelector('[data-result=edit]').alt")
    page.locator("[data-action=draw-edit]").click()
    page.wait_for_function(
        "(now => now.endsWith('.png') && now !== window.before)(document.querySelector('[data-result=edit]').alt)"
    )
    page.wait_for_timeout(700)


def drag(page: Any, *points: tuple[float, float]) -> None:
    """Over the canvas; points are shares of its sides."""
    box = page.locator(".fs-paint canvas").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=6)
    page.mouse.up()
