"""The tab "Edit": a picture that is painted on, extended, enlarged or restored, and regions with prompts of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nicegui import run, ui

from gen.calls.call import Call
from gen.calls.errors import sentence
from gen.ui import dialogs
from gen.ui.checks import FieldError
from gen.ui.code_dialog import part_of, show_code
from gen.ui.edit_forms import build_form
from gen.ui.edits import MODES, SIDES, EditSettings
from gen.ui.fields import FieldSet
from gen.ui.job_view import JobView, primary
from gen.ui.masks import mask_png, size_of
from gen.ui.page import Page
from gen.ui.painter import BRUSH, COLOURS, LARGEST, SMALLEST, PaintCanvas
from gen.ui.pick import PicturePick

TILE = 128  # pixels of a panorama's middle, where the model's own size is not known yet


def build(page: Page) -> None:
    """Fill the tab."""
    ui.add_head_html('<link rel="stylesheet" href="/page/editor.css">')
    EditTab(page)


class EditTab:
    """The tab of one page."""

    painter: PaintCanvas

    def __init__(self, page: Page):
        self.page, self.settings = page, EditSettings()
        self.own = FieldSet(page, "edit", self.settings)
        self.modes: dict[str, Any] = {}
        with ui.element("main").classes("fs-draw fs-edit"):
            with ui.element("section").classes("fs-prompt").props('aria-label="What to do"'):
                self._build_head()
            with ui.element("section").classes("fs-settings").props('aria-label="Settings of the edit"') as self.form:
                pass
            with ui.element("section").classes("fs-stage").props('aria-label="The picture that is edited"'):
                self._build_canvas()
            with ui.element("aside").classes("fs-side").props('aria-label="Result"'):
                self._build_result()
        page.on("edit", lambda name: ui.timer(0, lambda: self._edit_picture(name), once=True))
        self.to_mode(self.settings.mode)

    # ---- parts ----

    def _build_head(self) -> None:
        with ui.element("div").classes("fs-modes").props('role="group" aria-label="What to do"'):
            for name, (label, *_) in MODES.items():
                button = ui.button(label, on_click=lambda name=name: self.to_mode(name), color=None)
                self.modes[name] = button.props(f'flat dense data-mode-button="{name}"')
        self.about = ui.label("").classes("fs-about")
        self.prompt = self.own.text("prompt", "Prompt", rows=2)
        self.negative = self.own.text("negative", "Not in the picture")
        primary("Draw", "draw-edit", self.draw)
        with ui.element("div").classes("fs-row"):
            ui.label("Sampler, guidance, seed and LoRAs are those of the tab Draw.").classes("fs-hint").style(
                "text-align: left"
            )
            code = ui.button("As code", icon="code", on_click=self.show_code, color=None).classes("fs-fixed")
            code.props('flat dense size=sm data-action="code-edit"')

    def _build_canvas(self) -> None:
        with ui.element("div").classes("fs-pick") as self.pick_row:
            self.pick = PicturePick(self.page, "edit", self.take)
        with ui.element("div").classes("fs-tools").props('role="toolbar" aria-label="Painting"') as self.tools:
            self.tool_buttons = {
                name: self._tool(label, icon, f"tool-{name}", lambda name=name: self.use_tool(name))
                for name, label, icon in (
                    ("brush", "Brush", "brush"),
                    ("erase", "Erase", "auto_fix_normal"),
                    ("box", "Box", "crop_din"),
                )
            }
            ui.label("Size").classes("fs-hint")
            self.size = ui.slider(
                min=SMALLEST, max=160, value=BRUSH, on_change=lambda event: self.painter.set_brush(event.value)
            )
            self.size.props('label dense aria-label="Size of the brush, also by [ and ]" data-field="edit.brush"')
            for label, icon, method in (
                ("Undo", "undo", "undo"),
                ("Redo", "redo", "redo"),
                ("Invert", "invert_colors", "invert"),
                ("Clear", "layers_clear", "clear"),
            ):
                self._tool(label, icon, method, lambda method=method: self.painter.run_method(method))
        self.painter = PaintCanvas(
            "The picture. Drag to paint; arrow keys move the brush, Space paints, [ and ] change its size."
        )
        self.painter.on("brush", lambda: self.size.set_value(min(self.painter.size, LARGEST)))
        self.painter.on("tool", lambda event: self.use_tool(event.args))
        self.painter.on("extended", lambda event: self._extended(event.args))
        self.painter.on("painted", lambda event: self._painted(event.args))
        self.said = ui.label("").classes("fs-about").props('role="status" data-painted')

    def _tool(self, label: str, icon: str, action: str, do: Any) -> Any:
        with ui.button(icon=icon, on_click=do, color=None) as button:
            button.props(f'flat dense data-action="{action}"')
            button.props["aria-label"] = label
            ui.tooltip(label)
        return button

    def _build_result(self) -> None:
        ui.html("Result", tag="h2", sanitize=False).classes("fs-title")
        self.view = JobView(self.page, "edit", "What is drawn appears here.", lambda _: self.after.set_visibility(True))
        with ui.element("div").classes("fs-actions") as self.after:
            for label, icon, action, do in (
                ("Edit this", "edit", "edit-result", lambda: self.pick.take_name(self.view.shown)),
                ("Details", "info", "details-result", lambda: dialogs.detail(self.page, self.view.shown)),
            ):
                ui.button(label, icon=icon, on_click=do, color=None).props(f'flat dense size=13px data-action="{action}"')
        self.after.set_visibility(False)

    # ---- what is chosen ----

    def to_mode(self, name: str) -> None:
        """Another thing to do."""
        self.settings.mode = name
        for other, button in self.modes.items():
            button.props(f'aria-pressed="{"true" if other == name else "false"}"')
        self.about.set_text(MODES[name][1])
        self.prompt.props["label"] = {
            "regions": "Background",
            "panorama": "Prompt, or several: a line each",
            "outpaint": "What is around it",
        }.get(name, "Prompt")
        self.prompt.update()
        self.form.clear()
        with self.form:
            build_form(self)
        self.use_tool("box" if name == "regions" else "brush")
        self.show()

    def use_tool(self, name: str) -> None:
        """Brush, eraser or box."""
        self.painter.show(tool=name)
        for other, button in self.tool_buttons.items():
            button.props(f'aria-pressed="{"true" if other == name else "false"}"')

    def show(self) -> None:
        """The canvas as the settings have it."""
        one, mode = self.settings, self.settings.mode
        on_sheet = mode == "panorama" or (mode == "regions" and not one.from_picture)
        src = "" if on_sheet or not one.image else f"/given/{quote(Path(one.image).name)}"
        kind = "mask" if one.needs_mask else {"regions": "mask" if src else "sheet", "outpaint": "extend"}.get(mode, "view")
        width, height = (one.width or 256, one.height or 256) if mode == "regions" else (0, 0)
        extend = {side: getattr(one, side) for side in SIDES}
        layers = [{"colour": COLOURS[1], "label": ""}]
        if mode == "panorama":
            kind, width, height = "extend", self.tile, self.tile
            wide, tall = one.width or 4 * self.tile, one.height or self.tile
            extend = {"left": 0, "right": max(wide - width, 0), "top": 0, "bottom": max(tall - height, 0)}
        if mode == "regions":
            layers = [
                {"colour": COLOURS[i % len(COLOURS)], "label": region.prompt or f"region {i + 1}"}
                for i, region in enumerate(one.regions)
            ]
        if not any(row is not None for row in layers) or mode != "regions":
            self.painter.show(active=0)
        self.painter.show(src=src, mode=kind, width=width, height=height, layers=layers, extend=extend)
        self.tools.set_visibility(kind in ("mask", "sheet"))
        self.pick_row.set_visibility(not on_sheet)
        self.said.set_text("" if src or on_sheet else "Choose a picture to begin with.")

    @property
    def tile(self) -> int:
        """Pixels of what the model draws by itself."""
        warm = self.page.studio.warm
        return warm.get("default").config.sample_size if warm.is_open("default") else TILE

    def take(self, file: Path) -> None:
        """Work on another picture."""
        self.settings.image, self.settings.size = str(file), size_of(file)
        self.own.right()
        self.show()

    async def _edit_picture(self, name: str) -> None:
        if MODES[self.settings.mode][2] is False:
            self.to_mode("inpaint")
        await self.pick.take_name(name)

    def _extended(self, margins: dict[str, Any]) -> None:
        whole = {side: int(margins.get(side, 0)) for side in SIDES}
        if self.settings.mode == "panorama":
            self.own.set("width", self.tile + whole["left"] + whole["right"])
            self.own.set("height", self.tile + whole["top"] + whole["bottom"])
        else:
            for side, by in whole.items():
                self.own.set(side, by)
        self.show()

    def _painted(self, told: dict[str, Any]) -> None:
        share = f"{float(told.get('share', 0)):.0%}"
        self.said.set_text(f"{share} of the picture is {'this region' if self.settings.mode == 'regions' else 'made anew'}.")
        self.own.right()

    # ---- drawing ----

    async def call(self) -> Call | None:
        """What is set, as a call; None where it cannot be, which is then said."""
        self.own.right()
        page = self.page
        if (base := page.call_of_draw()) is None:
            return None
        try:
            if self.settings.needs_mask or self.settings.mode == "regions":
                await self._read_painted()
            return self.settings.to_call(base)
        except FieldError as error:
            self.own.wrong(error.field, str(error))
        except Exception as error:
            page.say(sentence(error), "negative")
        return None

    async def _read_painted(self) -> None:
        one, keep = self.settings, self.page.studio.gallery.keep_given
        if one.mode != "regions" and not one.image:
            return
        layers = await self.painter.layers()
        if one.mode != "regions":
            painted = layers[0] if layers else None
            one.mask = "" if painted is None else str(await run.io_bound(keep, mask_png(painted, one.size)))
            return
        for number, painted in enumerate(layers[: len(one.regions)]):
            mask = "" if painted is None or painted.png is None else str(await run.io_bound(keep, painted.png))
            one.regions[number] = replace(one.regions[number], box=None if painted is None else painted.box, mask=mask)

    async def draw(self) -> None:
        """Put what is set into the queue."""
        call, page = await self.call(), self.page
        if call is None:
            return
        try:
            label = self.settings.prompt or " | ".join(one.prompt for one in self.settings.regions if one.prompt)
            job = page.studio.submit(
                call, f"{MODES[self.settings.mode][0]}: {label or 'without a prompt'}", page.settings.kind()
            )
            self.view.follow(page.begun(job, self.own))
        except ValueError as error:
            page.say(str(error), "negative")

    async def show_code(self) -> None:
        """What is set, as Python and as a command line."""
        call = await self.call()
        if call is not None:
            part = part_of(self.page, "What is set on this tab", self.page.studio.settled(call), kind=self.page.settings.kind())
            show_code(self.page, [part])
