"""Recipes in PNG files: whole round trips, other programs' reading, and files made to hurt."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from gen.io.contact_sheet import contact_sheet, wrap
from gen.io.errors import RecipeError
from gen.io.images import open_picture
from gen.pipeline.infotext import SAMPLERS, SCHEDULES, from_infotext, to_infotext
from gen.pipeline.png import free_name, png_chunks, read_recipe, save_image
from gen.pipeline.recipe import BatchRecord, Machine, ModelRecord, Recipe
from samplers.registry import grid_info, parse_sampler, solver_info

MACHINE = Machine(device="cpu", dtype="float32", attention="auto (sdpa)", threads=2, torch="2.13.0", fewstep="0.1.0")


def make(**changes) -> Recipe:
    values = {
        "prompt": "a red heart",
        "seed": 965400086,
        "height": 64,
        "width": 128,
        "num_inference_steps": 20,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "guidance_scale": 3.0,
        "nfe": 40.0,
        "model": ModelRecord(name="default", weights={"denoiser": "ab" * 32}),
        "batch": BatchRecord(size=4, row=1),
        "machine": MACHINE,
    }
    return Recipe(**{**values, **changes})


PICTURE = Image.new("RGB", (128, 64), "red")
prompts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@settings(database=None, max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=prompts,
    negative_prompt=prompts,
    seed=st.integers(0, (1 << 63) - 1),
    guidance_scale=st.floats(0, 100),
    sampler_options=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=20),
        st.one_of(st.booleans(), st.integers(-(10**30), 10**30), st.floats(allow_nan=False, allow_infinity=False), prompts),
    ),
)
def test_any_recipe_comes_back_from_its_picture(tmp_path, **values):
    recipe = make(**values)
    path = save_image(PICTURE, tmp_path / "a.png", recipe, overwrite=True)
    assert read_recipe(path) == recipe
    with Image.open(path) as image:  # the pixels too, and nothing that a PNG reader warns of
        assert image.tobytes() == PICTURE.tobytes()


# no line break of any kind, and nothing that the grammar itself uses
plain = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=100).map(lambda s: s.strip())


@settings(database=None, max_examples=100, deadline=None)
@given(prompt=plain, negative=plain, name=plain.filter(bool))
def test_the_infotext_line_reads_back(prompt, negative, name):
    if prompt.startswith("Negative prompt:"):
        return
    recipe = make(prompt=prompt, negative_prompt=negative, model=ModelRecord(name=name))
    found = from_infotext(to_infotext(recipe))
    assert (found["Prompt"], found["Negative prompt"], found["Model"]) == (prompt, negative, name)
    assert (found["Steps"], found["Size"], found["Seed"]) == ("20", "128x64", "965400086")


def test_the_infotext_line_is_written_as_viewers_know_it():
    assert to_infotext(
        make(negative_prompt="blurry, dark", model=ModelRecord(name="a, b: c", weights={"denoiser": "0" * 64}))
    ) == (
        "a red heart\nNegative prompt: blurry, dark\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 3.0, "
        'Seed: 965400086, Size: 128x64, Model hash: 0000000000, Model: "a, b: c", Version: fewstep 0.1.0'
    )


def test_labels_of_other_tools_mean_our_names():
    """What a label says elsewhere is what it says here: "Uniform" there is our `normal`, so no recipe of ours says it."""
    assert {parse_sampler(label)[0] for label in SAMPLERS.values()} == {solver_info(name).name for name in SAMPLERS}
    assert all(grid_info(label).name == name for name, label in SCHEDULES.items())
    assert "Schedule type: uniform," in to_infotext(make(schedule="uniform"))
    assert all(parse_sampler(f"{a} {b}") == (solver_info(s).name, g) for s, a in SAMPLERS.items() for g, b in SCHEDULES.items())


def test_values_with_a_colon_are_quoted():
    assert 'Model: "a: b", ' in to_infotext(make(model=ModelRecord(name="a: b")))
    assert from_infotext(to_infotext(make(sampler="comfy:deis", schedule="comfy:beta")))["Sampler"] == "comfy:deis"


def test_an_outside_program_reads_it(tmp_path):
    sd_parsers = pytest.importorskip("sd_parsers")
    recipe = make(prompt="ein rotes Herz, 日本 🦊", negative_prompt="blurry")
    found = sd_parsers.ParserManager().parse(save_image(PICTURE, tmp_path / "a.png", recipe))
    assert [p.value for p in found.prompts] == [recipe.prompt] and [p.value for p in found.negative_prompts] == ["blurry"]
    sampler = found.samplers[0]
    assert sampler.name == "DPM++ 2M" and sampler.model.name == "default" and sampler.model.hash == "abababab" + "ab"
    assert sampler.parameters["seed"] == "965400086" and sampler.parameters["scheduler"] == "Karras"
    assert sampler.parameters["cfg_scale"] == "3.0" and sampler.parameters["steps"] == "20"


def test_text_of_another_program():
    found = from_infotext(
        "masterpiece, (cat:1.2)\nsecond line\nNegative prompt: bad\nworse\nSteps: 20, Sampler: Euler a, CFG scale: 7, "
        'Seed: 965400086, Size: 512x512, Lora hashes: "x: 1, y: 2"'
    )
    assert found["Prompt"] == "masterpiece, (cat:1.2)\nsecond line" and found["Negative prompt"] == "bad\nworse"
    assert found["Sampler"] == "Euler a" and found["Lora hashes"] == "x: 1, y: 2"
    assert from_infotext("only a prompt")["Prompt"] == "only a prompt"
    assert from_infotext("")["Prompt"] == ""


def test_values_of_other_programs_have_brackets_and_lines_of_their_own():
    """Hashes and resources in JSON without quotes around it, quoted text over several lines, carriage returns."""
    found = from_infotext(
        "a cat\r\nNegative prompt: bad\rworse\r\nSteps: 25, Sampler: DPM++ 2M, CFG scale: 7, "
        'Hashes: {"vae": "63, {x", "model": "e\\"}"}, Template: "first, line\nSize: 1x1, second", '
        'Civitai resources: [{"type":"checkpoint","weight":1}, {"a": [1, 2]}], Broken: {"x": 1, Size: 512x768, Seed: 3'
    )
    assert found == {
        "Prompt": "a cat",
        "Negative prompt": "bad\nworse",
        "Steps": "25",
        "Sampler": "DPM++ 2M",
        "CFG scale": "7",
        "Hashes": '{"vae": "63, {x", "model": "e\\"}"}',
        "Template": "first, line\nSize: 1x1, second",
        "Civitai resources": '[{"type":"checkpoint","weight":1}, {"a": [1, 2]}]',
        "Broken": '{"x": 1',
        "Size": "512x768",
        "Seed": "3",
    }


def test_settings_quoted_in_a_value_are_not_the_settings():
    """A template keeps the text of another recipe, line breaks and all; the prompt may have lines that look so too."""
    inner = "Steps: 3, Sampler: LMS, Seed: 1, Size: 8x8"
    for prompt in ("a cat", "Steps: to the moon", f"a cat\n{inner}"):
        for before in ("", '\nVersion: v1, Note: "x\ny"'):
            settings = f'Steps: 20, Sampler: Euler a, CFG scale: 7{before}, Template: "a dog\n{inner}\n{inner}", Seed: 5'
            found = from_infotext(f"{prompt}\nNegative prompt: bad\n{settings}")
            assert (found["Prompt"], found["Negative prompt"]) == (prompt, "bad")
            assert (found["Steps"], found["Sampler"], found["Seed"]) == ("20", "Euler a", "5")
            assert found["Template"] == f"a dog\n{inner}\n{inner}"


PIECES = (
    "a",
    "ab:",
    "a:",
    ":",
    ",",
    '"',
    '\\"',
    "\\",
    "{",
    "}",
    "[",
    "]",
    " ",
    "\n",
    "\r",
    "Steps:",
    "\nSteps: 1, ",
    "\n\\Negative prompt:",
)


def test_reading_takes_time_in_proportion_to_the_text():
    """Counted, not timed: characters that regular expressions and searches may look at, by the size of what they are given."""
    import sys

    def lines(text: str) -> int:
        count = 0

        def trace(frame, event, _):
            nonlocal count
            count += event == "line"
            return trace

        sys.settrace(trace)
        try:
            from_infotext(text)
        finally:
            sys.settrace(None)
        return count

    for piece in PIECES:
        for begin in ("", 'x\nSteps: 1, Sampler: a, Seed: 3, ab: {"', 'x\nSteps: 1, Sampler: a, Seed: 3, ab: "'):
            short, long = (lines(begin + piece * n) for n in (200, 400))
            assert long <= 2.2 * short + 50, (piece, begin)


@settings(database=None, max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_any_text_is_read(text):
    found = from_infotext(text)
    assert all(isinstance(value, str) for value in found.values()) and {"Prompt", "Negative prompt"} <= found.keys()


def test_a_word_of_a_million_letters_is_read_at_once():
    """Against the expression that tried every beginning of it: minutes."""
    for text in ("a" * 1_000_000, "a:" * 500_000, 'ab: {"' * 150_000, "\n" * 1_000_000 + "x", " " * 1_000_000 + "x"):
        assert from_infotext(text)["Negative prompt"] == ""


lines = st.sampled_from(
    ["Negative prompt: x", " Negative prompt:", "\\Negative prompt: y", "a cat", "\\", "Steps: 3, b: c, d: e"]
)


@settings(database=None, max_examples=100, deadline=None)
@given(prompt=st.lists(lines, min_size=1), negative=st.lists(lines))
def test_prompts_that_look_like_the_text_around_them_read_back(prompt, negative):
    recipe = make(prompt="\n".join(["first", *prompt]), negative_prompt="\n".join(negative))
    found = from_infotext(to_infotext(recipe))
    assert (found["Prompt"], found["Negative prompt"]) == (recipe.prompt, recipe.negative_prompt.strip())
    assert found["Steps"] == "20"


def test_chunks_are_of_the_kind_their_text_needs(tmp_path):
    latin = save_image(PICTURE, tmp_path / "latin.png", make(prompt="café")).read_bytes()
    wide = save_image(PICTURE, tmp_path / "wide.png", make(prompt="猫")).read_bytes()
    assert latin.count(b"tEXt") == 2 and b"iTXt" not in latin
    assert wide.count(b"tEXt") == 1 and wide.count(b"iTXt") == 1


def test_nothing_private_or_changing_is_written(tmp_path):
    first, second = (save_image(PICTURE, tmp_path / f"{name}.png", make()).read_bytes() for name in "ab")
    assert first == second and str(tmp_path).encode() not in first


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1},
        {"seed": 1 << 63},
        {"seed": True},
        {"num_inference_steps": 0},
        {"guidance_scale": float("nan")},
        {"sampler_options": {"eta": float("inf")}},
        {"height": 0},
        {"prompt": "x" * 10_001},
        {"unknown": 1},
        {"model": {"name": "m", "weights": {"denoiser": "xyz"}}},
        {"batch": {"size": 10**6}},
    ],
)
def test_recipes_are_strict(change):
    with pytest.raises(ValueError):
        make(**change)


def with_chunk(path: Path, **chunks: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for name, value in chunks.items():
        info.add_itxt(name, value)
    PICTURE.save(path, pnginfo=info)
    return path


GOOD = make().to_json()
DAMAGED = {
    "empty": "",
    "not json": "{",
    "list": "[]",
    "deep": "[" * 100_000,
    "nan": GOOD.replace('"guidance_scale": 3.0', '"guidance_scale": NaN'),
    "bool for int": GOOD.replace('"num_inference_steps": 20', '"num_inference_steps": true'),
    "unknown key": GOOD.replace('{"version"', '{"__class__": "os.system", "version"', 1),
    "huge batch": GOOD.replace('"size": 4', '"size": 400000'),
    "huge picture": GOOD.replace('"height": 64', '"height": 6400000'),
    "missing": GOOD.replace('"seed": 965400086, ', ""),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_recipes_are_refused(tmp_path, kind):
    path = with_chunk(tmp_path / "a.png", fewstep=DAMAGED[kind])
    with pytest.raises(RecipeError, match=r"a\.png: the recipe is damaged or not ours"):
        read_recipe(path)


def test_what_has_no_recipe_says_so(tmp_path):
    with pytest.raises(RecipeError, match="reads versions 1 to 3"):
        read_recipe(with_chunk(tmp_path / "a.png", fewstep=GOOD.replace('"version": 3', '"version": 4')))
    with pytest.raises(RecipeError, match=r"holds no fewstep recipe; it holds a parameters text"):
        read_recipe(with_chunk(tmp_path / "b.png", parameters="a cat"))
    with pytest.raises(RecipeError, match=r"holds no fewstep recipe\."):
        read_recipe(save_image(PICTURE, tmp_path / "c.png"))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def good_png() -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG", pnginfo=png_chunks(make()))
    return buffer.getvalue()


HOSTILE = {
    "empty": b"",
    "text": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "gif": b"GIF89a" + bytes(100),
    "truncated header": good_png()[:20],
    "900 megapixels": png(30_000, 30_000),
    "100 megapixels": png(10_000, 10_000),
    "70 megapixels": png(10_000, 7_000),
    "zero width": png(0, 10),
    "text bomb": png(8, 8, chunk(b"zTXt", b"fewstep\0\0" + zlib.compress(bytes(200_000_000), 1))),
    "no pixels": png(8, 8, chunk(b"IDAT", b"")),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_one_clear_error(tmp_path, kind):
    path = tmp_path / "a.png"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(RecipeError, match=r"a\.png"):
        read_recipe(path)


def test_files_that_are_no_files(tmp_path):
    with pytest.raises(RecipeError, match="No such file"):
        open_picture(tmp_path / "none.png")
    with pytest.raises(RecipeError, match="not a regular file"):
        open_picture(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    with pytest.raises(RecipeError, match="not a regular file"):
        open_picture(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("nowhere")
    with pytest.raises(RecipeError, match="No such file"):
        open_picture(tmp_path / "link.png")


@settings(database=None, max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, len(good_png()) - 1), byte=st.integers(0, 255), cut=st.booleans())
def test_any_damage_is_read_or_refused(tmp_path, position, byte, cut):
    data = bytearray(good_png())
    data[position] = byte
    path = tmp_path / "a.png"
    path.write_bytes(data[:position] if cut else data)
    try:
        assert read_recipe(path).version == 3
    except RecipeError as error:
        assert "a.png" in str(error)


def test_saving_never_overwrites_unless_told(tmp_path):
    path = save_image(PICTURE, tmp_path / "a.png", make())
    before = path.read_bytes()
    with pytest.raises(RecipeError, match="exists already"):
        save_image(Image.new("RGB", (1, 1)), path)
    assert path.read_bytes() == before
    save_image(Image.new("RGB", (1, 1)), path, overwrite=True)
    assert path.read_bytes() != before and [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert free_name(path).name == "a-1.png"
    with pytest.raises(RecipeError, match=r"ends in \.png"):
        save_image(PICTURE, tmp_path / "a.gif")
    with pytest.raises(RecipeError, match="cannot be written"):
        save_image(PICTURE, tmp_path / "no" / "a.png")


def test_a_full_disk_leaves_no_half_picture(tmp_path, monkeypatch):
    old = save_image(PICTURE, tmp_path / "a.png", make()).read_bytes()

    def full(self, file, *_, **__):
        file.write(b"\x89PNG")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    for name in ("a.png", "b.png"):
        with pytest.raises(RecipeError, match="No space left"):
            save_image(PICTURE, tmp_path / name, make(), overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"] and (tmp_path / "a.png").read_bytes() == old


def test_contact_sheet_places_pictures_in_rows():
    colours = ["red", "lime", "blue", "black", "yellow"]
    sheet = contact_sheet(
        [Image.new("RGB", (40, 30), c) for c in colours], [f"{c} one" for c in colours], columns=3, title="All"
    )
    assert sheet.mode == "RGB" and sheet.getpixel((0, 0)) == (255, 255, 255)
    columns = [28, 76, 124]
    found = [[sheet.getpixel((x, y)) for x in columns] for y in range(sheet.height)]
    rows = [row for i, row in enumerate(found) if row != found[i - 1]]
    assert [(255, 0, 0), (0, 255, 0), (0, 0, 255)] in rows and [(0, 0, 0), (255, 255, 0), (255, 255, 255)] in rows
    bare = contact_sheet([Image.new("RGB", (40, 30), c) for c in colours], columns=3)
    assert bare.width == sheet.width and bare.height < sheet.height


def test_captions_wrap_into_their_cell():
    from PIL import ImageFont

    font = ImageFont.load_default(12)
    lines = wrap("a very long caption that goes on and on, supercalifragilisticexpialidocious and more", font, 80, 3)
    assert len(lines) == 3 and all(font.getlength(line) <= 80 for line in lines) and lines[-1].endswith("…")
    assert wrap("short", font, 80, 3) == ["short"]
    assert wrap("one\ntwo", font, 80, 3) == ["one", "two"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "at least one picture"),
        (([PICTURE], ["a", "b"]), "got 2 captions"),
        (([PICTURE], None, 0), "columns=0"),
        (([Image.new("1", (12_000, 9_000))],), "too large"),
    ],
)
def test_contact_sheets_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        contact_sheet(*arguments)


def test_characters_without_a_shape_are_question_marks():
    from PIL import ImageFont

    from gen.io.contact_sheet import drawable

    font = ImageFont.load_default(12)
    assert drawable("a café, 日本 🦊 ﬁ", font).replace("é", "e") in ("a cafe, ?? ? fi", "a cafe, ?? ? ﬁ", "a cafe, ?? ? f")
    assert drawable("plain\nASCII…", font).startswith("plain\nASCII")
    assert wrap("日本", font, 80, 3) == ["??"]


def test_recipes_come_back_from_the_comments_of_other_formats(tmp_path, capsys):
    """As AUTOMATIC1111 writes them: a user comment in UTF-16 of either order; and our own JSON, where a tool carried it."""
    from gen.cli.app import main
    from gen.pipeline.png import read_chunks

    text = "a cat, 猫\nNegative prompt: bad\nSteps: 20, Sampler: Euler a, Seed: 3, Size: 512x512"
    for encoding in ("utf-16-be", "utf-16-le"):
        for suffix in ("jpg", "webp"):
            exif = Image.Exif()
            exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode(encoding)
            PICTURE.save(tmp_path / f"a.{suffix}", exif=exif)
            assert read_chunks(tmp_path / f"a.{suffix}") == {"parameters": text}
            assert main(["info", str(tmp_path / f"a.{suffix}")]) == 0 and "Euler a" in capsys.readouterr().out
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + make().to_json().encode()
    PICTURE.save(tmp_path / "own.webp", exif=exif)
    assert read_recipe(tmp_path / "own.webp") == make()
    PICTURE.save(tmp_path / "c.gif", comment=b"Steps: 20, Sampler: Euler, Seed: 3")
    assert read_chunks(tmp_path / "c.gif") == {"parameters": "Steps: 20, Sampler: Euler, Seed: 3"}
    PICTURE.save(tmp_path / "none.jpg")
    with pytest.raises(RecipeError, match="holds no fewstep recipe"):
        read_recipe(tmp_path / "none.jpg")


@pytest.mark.parametrize("field", ["seed", "guidance_scale", "nfe", "num_inference_steps"])
def test_numbers_without_end_are_a_sentence(field):
    import json

    known = json.loads(GOOD)
    for huge in (10**400, -(10**400)):
        with pytest.raises(RecipeError, match="damaged or not ours"):
            Recipe.from_json(json.dumps({**known, field: huge}))
        for options in ({"eta": huge}, {"eta": [1, huge]}):
            with pytest.raises(RecipeError, match="damaged or not ours"):
                Recipe.from_json(json.dumps({**known, "sampler_options": options}))


def test_a_call_refuses_numbers_without_end():
    from gen.io.validators import check_float, check_int, check_option_values

    for check in (
        lambda v: check_float("x", v, 0, 1),
        lambda v: check_int("x", v, 0, 1),
        lambda v: check_option_values("x", {"a": v}),
    ):
        with pytest.raises(ValueError, match=r"is a whole number of \d+ bits"):
            check(10**5000)
