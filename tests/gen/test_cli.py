"""The command line: what lands on disk, what is said where, and every wrong request as one sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from gen.cli import app as cli
from gen.cli.image import seeds_in_words
from gen.cli.output import OutputTarget, slug
from gen.io.errors import printable
from gen.pipeline.png import read_recipe, save_image

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture
def fewstep(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return run


@pytest.fixture
def image(fewstep, tiny_model):
    return lambda *arguments: fewstep("image", *arguments, "--model", tiny_model, "--dtype", "float32", "--device", "cpu")


def files(folder: Path = Path()) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


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
    assert code == 2 and "give it as image (--image)" in err
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replay_gives_the_same_bytes(fewstep, tiny_model, dtype):
    fewstep(
        "image", "a cat", "", "a dog", "-n", 2, "--seed", 1, "--sampler", "euler_a", "--dtype", dtype, "--model", tiny_model
    )
    code, out, err = fewstep("replay", "a-dog-6.png", "--model", tiny_model)
    assert code == 0 and out == "a-dog-6-replay.png\n" and "Identical to the last byte." in err
    assert Path("a-dog-6-replay.png").read_bytes() == Path("a-dog-6.png").read_bytes()
    code, out, _ = fewstep("replay", "image-4.png", "--model", tiny_model, "-o", "image-4.png", "-q")
    assert code == 0 and out == "image-4-1.png\n"
    Path("there").mkdir()
    for folder in ("there", "new/"):
        code, out, _ = fewstep("replay", "image-4.png", "--model", tiny_model, "-o", folder, "-q")
        assert code == 0 and out == f"{Path(folder) / 'image-4-replay.png'}\n"
    code, _, err = fewstep("replay", "image-4.png", "--model", tiny_model, "-o", "image-4.gif")
    assert code == 2 and "saved as PNG" in err


def test_a_damaged_picture_is_not_replayed(fewstep, image, tiny_model, monkeypatch):
    """Said before the model is opened, with the file's name."""
    image("a cat", "--seed", 1)
    whole = Path("a-cat-1.png").read_bytes()
    start = whole.index(b"IDAT") + 20
    Path("cut.png").write_bytes(whole[: start + 40])
    Path("changed.png").write_bytes(whole[:start] + bytes(200) + whole[start + 200 :])
    monkeypatch.setattr("gen.generator.Generator.from_pretrained", None)
    for name in ("cut.png", "changed.png"):
        code, out, err = fewstep("replay", name, "--model", tiny_model)
        assert code == 2 and not out and f"{name} is damaged" in err
        assert fewstep("info", name)[0] == 0


def test_replay_says_what_differs(fewstep, image, tiny_model):
    image("a cat", "--seed", 1)
    code, _, err = fewstep("replay", "a-cat-1.png", "--model", tiny_model, "--dtype", "bfloat16")
    assert code == 1 and "Different:" in err and "dtype float32 (now bfloat16)" in err
    with Image.open("a-cat-1.png") as picture:
        picture.save("again.png", pnginfo=_info(picture), compress_level=1)
        changed = picture.point(lambda v: min(v + 3, 255))
        changed.save("changed.png", pnginfo=_info(picture))
        picture.resize((16, 16)).save("small.png", pnginfo=_info(picture))
    code, _, err = fewstep("replay", "again.png", "--model", tiny_model)
    assert code == 0 and "The same in every pixel" in err
    code, _, err = fewstep("replay", "changed.png", "--model", tiny_model)
    assert code == 1 and "by at most 3 of 255" in err
    code, _, err = fewstep("replay", "small.png", "--model", tiny_model)
    assert code == 1 and "16 x 16" in err


def _info(picture):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, value in picture.info.items():
        info.add_text(name, value)
    return info


def test_replay_opens_no_model_that_a_file_names(fewstep, image, monkeypatch):
    image("a cat", "--seed", 1)
    recipe = read_recipe("a-cat-1.png")
    for name in ("someone/model", "../../models/x", "tiny"):
        hostile = recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": name})})
        save_image(Image.open("a-cat-1.png"), "hostile.png", hostile, overwrite=True)
        monkeypatch.setattr("gen.models.pretrained.download", lambda *_: pytest.fail("downloaded"))
        code, _, err = fewstep("replay", "hostile.png")
        assert code == 2 and f"{name!r}; say where it is with --model" in err


