"""`fewstep models`: the published sizes of the backbones and what they cost."""

from __future__ import annotations

from gen.cli.show import table

NOTE = (
    "Operations of one evaluation of one image, a multiply-add counted as two; fresh weights come from "
    "gen.nn.backbones.presets.build_preset(name)."
)
TAKES = {"num_classes": "labels", "text_dim": "text", "size_conditions": "size"}


def models() -> str:
    from gen.nn.backbones.cost import preset_cost
    from gen.nn.backbones.presets import PRESETS

    rows = []
    for name, row in PRESETS.items():
        cost = preset_cost(name)
        takes = [text for key, text in TAKES.items() if key in row]
        image = f"{row['channels']}x{row['size']}x{row['size']}"
        rows.append((name, image, ", ".join(takes), f"{cost.parameters / 1e6:.1f} M", f"{cost.flops / 1e9:.2f}"))
    return table(("model", "image", "takes", "parameters", "GFLOPs"), rows) + f"\n\n{NOTE}"
