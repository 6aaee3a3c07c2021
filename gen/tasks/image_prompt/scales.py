"""How strongly an image prompt acts: on its pictures, and by layer of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gen.io.validators import check_float
from samplers.lookup import nearest

MOST = 100.0
WAYS = {"down": "down_blocks", "up": "up_blocks"}
NAME = "ip_adapter_scale"


def by_layer(scale: Mapping[str, Any]) -> dict[str, float]:
    """Beginnings of layers' names -> factor, of numbers by way ("down", "mid", "up"), block ("block_0", ...) and place in it:
    the form of diffusers' `set_ip_adapter_scale`; of FLUX, of joint blocks ("block_0", ...) and of those of one stream
    ("single_0", ...). ValueError for what is not there."""
    flat: dict[str, float] = {}
    for way, inner in scale.items():
        if way == "mid":
            flat["mid_block."] = check_float(f"{NAME}['mid']", inner, -MOST, MOST)
        elif (number := str(way).removeprefix("block_")) != way and number.isdecimal():
            flat[f"transformer_blocks.{int(number)}."] = check_float(f"{NAME}[{way!r}]", inner, -MOST, MOST)
        elif (number := str(way).removeprefix("single_")) != way and number.isdecimal():
            flat[f"single_transformer_blocks.{int(number)}."] = check_float(f"{NAME}[{way!r}]", inner, -MOST, MOST)
        elif way not in WAYS:
            raise ValueError(f"{NAME} names {way!r:.40}; its parts are down, mid, up, of FLUX block_0, ... and single_0, ...")
        elif not isinstance(inner, Mapping):
            flat[f"{WAYS[way]}."] = check_float(f"{NAME}[{way!r}]", inner, -MOST, MOST)
        else:
            for block, values in inner.items():
                number = str(block).removeprefix("block_")
                if not number.isdecimal():
                    raise ValueError(f"{NAME}[{way!r}] names {block!r:.40}; its blocks are block_0, block_1, ...")
                if isinstance(values, Sequence) and not isinstance(values, str):
                    for place, value in enumerate(values):
                        checked = check_float(f"{NAME}[{way!r}][{block!r}]", value, -MOST, MOST)
                        flat[f"{WAYS[way]}.{int(number)}.attentions.{place}."] = checked
                else:
                    checked = check_float(f"{NAME}[{way!r}][{block!r}]", values, -MOST, MOST)
                    flat[f"{WAYS[way]}.{int(number)}."] = checked
    return flat


def factors(layers: Mapping[str, float], names: Sequence[str]) -> tuple[float, ...]:
    """One for each of the layers by their names, 0 for what none of `layers` begins. ValueError for one that begins none."""
    for beginning in layers:
        if not any(name.startswith(beginning) for name in names):
            known = sorted({name.partition(".transformer_blocks.")[0] + "." for name in names})
            near = nearest(beginning, known)
            raise ValueError(
                f"{NAME} names {beginning.rstrip('.')!r:.100}, where this network has no attention to text; it has "
                f"{', '.join(one.rstrip('.') for one in known)}" + (f" (did you mean {near.rstrip('.')!r}?)." if near else ".")
            )
    return tuple(next((layers[one] for one in layers if name.startswith(one)), 0.0) for name in names)


def by_picture(scale: Any, count: int) -> tuple[float, ...]:
    """One number, or one for each of `count` pictures."""
    if scale is None:
        return (1.0,)
    if isinstance(scale, Sequence) and not isinstance(scale, str):
        if len(scale) not in (1, count):
            raise ValueError(f"{NAME} has {len(scale)} numbers where an adapter has {count} pictures; give one, or {count}.")
        return tuple(check_float(NAME, one, -MOST, MOST) for one in scale)
    return (check_float(NAME, scale, -MOST, MOST),)
