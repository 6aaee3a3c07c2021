"""The tabs of the page, a file each: a closed table. A tab is a module with `build(page)`, which fills the tab.

`page` (`gen.ui.page.Page`) has the studio, the settings, and says what happens; a tab of its own state keeps it itself.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TabRow:
    """name: in the address and in tests; label, icon (of Material Icons): what is shown; module: of `gen.ui.tabs`."""

    name: str
    label: str
    icon: str
    module: str


TABS = (
    TabRow("draw", "Draw", "brush", "draw"),
    TabRow("edit", "Edit", "edit", "edit"),
    TabRow("compare", "Compare", "grid_on", "sweep"),
    TabRow("teach", "Teach", "school", "train"),
    TabRow("methods", "Methods", "functions", "methods"),
    TabRow("gallery", "Gallery", "grid_view", "gallery"),
)
