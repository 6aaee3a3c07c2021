"""Scenes of several concepts: things keep their pixels and their places, captions their order, and training reads the folder;
the measures fall where a concept is missing or is another's."""

from __future__ import annotations

import json
import random

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from customization.compose import main
from customization.data import make_data
from customization.scenes.composing import as_picture, compose, compose_all, plain
from customization.scenes.cutting import Cutout, SingleConcept, cut, cut_folder, named_folders
from customization.scenes.measures import Judge, cp_clip, crop, detect_by_judge, ti_clip
from customization.scenes.placing import RULES, caption_of, find_rule, fitted, read_scenes
from gen.generator import Generator
from gen.io.alpha import premultiply

RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def block(colour, height=8, width=8) -> torch.Tensor:
    """An opaque layer (1, 4, H, W) of one colour."""
    return torch.tensor([*colour, 1.0], dtype=torch.float64).view(1, 4, 1, 1).expand(1, 4, height, width)


def photo(path, colour, alpha=False) -> None:
    """A square of a colour in the middle of white, or of nothing."""
    picture = torch.ones(1, 4, 32, 32)
    picture[:, 3] = 0 if alpha else 1
    picture[:, :, 8:24, 12:20] = block(colour, 16, 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    as_picture(picture if alpha else picture[:, :3]).save(path)


def test_things_are_laid_over_what_was_painted():
    seen = []

    def paint(picture, hole, background, seed):
        seen.append((picture, hole, background, seed))
        return torch.full_like(picture, 0.25)

    layers = {"cat": block(RED), "dog": block(BLUE)}
    boxes = {"cat": (0.0, 0.0, 0.5, 0.5), "dog": (0.25, 0.25, 0.5, 0.5)}
    made = compose(layers, boxes, "on a beach", paint, height=16, width=16, seed=5)
    expected = torch.full((1, 3, 16, 16), 0.25, dtype=torch.float64)
    expected[:, :, :8, :8] = torch.tensor(RED).view(1, 3, 1, 1).double()
    expected[:, :, 4:12, 4:12] = torch.tensor(BLUE).view(1, 3, 1, 1).double()  # the later one is in front
    torch.testing.assert_close(made.picture, expected, rtol=0, atol=1e-12)
    assert made.caption == "a cat and a dog on a beach" and seen[0][2:] == ("on a beach", 5)
    assert torch.equal(seen[0][1], 1 - made.mask) and float(made.mask.sum()) == 2 * 64 - 16
    half = premultiply(torch.cat([block(RED)[:, :3], block(RED)[:, 3:] * 0.5], 1))
    blended = compose({"cat": half}, {"cat": (0, 0, 1, 1)}, "", paint, height=8, width=8, seed=0).picture
    assert torch.allclose(blended[0, :, 4, 4], torch.tensor([0.625, 0.125, 0.125]).double())


@pytest.mark.parametrize("rule", RULES)
def test_boxes_lie_inside_and_hardly_cover_one_another(rule):
    aspects, sizes = [0.5, 1.0, 2.0], [1.0, 0.5, 0.7]
    for seed in range(20):
        boxes = find_rule(rule)(aspects, sizes, random.Random(seed))
        for (left, top, wide, tall), aspect, size in zip(boxes, aspects, sizes, strict=True):
            assert min(left, top) >= -1e-9 and left + wide <= 1 + 1e-9 and top + tall <= 1 + 1e-9
            assert wide / tall == pytest.approx(aspect) and tall / boxes[0][3] == pytest.approx(size)
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
                tall = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
                assert max(wide, 0) * max(tall, 0) <= 0.15 * min(a[2] * a[3], b[2] * b[3]) + 1e-9
    assert fitted((0.0, 0.0, 1.0, 0.5), 1.0) == (0.25, 0.0, 0.5, 0.5)
    assert fitted((0.0, 0.0, 0.5, 1.0), 1.0) == (0.0, 0.5, 0.5, 0.5)


def test_captions_go_from_left_to_right():
    boxes = {"<zib>": (0.6, 0, 0.1, 0.1), "apple": (0.3, 0, 0.1, 0.1), "the sun": (0, 0, 0.2, 0.1)}
    assert caption_of(boxes, "in a garden") == "the sun, an apple and a <zib> in a garden"


def test_a_scene_is_a_function_of_its_seed_and_number():
    concepts = [
        SingleConcept(name, (Cutout("a", block(c, 8, 4)), Cutout("b", block(c, 4, 8)))) for name, c in (("x", RED), ("y", BLUE))
    ]

    def run(count):
        return list(compose_all(concepts, plain([RED]), count=count, height=16, width=16, flip=True, seed=3))

    few, many = run(2), run(3)
    assert all(torch.equal(a.picture, b.picture) and a.boxes == b.boxes for a, b in zip(few, many, strict=False))
    assert not torch.equal(many[0].picture, many[2].picture)


def test_where_a_thing_is_cut_out_of(tmp_path):
    photo(tmp_path / "cat" / "a.png", RED, alpha=True)
    (view,) = cut_folder("cat", tmp_path / "cat")
    assert view.layer.shape == (1, 4, 16, 8) and torch.allclose(view.layer, block(RED, 16, 8))
    photo(tmp_path / "dog" / "b.png", BLUE)
    path = tmp_path / "dog" / "b.png"
    with pytest.raises(ValueError, match="Nothing says where 'dog' is"):
        cut_folder("dog", tmp_path / "dog")

    def segment(picture, name):
        mask = torch.zeros(32, 32)
        mask[8:24, 12:20] = 1
        return mask

    own = cut("dog", path, None, segment, None)
    assert torch.allclose(own, block(BLUE, 16, 8))
    (tmp_path / "masks").mkdir()
    Image.fromarray((segment(None, "").numpy() * 255).astype("uint8")).save(tmp_path / "masks" / "b.png")
    assert torch.equal(cut("dog", path, tmp_path / "masks", None, None), own)
    with pytest.raises(ValueError, match="Hardly anything is seen"):
        cut("dog", path, None, lambda picture, name: torch.zeros(32, 32), None)
    assert list(named_folders(["a=x", "photos/two_words"])) == ["a", "two words"]


def test_layouts_of_a_file(tmp_path):
    path = tmp_path / "scenes.yaml"
    path.write_text("- boxes: {cat: [0, 0.5, 0.5, 0.5]}\n  background: at night\n  caption: my cat\n")
    (scene,) = read_scenes(path, ["cat", "dog"])
    concepts = [SingleConcept("cat", (Cutout("a", block(RED)),)), SingleConcept("dog", (Cutout("a", block(BLUE)),))]
    (made,) = compose_all(concepts, plain([BLUE]), count=1, height=16, width=16, scenes=[scene])
    assert made.caption == "my cat" and list(made.boxes) == ["cat"]
    for text, error in {
        "cat": "has no list of scenes",
        "- {}": "scene 1 has no boxes",
        "- {boxes: {cta: [0, 0, 1, 1]}}": "did you mean 'cat'",
        "- {boxes: {cat: [0, 0, 1.5, 1]}}": "inside 0 to 1",
        "- {boxes: {cat: [0, 0, 1, 1]}, x: 1}": "a scene has boxes, background and caption",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=error):
            read_scenes(path, ["cat", "dog"])


# A judge whose embedding of a picture is its mean colour, and of a text that of its colour word.
COLOURS = {"red": RED, "blue": BLUE}
JUDGE = Judge(
    lambda images: F.normalize(images.mean((2, 3)), dim=1),
    lambda texts: torch.tensor([COLOURS[text.split()[-1]] for text in texts]),
)
REFERENCES = {"cat": torch.tensor(RED).view(1, 3, 1, 1), "dog": torch.tensor(BLUE).view(1, 3, 1, 1)}


def test_cp_clip_counts_what_is_there_and_like_itself():
    picture = torch.zeros(1, 3, 8, 8)
    picture[:, 0, :, :4] = 1  # red on the left,
    picture[:, 2, :, 4:] = 1  # blue on the right
    boxes = {"cat": [(0.0, 0.0, 0.5, 1.0)], "dog": [(0.5, 0.0, 0.5, 1.0)]}
    assert cp_clip([picture], REFERENCES, JUDGE, lambda p, name: boxes[name]) == {"cat": 1.0, "dog": 1.0, "all": 1.0}
    other = {"cat": "dog", "dog": "cat"}
    exchanged = cp_clip([picture], REFERENCES, JUDGE, lambda p, name: boxes[other[name]])
    assert exchanged["all"] == pytest.approx(0, abs=1e-6)
    assert cp_clip([picture], REFERENCES, JUDGE, lambda p, name: [])["all"] == 0
    half = cp_clip([picture], REFERENCES, JUDGE, lambda p, name: boxes[name] if name == "cat" else [])
    assert half == {"cat": 1.0, "dog": 0.0, "all": 0.5}
    found = detect_by_judge(JUDGE, REFERENCES)
    assert cp_clip([picture], REFERENCES, JUDGE, found)["all"] > 0.99
    assert found(torch.tensor(RED).view(1, 3, 1, 1).expand(1, 3, 8, 8), "dog") == []
    assert crop(picture, (0.99, 0.99, 0.001, 0.001)).shape == (1, 3, 1, 1)


def test_ti_clip_is_the_mean_cosine():
    red = torch.tensor(RED).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    mixed = torch.tensor([1.0, 0, 1]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert ti_clip([red, mixed], ["all red", "blue"], JUDGE) == pytest.approx((1 + 0.5**0.5) / 2)
    with pytest.raises(ValueError, match="2 pictures and 1 texts"):
        ti_clip([red, red], ["red"], JUDGE)


def test_the_command_makes_data_that_training_reads(tmp_path, monkeypatch, capsys, tiny_model):
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "cat" / "a.png", RED, alpha=True)
    photo(tmp_path / "dog" / "b.png", BLUE, alpha=True)
    common = ["cat=cat", "dog=dog", "--background", "on a beach", "-n", "2", "-q"]
    assert (
        main([*common, "--model", str(tiny_model), "--device", "cpu", "-o", "scenes", "--steps", "2", "--height", "dog=0.5"])
        == 0
    )
    rows = json.loads((tmp_path / "scenes" / "scenes.json").read_text())
    assert len(rows) == 2 and set(rows[0]["boxes"]) == {"cat", "dog"} and rows[0]["caption"].endswith("on a beach")
    tall = {name: box[3] for name, box in rows[0]["boxes"].items()}
    assert tall["dog"] == pytest.approx(tall["cat"] / 2)
    model = Generator.from_pretrained(tiny_model, "cpu", "float32")
    config = {"type": "concept", "images": "scenes/images", "masks": "scenes/masks"}
    batch = make_data(config, 0, 2, model).batch(range(2))
    assert batch.captions == [row["caption"] for row in rows] and 0 < float(batch.extra["mask"].mean()) < 1
    assert main([*common, "--plain", "--size", "32", "-o", "plain"]) == 0
    capsys.readouterr()
    for wrong, error in {
        ("-o", "plain"): "plain exists",
        ("-o", "x", "--rule", "rwo"): "did you mean 'row'",
        ("-o", "x", "--masks", "cow=dog"): "'cow', which is no concept",
        ("-o", "x", "--height", "dog=-1"): "a number above 0",
        ("-o", "x", "--text", "a beach"): "--text is for measuring pictures",
        ("-o", "x", "--measure", "scenes/images"): "--output is for making scenes",
        (): "Say where the data set goes",
    }.items():
        assert main([*common, "--plain", *wrong]) == 2
        assert error in capsys.readouterr().err
