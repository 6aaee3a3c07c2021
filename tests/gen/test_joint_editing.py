"""Editors in our own networks of text and patches: what they make of pictures is what diffusers' networks make of them."""

from __future__ import annotations

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

from gen.generator import Generator
from gen.nn.backbones.editing import side_by_side
from tests.gen.test_bridge_editing import mask, picture

CALL = {"num_inference_steps": 2, "seed": 3, "height": 32, "width": 48, "output_type": "latent", "progress": False}
ONE, TWO = [picture(90, 50)], [picture(90, 50), picture(40, 60)]
HOLE = mask().resize((90, 50))
# pipeline and its options, then the calls that are compared
EDITORS = {
    "flux_kontext": ({}, [{"image": ONE}, {"image": TWO}, {}, {"image": ONE, "strength": 0.6, "mask": HOLE}]),
    "flux_fill": ({}, [{"image": ONE, "mask": HOLE}]),
    "qwen_edit": ({}, [{"image": ONE}, {}]),
    "qwen_edit_plus": ({"plus": True}, [{"image": TWO}]),
    "qwen_edit_2511": ({"plus": True, "zero_cond_t": True}, [{"image": TWO}, {}]),
}


@pytest.fixture
def both(bridged, small, smaller):
    """name -> (diffusers' pipeline, our generator on its network, one on our own network)."""

    def open_both(name: str):
        options = EDITORS[name][0]
        kind = "qwen_edit" if name.startswith("qwen") else name
        pipeline, theirs = bridged(kind, **options)
        _, mine = bridged(kind, native=True, **options)
        for generator in (theirs, mine) if kind == "qwen_edit" else ():
            smaller(generator)
        return pipeline, theirs, mine

    return open_both


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", EDITORS)
def test_the_same_edits(both, name):
    """1e-5 in latents, with a negative prompt too; a cache of blocks that never skips changes nothing."""
    _, theirs, mine = both(name)
    assert not getattr(mine.network, "bridged", False)
    found = []
    for asked in EDITORS[name][1]:
        for negative in ({}, {"negative_prompt": "blurry", "guidance": "cfg", "guidance_scale": 3.0}):
            found.append(mine("make it red", **CALL, **asked, **negative).images)
            reference = theirs("make it red", **CALL, **asked, **negative).images
            torch.testing.assert_close(found[-1], reference, atol=1e-5, rtol=1e-5)
    for other in found[2::2]:
        assert (other - found[0]).abs().max() > 1e-3
    first = EDITORS[name][1][0]
    never = mine("make it red", **CALL, **first, cache="first_block", cache_options={"threshold": 1e-9}).images
    assert torch.equal(never, found[0])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["flux_kontext", "qwen_edit"])
def test_guidance_inside_of_attention_beside_edits(both, name):
    """NAG as in diffusers' network, which leads the pictures' patches too; perturbed attention, which it has no place for."""
    _, theirs, mine = both(name)
    nag = {"guidance": "nag", "negative_prompt": "blurry", "guidance_scale": 3.0}
    reference = theirs("make it red", **CALL, image=ONE, **nag).images
    torch.testing.assert_close(mine("make it red", **CALL, image=ONE, **nag).images, reference, atol=1e-5, rtol=1e-5)
    plain = mine("make it red", **CALL, image=ONE).images
    for guidance in ("pag", "seg"):
        made = mine("make it red", **CALL, image=ONE, guidance=guidance, guidance_options={"layers": (0,)}).images
        assert made.isfinite().all() and (made - plain).abs().max() > 1e-4


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["flux_kontext", "flux_fill", "qwen_edit_2511"])
def test_saved_and_opened_again(both, tmp_path, name):
    """As our folder, whose config says what it reads, and as a pipeline that diffusers opens."""
    pipeline, _, mine = both(name)
    asked = EDITORS[name][1][0]
    expected = mine("make it red", **CALL, **asked).images
    theirs = mine.save_pretrained(tmp_path / "theirs", format="diffusers")
    opened, info = type(pipeline.transformer).from_pretrained(theirs / "transformer", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    config = dict(opened.config)
    assert config["in_channels"] == pipeline.transformer.config["in_channels"]
    if isinstance(opened, QwenImageTransformer2DModel):
        assert config["zero_cond_t"]
    again = Generator.from_pretrained(theirs, native=True, device="cpu", dtype="float32")
    if hasattr(mine.text_encoder, "chat"):
        again.text_encoder.chat = mine.text_encoder.chat
    assert torch.equal(again("make it red", **CALL, **asked).images, expected)


def test_what_an_editor_cannot_do_is_a_sentence(both):
    _, _, fill = both("flux_fill")
    with pytest.raises(ValueError, match="fills in what a mask opens; give it a picture as image and the mask as mask"):
        fill("a cat", **CALL)
    _, _, kontext = both("flux_kontext")
    with pytest.raises(ValueError, match="5 images were given, and the model 'flux_kontext' takes at most 4 pictures"):
        kontext("a cat", image=[picture()] * 5, **CALL)
    with pytest.raises(ValueError, match=r"a network of our own that takes no ControlNet"):
        kontext("a cat", control=torch.rand(3, 32, 48), controlnet=".", **CALL)


def test_pictures_stand_side_by_side():
    """Beside a tall one, below a wide one, and none covers another."""
    assert side_by_side([(4, 6)]) == [(0, 0)]
    assert side_by_side([(4, 6), (4, 6)]) == [(0, 0), (4, 0)]
    assert side_by_side([(6, 4), (6, 4)]) == [(0, 0), (0, 4)]
    sides = [(4, 6), (4, 6), (8, 3), (2, 2)]
    cells = [
        (row + i, column + j)
        for (row, column), (rows, columns) in zip(side_by_side(sides), sides, strict=True)
        for i in range(rows)
        for j in range(columns)
    ]
    assert len(set(cells)) == len(cells)