def test_info_shows_recipes_of_both_kinds(fewstep, image):
    image("a cat \x1b[31m", "--seed", 1, "-o", "x.png")
    code, out, _ = fewstep("info", "x.png")
    assert code == 0 and r"a cat \x1b[31m" in out and "\x1b" not in out and "dpmpp_2m" in out
    assert json.loads(fewstep("info", "x.png", "--json")[1]) == json.loads(read_recipe("x.png").to_json())
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", "a dog\nSteps: 20, Sampler: Euler a, Seed: 7, Size: 8x8")
    Image.new("RGB", (8, 8)).save("other.png", pnginfo=info)
    assert "Euler a" in fewstep("info", "other.png")[1]
    Image.new("RGB", (8, 8)).save("bare.png")
    assert fewstep("info", "bare.png") == (2, "", "fewstep: bare.png holds no recipe.\n")


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


MISTAKES = [
    (["--steps", "0"], "--steps is 0"),
    (["--steps", "many"], "--steps"),
    (["--steps", "1000000"], "from 1 to 1000"),
    (["--stps", "3"], "--steps"),
    (["--sampler", "eulr"], "did you mean 'euler'"),
    (["--schedule", "karas"], "did you mean 'karras'"),
    (["--sampler-option", "eta"], "name=value"),
    (["--sampler-option", "etta=1"], "no option 'etta'"),
    (["--guidance-scale", "nan"], "--guidance-scale is nan"),
    (["--guidance-scale", "-1"], "from 0 to 100"),
    (["--seed", "-1"], "--seed is -1"),
    (["--seed", str(1 << 63)], "--seed is 9223372036854775808"),
    (["-n", "0"], "--number is 0"),
    (["--height", "33"], "nearest allowed: 32 and 40"),
    (["--width", "1000000"], "megapixels"),
    (["--batch-size", "0"], "--batch-size is 0"),
    (["--device", "tpu9"], "Unknown device 'tpu9'"),
    (["--dtype", "int4"], "Unknown dtype 'int4'"),
    (["-o", "x.gif"], "ends in .png"),
    (["-o", "x.xyz"], "ends in .png, .jpg, .webp or .avif, or make the folder x.xyz first"),
    (["--size", "33"], "The height of --size is 33"),
    (["--size", "32x"], "WIDTHxHEIGHT"),
    (["--size", "32", "--width", "32"], "--width says one again"),
    (["--lora-dir", "nowhere"], "--lora-dir"),
    (["-o", "x.png", "--format", "webp"], "says one format"),
    (["--format", "wep"], "did you mean 'webp'"),
    (["--format", "webp", "--quality", "0"], "--quality is 0"),
    (["--quality", "80"], "says nothing of a PNG"),
    (["-o", "taken/x.png"], "not a folder"),
    (["-o", "taken"], "not a folder"),
    (["--grid", "x.gif"], "ends in .png"),
    (["--grid", "."], "ends in .png"),
    (["--grid", "taken/x.png"], "not a folder"),
    (["--model", "nowhere"], "nowhere does not exist"),
    (["--model", "taken"], "taken is neither a folder nor a safetensors or GGUF file"),
    (["-o", "a\0b.png"], "null"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda v: "-".join(v) if isinstance(v, list) else "")
def test_mistakes_are_one_sentence_and_exit_code_2(fewstep, tiny_model, arguments, message):
    Path("taken").write_text("mine")
    model = [] if "--model" in arguments else ["--model", tiny_model]
    code, out, err = fewstep("image", "a cat", *arguments, *model)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1 and err.startswith("fewstep: ")
    assert "defect" not in err and files() == ["taken"]


def test_other_mistakes(fewstep, tiny_model):
    assert "Did you mean 'image'?" in fewstep("imge")[2]
    assert "write one in quotes" in fewstep("image", "--model", tiny_model)[2]
    assert "No such file" in fewstep("replay", "none.png")[2]
    assert "No such file" in fewstep("info", "none.png")[2]
    Path("fake.png").write_text("<svg/>")
    assert "not a PNG" in fewstep("info", "fake.png")[2]
    code, out, err = fewstep()
    assert code == 2 and out == "" and "Commands:" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(fewstep, tiny_model):
    Path("locked").mkdir(mode=0o500)
    code, _, err = fewstep("image", "a cat", "-o", "locked", "--model", tiny_model)
    assert code == 2 and "locked cannot be written to" in err


def test_output_is_checked_before_the_model_is_opened(image, monkeypatch):
    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("gen.generator.Generator.from_pretrained", lambda *_: pytest.fail("opened"))
    code, _, err = image("a cat", "-o", "out")
    assert code == 2 and "out cannot be written to (Read-only file system)" in err


def test_an_unforeseen_error_is_called_a_defect(image, monkeypatch):
    monkeypatch.setattr("gen.generator.Generator.decode", lambda *_: 1 // 0)
    code, _, err = image("a cat")
    assert code == 2 and "ZeroDivisionError" in err and "defect of fewstep" in err and files() == []


def test_ctrl_c_keeps_what_is_finished(image, monkeypatch):
    from gen.generator import Generator

    decode, calls = Generator.decode, []

    def interrupted(self, *given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return decode(self, *given)

    monkeypatch.setattr(Generator, "decode", interrupted)
    code, out, err = image("a cat", "-n", 6, "--batch-size", 2, "--seed", 1)
    assert code == 130 and out.split() == files() == [f"a-cat-{n}.png" for n in range(1, 5)]
    assert "Interrupted; 4 pictures saved." in err
    assert all(read_recipe(name).prompt == "a cat" for name in files())


HANDED = [
    *[("train", "distill.train"), ("evaluate", "distill.evaluate"), ("words", "distill.words")],
    ("data build", "distill.data.emoji.build"),
]


@pytest.mark.parametrize(("command", "module"), HANDED)
def test_commands_of_other_packages_are_handed_over(fewstep, monkeypatch, command, module):
    assert cli.MODULES[command] == module
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    seen = []

    def run(name, run_name, alter_sys):
        seen.append((name, run_name, sys.argv))
        raise SystemExit(3)

    monkeypatch.setattr("runpy.run_module", run)
    before = sys.argv
    code, _, _ = fewstep(*command.split(), "config.yaml", "--help", "steps=3", "-x")
    assert code == 3 and sys.argv is before
    assert seen == [(module, "__main__", [f"fewstep {command}", "config.yaml", "--help", "steps=3", "-x"])]


def test_a_missing_package_is_a_sentence(fewstep, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = fewstep("train", "x.yaml")
    assert code == 2 and "needs the module distill.train" in err


def run_as_program(*arguments: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "gen", *map(str, arguments)], capture_output=True, text=True, **options)


def test_as_a_program(tiny_model, tmp_path):
    done = run_as_program("image", "a cat", "--seed", 1, "--model", tiny_model, "-q", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a-cat-1.png\n", "")
    done = run_as_program("image", "a cat", "-o", "x.gif", cwd=tmp_path)  # refused before anything loads
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and files(tmp_path) == ["a-cat-1.png"]


def test_ctrl_c_as_a_program(tiny_model, tmp_path):
    """SIGINT in the middle of a long request: exit code 130, whole files only, no traceback."""
    command = [sys.executable, "-m", "gen", "image", "a cat", "-n", "5000", "--steps", "50", "--batch-size", "1", "-q"]
    program = subprocess.Popen(
        [*command, "--model", str(tiny_model)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a test run that was itself started in the background ignores SIGINT, and hands that down
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert program.stdout.readline().startswith("a-cat-"), program.stderr.read()
        time.sleep(0.2)
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=120)
    finally:
        program.kill()
    assert program.returncode == 130 and "Traceback" not in err
    assert len(files(tmp_path)) == out.count("\n") + 1 and all(read_recipe(tmp_path / name) for name in files(tmp_path))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["image", "--help"], ["imge"]])
def test_help_and_version_start_without_torch(arguments):
    code = (
        "import sys; from gen.cli.app import main; main(sys.argv[1:]); "
        "late = {'torch', 'rich', 'PIL', 'numpy', 'transformers', 'gen.pipeline.recipe'};"
        "print({m for m in sys.modules if m in late or m.split('.')[0] in late})"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


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


# ---- compare ----


@pytest.fixture
def compare(fewstep, tiny_model):
    def run(*arguments: object):
        fixed = ("--model", tiny_model, "--dtype", "float32", "--device", "cpu", "--reference", 12)
        return fewstep("compare", *arguments, *fixed)

    return run


def test_compare_ranks_samplers_by_their_distance_to_the_reference(compare):
    arguments = ("a cat", "a dog", "--samplers", "euler, heun karras, Euler a", "--steps", "2,6", "--seed", 3, "-o", "c.png")
    code, out, err = compare(*arguments)
    header, *rows, path = out.strip().splitlines()
    assert code == 0 and header.split()[-4:] == ["2", "steps", "6", "steps"] and "12 steps of heun" in header
    found = {row.rsplit(maxsplit=2)[0].strip(): [float(v) for v in row.split()[-2:]] for row in rows}
    assert set(found) == {"euler", "heun karras", "euler_a (adds noise)"}
    assert found["euler"][1] < found["euler"][0]  # more steps come closer
    assert [sum(v) for v in found.values()] == sorted(sum(v) for v in found.values())
    assert path == "c.png" and Image.open(path).width == 2 * 32 + 3 * 8
    assert "2 pictures, seeds from 3" in err
    assert compare(*arguments)[1].splitlines()[:-1] == out.splitlines()[:-1]  # and again the same, under a free name
    assert files() == ["c-1.png", "c.png"]


def test_compare_takes_every_sampler_on_every_schedule(compare):
    _, out, _ = compare("a cat", "--samplers", "euler,DPM++ 2M Karras", "--schedules", "uniform_time,beta", "--steps", "2")
    labels = {" ".join(row.split()[:2]) for row in out.splitlines()[1:-1]}
    assert labels == {"euler uniform", "euler beta", "dpmpp_2m karras"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samplers", "eular"], "did you mean 'euler'"),
        (["--schedules", "karas"], "did you mean 'karras'"),
        (["--steps", "4,x"], "--steps is '4,x'; give whole numbers"),
        (["--samplers", "euler,"], "--samplers is 'euler,', which leaves a value empty"),
        (["--steps", "0"], "--steps is 0"),
        (["-o", "sheet.jpg"], "ends in .png"),
    ],
)
def test_compare_refuses_in_one_sentence(compare, arguments, message):
    code, _, err = compare("a cat", *arguments)
    assert code == 2 and message in err and err.count("\n") == 1 and files() == []


def test_prompts_of_one_word_each_get_a_hint(image):
    _, out, err = image("a", "cat", "--seed", 1)
    assert out.split() == ["a-1.png", "cat-2.png"] and 'put them in quotes: "a cat"' in err
    _, _, err = image("a cat", "a dog", "--seed", 1)
    assert "quotes" not in err


@pytest.mark.parametrize("arguments", [["convert", "IN", "--to", "dit"], ["lora", "convert", "IN", "--to", "peft"]])
def test_where_to_write_is_said_once(fewstep, arguments):
    assert "Say what to write; give it once: -o OUT." in fewstep(*arguments)[2]
    assert "a and b are both given" in fewstep(*arguments[: arguments.index("IN") + 1], "a", "-o", "b", *arguments[-2:])[2]
    assert "IN" in fewstep(*arguments[: arguments.index("IN") + 1], "-o", "b", *arguments[-2:])[2]


def test_errors_speak_in_the_words_of_the_option(fewstep):
    def said(*arguments):
        return fewstep(*arguments)[2].removeprefix("fewstep: ")

    assert said("layout", ".") == ". is a folder; give a layout (YAML, JSON), or a painting (PNG) with --colour.\n"
    assert said("image", "a cat", "--greedy", "none.py:f").startswith("--greedy none.py:f: none.py is not a file")
    assert said("image", "a cat", "--device", "").startswith("Unknown device ''")
    assert said("image", "a cat", "--schedule", "zzz").startswith("Unknown schedule 'zzz'. Known:")


STOPPED = """
import os, signal, sys
import gen.pipeline.png as png
from gen.__main__ import program

save, done = png.save_image, []

def saving(image, path, *rest, **more):
    if done:
        os.kill(os.getpid(), signal.NAME)
    done.append(path)
    return save(image, path, *rest, **more)

png.save_image, sys.argv = saving, ["fewstep", *sys.argv[1:]]
program()
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_stop_is_said_and_leaves_nothing(tiny_model, tmp_path, name, code):
    """The process stops itself when it is to save its second picture."""
    options = ["image", "a cat", "-n", "3", "--batch-size", "1", "--seed", "1", "--model", str(tiny_model), "--device", "cpu"]
    ran = subprocess.run(
        [sys.executable, "-c", STOPPED.replace("NAME", name), *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=ENV,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as it is in a terminal
    )
    assert (ran.returncode, ran.stdout) == (code, "a-cat-1.png\n") and "Interrupted; 1 picture saved." in ran.stderr
    assert files(tmp_path) == ["a-cat-1.png"] and "Traceback" not in ran.stderr


def test_an_interrupt_while_the_program_is_read_is_one_line(tmp_path):
    script = (
        "import sys\nclass Stop:\n    def find_spec(self, name, *_):\n"
        "        if name == 'gen.cli.app': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\nfrom gen.__main__ import program\nprogram()"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, env=ENV)
    assert (ran.returncode, ran.stderr) == (130, "Interrupted.\n")


# ---- several steps and seeds, prompts from files ----


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "1-3", "-n", "2"], "give one of them"),
        (["--seed", "x"], "--seed is 'x'"),
        (["--steps", "4,x"], "--steps is '4,x'"),
        (["--prompts", "none.txt"], "none.txt: does not exist"),
        (["--prompts", "empty.txt"], "empty.txt holds no prompt"),
        (["--wildcards", "none"], "none is not a folder"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(image, arguments, message):
    Path("empty.txt").write_text("# nothing\n")
    code, out, err = image("a cat", *arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1 and "defect" not in err
