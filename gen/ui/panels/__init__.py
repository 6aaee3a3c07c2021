"""The sections of settings on the tab "Draw", a file each: a closed table, in their order. Each has TITLE and `build(page)`."""

PANELS = ("basics", "sampling", "guidance", "adapters", "energy", "picture", "second")
