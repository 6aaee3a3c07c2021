"""What the tab "Edit" says as a call, and what a browser may say is painted; no page."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from gen.calls.call import AdapterUse, Call
from gen.calls.command import as_arguments
from gen.calls.keywords import files_in
from gen.ui.checks import FieldError
from gen.ui.edits import MODES, EditSettings, RegionSettings
from gen.ui.gallery import Gallery
from gen.ui.masks import mask_png, size_of
from gen.ui.models import AUTOMATIC
from gen.ui.painter import MOST_PAINTED, PaintedLayer, read_layers

BASE = Call(
    {"prompt": "of Draw", "seed": 3, "sampler": "euler", "image": "of-draw.png", "width": 64, "batch_size": 1},
    adapters=(AdapterUse("a.safetensors", 0.5),),
    model=AUTOMATIC,
)


def settings(mode: str, **values) -> EditSettings:
    return EditSettings(mode=mode, **{"prompt": "a cat", "image": "photo.png", "size": (128, 96), **values})


EXPECTED = {
    "inpaint": (
        settings("inpaint", mask="mask.png"),
        "image",
        {"prompt": "a cat", "image": "photo.png", "mask": "mask.png", "batch_size": 1},
    ),
    "regions": (
        settings(
            "regions", regions=[RegionSettings("a dog", (0, 8, 16, 24)), RegionSettings(), RegionSettings("b", None, "m.png")]
        ),
        "layout",
        {
            "layout": {
                "width": 256,
                "height": 256,
                "regions": [{"prompt": "a dog", "box": [0, 8, 16, 24]}, {"prompt": "b", "mask": "m.png"}],
                "background": "a cat",
            }
        },
    ),
    "outpaint": (settings("outpaint", right=64), "outpaint", {"prompt": "a cat", "image": "photo.png", "right": 64}),
    "panorama": (
        settings("panorama", prompt="a cat\n\na dog", width=512, height=128, circular="both"),
        "panorama",
        {"prompt": ["a cat", "a dog"], "width": 512, "height": 128, "circular": "both"},
    ),
    "upscale": (settings("upscale", scale=3.0), "upscale", {"prompt": "a cat", "image": "photo.png", "scale": 3.0}),
    "restore": (
        settings("restore", task="deblur", radius=1.5),
        "restore",
        {"prompt": "a cat", "image": "photo.png", "task": "deblur", "radius": 1.5},
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_a_call_under_the_settings_of_draw(mode):
    one, method, arguments = EXPECTED[mode]
    call = one.to_call(BASE)
    assert call.method == method
    assert call.arguments == {"seed": 3, "sampler": "euler", **arguments}  # and neither the picture nor the size of Draw
    assert call.adapters == BASE.adapters and call.model == "default"


@pytest.mark.parametrize(
    ("one", "field"),
    [
        (settings("inpaint", image=""), "image"),
        (settings("inpaint", strength=1.5), "strength"),
        (settings("regions"), "region-0"),
        (settings("regions", regions=[RegionSettings("", (0, 0, 8, 8))]), "region-0"),
        (settings("outpaint"), "left"),
        (settings("outpaint", left=8.5), "left"),
        (settings("panorama", width=256), "height"),
        (settings("panorama", prompt=" \n"), "prompt"),
        (settings("upscale", scale=99), "scale"),
        (settings("restore", task="inpaint"), "mask"),
        (settings("none"), "mode"),
    ],
)
def test_what_is_wrong_is_said_of_its_field(one, field):
    with pytest.raises(FieldError) as wrong:
        one.to_call(BASE)
    assert wrong.value.field == field and str(wrong.value).endswith(".")


def test_a_layout_of_masks_names_its_files_and_one_of_boxes_is_a_command_line():
    call = EXPECTED["regions"][0].to_call(BASE)
    assert [path.name for path in files_in(call.arguments)] == ["m.png"]
    words = as_arguments(call)
    assert words[0] == "layout" and json.loads(words[1]) == call.arguments["layout"] and "--seed=3" in words
    with pytest.raises(ValueError, match="no option for image"):
        as_arguments(call.with_arguments(image="photo.png"))
    with pytest.raises(ValueError, match="no option for negative_prompt"):
        as_arguments(EXPECTED["restore"][0].to_call(BASE).with_arguments(negative_prompt="blurry"))


def test_the_command_line_reads_the_layout_itself():
    from gen.tasks.layout.cli import read_spec

    call = EXPECTED["regions"][0].to_call(BASE)
    spec = read_spec(as_arguments(call)[1], {}, None)
    assert [region.prompt for region in spec.regions] == ["a dog", "b"] and spec.regions[0].box == (0, 8, 16, 24)
    assert read_spec('{"regions": [{"prompt": "a", "box": [0, 0, 1, 1]}]}', {}, "the rest").background == "the rest"
    for text, words in (("{", "not JSON"), ('{"regions": 3}', "not valid"), ("{}", "not valid")):
        with pytest.raises(ValueError, match=words):
            read_spec(text, {}, None)


def data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_painted_layers_are_boxes_and_pictures_and_nothing_else(tmp_path):
    box, empty, drawn = read_layers([{"box": [2, 3, 4.2, 5]}, None, {"png": data_url(Image.new("L", (16, 8), 255))}])
    assert box == PaintedLayer(box=(2, 3, 4, 5)) and empty is None and drawn is not None and drawn.png is not None
    mask = np.asarray(Image.open(io.BytesIO(mask_png(box, (16, 12)))))
    assert mask.shape == (12, 16) and (mask[3:8, 2:6] == 255).all() and mask.sum() == 255 * 20
    kept = Gallery(tmp_path).keep_given(mask_png(drawn, (16, 8)))
    assert size_of(kept) == (16, 8) and Gallery(tmp_path).given(kept.name) == kept
    for bad in ("text", 3, None, [3], [{}], [{"box": [1, 2]}], [{"png": "data:text/html;base64,AAAA"}], [{"png": "../../x"}]):
        with pytest.raises(ValueError):
            read_layers(bad)
    with pytest.raises(ValueError, match="intricate"):
        read_layers([{"png": "a" * (MOST_PAINTED + 1)}])


def test_only_given_pictures_are_served(tmp_path):
    gallery = Gallery(tmp_path)
    (tmp_path / "secret.png").write_bytes(b"")
    for name in ("../secret.png", "secret.png", "a" * 64 + ".png", "", "/etc/passwd"):
        with pytest.raises(ValueError, match="was given"):
            gallery.given(name)
