"""`fewstep image` and what the command line shows: what lands on disk, and what is said where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from gen.cli.image import seeds_in_words
from gen.cli.output import OutputTarget, slug
from gen.io.errors import printable
from gen.pipeline.png import read_recipe
from tests.gen.commands import files


def test_image_names_files_after_prompt_and_seed(image):
    code, out, err = image("a red heart", "Hérz/../日", "-n", 2, "--seed", 5)
    names = ["a-red-heart-5.png", "a-red-heart-6.png", "hérz-日-7.png", "hérz-日-8.png"]
    assert code == 0 and out.split() == files() == names
    note, said = err.splitlines()
    assert "4 pictures by tiny, seeds 5 to 8" in said and note.startswith("Note: The text encoder does not know 'Hérz'")
    recipe = read_recipe(names[3])
    assert (recipe.prompt, recipe.seed, recipe.batch.row) == ("Hérz/../日", 8, 3)


def test_image_never_overwrites(image):
    image("a cat", "--seed", 1)
    before = Path("a-cat-1.png").read_bytes()
    assert image("a cat", "--seed", 1, "--steps", 2)[1].split() == ["a-cat-1-1.png"]
    assert image("a dog", "-o", "a-cat-1.png")[1].split() == ["a-cat-1-2.png"]
    assert image("a dog", "a dog", "-o", "a-cat.png", "--seed", 1)[1].split() == ["a-cat-1-3.png", "a-cat-2.png"]
    assert Path("a-cat-1.png").read_bytes() == before


def test_image_options_reach_the_recipe(image):
    options = {"--steps": 3, "--sampler": "DDIM", "--schedule": "karras", "--guidance-scale": 2.5, "--negative": "blurry"}
    options |= {"--height": 24, "--width": 40, "--sampler-option": "eta=0.5", "--seed": 9, "-o": "out/new"}
    code, out, _ = image("a cat", *[part for pair in options.items() for part in pair])
    recipe = read_recipe(out.strip())
    assert code == 0 and out.strip() == os.path.join("out", "new", "a-cat-9.png")
    assert (recipe.num_inference_steps, recipe.sampler, recipe.schedule, recipe.guidance_scale) == (3, "ddim", "karras", 2.5)
    assert (recipe.negative_prompt, recipe.height, recipe.width, recipe.sampler_options) == ("blurry", 24, 40, {"eta": 0.5})
    assert recipe.machine.dtype == "float32" and Image.open(out.strip()).size == (40, 24)


def test_image_takes_guidance_caches_and_a_picture_to_start_from(image, fewstep, tiny_model):
    image("a cat", "--seed", 1)
    Image.new("L", (32, 32), 255).save("mask.png")
    code, _, err = image(
        "a dog", "--seed", 2, "-o", "edit.png", "--image", "a-cat-1.png", "--mask", "mask.png", "--strength", 0.75,
        "--guidance", "pag + clip", "--guidance-option", "layers=0,1", "--guidance-option", "limit=2.5",
        "--guidance-interval", -3, 2.5, "--cache", "taylor", "--cache-option", "stride=2",
        "--schedule", "karras", "--schedule-option", "rho=5",
    )  # fmt: skip
    assert code == 0, err
    recipe = read_recipe("edit.png")
    assert (recipe.guidance, recipe.guidance_options) == ("pag + clip", {"layers": (0, 1), "limit": 2.5})
    assert (recipe.cache, recipe.cache_options) == ("taylor", {"stride": 2})
    assert (recipe.guidance_interval, recipe.schedule_options) == ((-3, 2.5), {"rho": 5})
    assert recipe.start.strength == 0.75 and recipe.start.mask
    code, _, err = fewstep("replay", "edit.png", "--model", tiny_model, "--image", "a-cat-1.png", "--mask", "mask.png")
    assert code == 0 and "Identical to the last byte" in err
    code, _, err = fewstep("replay", "edit.png", "--model", tiny_model)
    assert code == 2 and "give it as --image." in err
    assert "'strength': 0.75" in fewstep("info", "edit.png")[1]


def test_image_takes_a_saved_table_of_levels(image, fewstep, tiny_model):
    from samplers.grids import from_table
    from samplers.path import RectifiedFlow
    from samplers.search import save_table

    save_table("found.json", from_table(RectifiedFlow(), [1.0, 0.8, 0.3]))
    code, _, err = image("a cat", "--seed", 1, "--schedule", "found.json")
    assert code == 0, err
    recipe = read_recipe("a-cat-1.png")
    assert (recipe.schedule, recipe.num_inference_steps, recipe.unrecorded) == ("table", 3, ())
    code, _, err = fewstep("replay", "a-cat-1.png", "--model", tiny_model)
    assert code == 0 and "Identical to the last byte" in err
    code, _, err = image("a cat", "--seed", 1, "--schedule", "found.json", "--steps", 5)
    assert code == 2 and "makes 3 steps, but 5 were asked for" in err
    Path("broken.json").write_text("{")
    code, _, err = image("a cat", "--schedule", "broken.json")
    assert code == 2 and "broken.json" in err


def test_image_without_metadata_and_quietly(image):
    code, out, err = image("a cat", "--no-metadata", "-q", "-o", "x.png")
    assert (code, out, err) == (0, "x.png\n", "")
    with Image.open("x.png") as picture:
        assert picture.info == {}


def test_image_with_a_contact_sheet(image):
    code, out, _ = image("a cat", "a dog", "-n", 2, "--grid", "sheet.png", "-o", "all")
    assert code == 0 and len(out.split()) == 5 and out.split()[-1] == "sheet.png"
    with Image.open("sheet.png") as sheet:
        assert sheet.width == 2 * 32 + 3 * 8


def test_a_random_seed_is_said_and_makes_the_picture_again(image):
    err = image("a cat", "-o", "x.png")[2]
    seed = read_recipe("x.png").seed
    assert f"seed {seed}," in err
    image("a cat", "--seed", seed, "-o", "y.png")
    assert Path("x.png").read_bytes() == Path("y.png").read_bytes()


def test_class_models_take_names_and_numbers(fewstep, class_model):
    code, out, _ = fewstep("image", "goldfish", "1", "--seed", 3, "--model", class_model)
    assert code == 0 and out.split() == ["goldfish-3.png", "dog-4.png"] and read_recipe("dog-4.png").class_label == 1
    code, _, err = fewstep("image", "goldfsh", "--model", class_model)
    assert code == 2 and "Did you mean 'goldfish'?" in err


def test_unconditional_models_take_no_prompt(fewstep, pixel_model):
    code, out, _ = fewstep("image", "-n", 2, "--seed", 3, "--model", pixel_model)
    assert code == 0 and out.split() == ["image-3.png", "image-4.png"]
    assert fewstep("image", "a cat", "--model", pixel_model)[0] == 2


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_of_samplers_fits_the_terminal(width):
    """With all that is in the table for other programs, word for word."""
    from gen.cli.show import samplers
    from samplers.registry import GRIDS, SOLVERS

    lines = samplers(width).splitlines()
    assert max(map(len, lines)) <= width and len(lines) < 3 * len(samplers().splitlines())
    whole, broken = (
        sorted(word for word in text.split() if word.strip(":") not in ("options", "description"))
        for text in (samplers(), samplers(width))
    )
    assert whole == broken
    beside = next(line for line in lines if line.startswith("euler "))
    assert beside.endswith("Euler: one straight step, with churn if asked for") == (width > 80)
    firsts = {line.split()[0] for line in lines if line and not line.startswith(" ")}
    assert {*SOLVERS, *GRIDS} <= firsts


def test_env_and_samplers(fewstep):
    code, out, _ = fewstep("env")
    assert code == 0 and "torch" in out and "attention sdpa" in out and "used by default" in out
    code, out, _ = fewstep("samplers")
    assert code == 0 and "dpmpp_2m" in out and "karras" in out and "Euler" in out


@pytest.mark.parametrize(
    ("prompt", "name"),
    [("a red heart", "a-red-heart"), ("../../etc/passwd", "etc-passwd"), ("", "image"), ("!?", "image"), ("x" * 500, "x" * 60)],
)
def test_slugs(prompt, name):
    assert slug(prompt) == name
    assert slug("猫" * 100) == "猫" * 20 and "/" not in slug("a/b\\c\0d") and not slug(".hidden").startswith(".")


def test_targets(tmp_path):
    assert OutputTarget.of(tmp_path / "new").path("A Cat", 3) == tmp_path / "new" / "a-cat-3.png"
    assert OutputTarget.of(tmp_path / "x.PNG").path("A Cat", 3) == tmp_path / "x.PNG"
    assert OutputTarget.of(tmp_path / "v1.5").path("A Cat", 3) == tmp_path / "v1.5" / "a-cat-3.png"
    assert not (tmp_path / "new").exists()
    (tmp_path / "run.new").mkdir()
    assert OutputTarget.of(tmp_path / "run.new").path("A Cat", 3) == tmp_path / "run.new" / "a-cat-3.png"
    assert printable("a\x1b[0m\u202e\n\tb") == "a\\x1b[0m\\u202e\n\tb"


def test_several_pictures_under_one_name_are_told_apart_by_their_seeds(image):
    assert image("a cat", "--seed", "1-2", "--steps", 1, "-o", "c.webp")[1].split() == ["c-1.webp", "c-2.webp"]
    assert image("a cat", "--seed", 4, "--steps", 1, "-o", "c.png")[1].split() == ["c.png"]
    assert [read_recipe(f"c-{seed}.webp").seed for seed in (1, 2)] == [1, 2]
    out = image("a cat", "a dog", "--seed", "1,7", "--steps", "1,2", "-o", "all/d.png", "-q")[1].split()
    wanted = [f"all/d-a-{name}-{n}-steps-{seed}.png" for n in (1, 2) for name in ("cat", "dog") for seed in (1, 7)]
    assert out == wanted
    out = image("a cat", "--seed", 7, "-n", 2, "--variation-seed", 3, "--steps", 1, "-o", "v.png")[1].split()
    assert out == ["v-7-variation-3.png", "v-7-variation-4.png"]


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        ([7], "seed 7"),
        ([7, 7, 7], "seed 7"),
        ([5, 6, 7], "seeds 5 to 7"),
        ([3, 7, 8, 3, 7, 8], "seeds 3, 7, 8"),
        (range(0, 40, 2), "seeds 0, 2, 4, 6, 8, ..., 38"),
    ],
)
def test_seeds_in_words(seeds, words):
    assert seeds_in_words(seeds) == words


def test_a_size_is_both_sides(image):
    with Image.open(image("a cat", "--size", "48x32", "--seed", 1, "--steps", 1)[1].strip()) as made:
        assert made.size == (48, 32)


def test_prompts_of_one_word_each_get_a_hint(image):
    _, out, err = image("a", "cat", "--seed", 1)
    assert out.split() == ["a-1.png", "cat-2.png"] and 'put them in quotes: "a cat"' in err
    _, _, err = image("a cat", "a dog", "--seed", 1)
    assert "quotes" not in err


def test_every_prompt_is_drawn_with_every_seed(image):
    code, out, err = image("a cat", "a dog", "--seed", "3,7-8", "--steps", 2)
    assert code == 0, err
    assert out.split() == [f"a-{name}-{seed}.png" for name in ("cat", "dog") for seed in (3, 7, 8)]
    image("a dog", "--seed", 8, "--steps", 2, "-o", "alone")
    assert Path("alone/a-dog-8.png").read_bytes() != b"" and read_recipe("a-dog-8.png").seed == 8
    with Image.open("alone/a-dog-8.png") as alone, Image.open("a-dog-8.png") as among:
        assert alone.tobytes() == among.tobytes()


def test_every_picture_is_drawn_with_every_number_of_steps(image):
    code, out, _ = image("a cat", "--seed", 3, "--steps", "2,4-5", "--grid", "g.png")
    assert code == 0 and out.split() == [*(f"a-cat-{n}-steps-3.png" for n in (2, 4, 5)), "g.png"]
    assert [read_recipe(path).num_inference_steps for path in out.split()[:-1]] == [2, 4, 5]
    out = image("a cat", "-n", 2, "--steps", "2,3")[1]
    seeds = [read_recipe(path).seed for path in out.split()]
    assert seeds[:2] == seeds[2:] and seeds[1] == seeds[0] + 1  # drawn at random once


def test_prompts_come_from_a_file_or_from_stdin(image, monkeypatch):
    import io

    Path("p.txt").write_bytes(b"\xef\xbb\xbfa cat\r\n\r\n# not this\r\n  a dog  \n")
    assert image("a moon", "--prompts", "p.txt", "--seed", 1)[1].split() == ["a-moon-1.png", "a-cat-2.png", "a-dog-3.png"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("ein Hérz\n".encode())))
    assert image("--prompts", "-", "--seed", 1)[1].split() == ["ein-hérz-1.png"]
    code, _, err = image("--prompts", "p.txt", "--seed", 1)
    assert code == 0 and "in quotes" not in err  # the hint is for what a shell took apart


def test_wildcards_are_drawn_by_the_seed_of_each_picture(image):
    from gen.calls.wildcards import WildcardFiles, expand

    Path("words").mkdir()
    Path("words/animal.txt").write_text("cat\ndog\nheart\n")
    template = "a {red|blue} __animal__"
    code, out, err = image(template, "--wildcards", "words", "--seed", "1-6", "--steps", 1)
    assert code == 0, err
    prompts = [read_recipe(path).prompt for path in out.split()]
    assert prompts == [expand(template, seed, 0, WildcardFiles("words")) for seed in range(1, 7)] and len(set(prompts)) > 2
    out = image(template, "--wildcards", "words", "--seed", 3, "-n", 2, "--steps", 1, "-o", "again")[1]
    assert [read_recipe(path).prompt for path in out.split()] == prompts[2:4]
    assert read_recipe(image("a {cat|dog}", "--seed", 1, "--steps", 1)[1].strip()).prompt == "a {cat|dog}"
    assert "no wildcard" in image("__none__", "--wildcards", "words")[2].lower()
