"""Pictures taken apart: together the layers are the picture, whatever was found; what is behind runs on from what is seen."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gen.generator import Generator
from gen.io.alpha import upon
from gen.io.openraster import read_openraster, to_tensor, write_openraster
from gen.models.transparency import OpenedTransparency
from gen.tasks.transparent import decompose as module
from gen.tasks.transparent import running_on
from gen.tasks.transparent.cli import layers as command
from gen.tasks.transparent.decompose import decompose, named
from gen.tasks.transparent.running_on import run_on
from gen.tasks.transparent.things import connected

CALL: dict[str, Any] = {"seed": 3, "num_inference_steps": 2, "progress": False}


def scene(size: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """(picture, opacity, background): a disc with a soft edge upon a gradient."""
    y, x = torch.meshgrid(torch.arange(size, dtype=torch.float64), torch.arange(size, dtype=torch.float64), indexing="ij")
    alpha = (size / 4 + 1 - ((y - size / 2) ** 2 + (x - size / 2.2) ** 2).sqrt()).clamp(0, 2)[None, None] / 2
    background = torch.stack([0.2 + 0.5 * x / size, 0.8 - 0.4 * y / size, 0.3 + 0.2 * (x + y) / size])[None]
    thing = torch.tensor([0.9, 0.1, 0.2], dtype=torch.float64).view(1, 3, 1, 1)
    return alpha * thing + (1 - alpha) * background, alpha, background


# ---- what is behind ----


def test_what_runs_on_is_harmonic():
    """Gradients are found exactly, without a guess; Laplace's equation holds at every pixel of the hole."""
    picture, alpha, background = scene()
    hole = (alpha > 0).double()
    filled = run_on(torch.where(hole > 0, torch.rand_like(picture), background), hole)
    assert (filled - background).abs().max() < 1e-6
    noisy = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0)).double()
    hole = torch.zeros(1, 1, 20, 20).double()
    hole[..., 6:14, 5:12] = 1
    found = run_on(noisy, hole)
    laplacian = (
        4 * found[..., 1:-1, 1:-1] - found[..., :-2, 1:-1] - found[..., 2:, 1:-1] - found[..., 1:-1, :-2] - found[..., 1:-1, 2:]
    )
    assert laplacian[..., 5:13, 4:11].abs().max() < 1e-5
    assert torch.equal(found[(hole == 0).expand_as(found)], noisy[(hole == 0).expand_as(noisy)])


def test_a_guess_keeps_its_detail_and_runs_on():
    """A guess that is the background but for its brightness is the background."""
    _, alpha, background = scene()
    detail = 0.05 * torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    truth, hole = background + detail, (alpha > 0).double()
    assert (run_on(truth, hole, (truth - 0.13)) - truth).abs().max() < 1e-6


def test_a_hole_at_the_border_runs_on_too():
    hole = torch.zeros(1, 1, 8, 8).double()
    hole[..., :, 4:] = 1
    flat = torch.full((1, 3, 8, 8), 0.4).double()
    assert (run_on(flat, hole) - flat).abs().max() < 1e-9


@pytest.mark.parametrize(("height", "width"), [(1, 9), (7, 1), (13, 10), (16, 11)])
def test_any_hole_solves_the_equations_written_out(height, width):
    """Against a dense solve: holes of scattered pixels, at edges and corners of pictures, with a guess."""
    draw = torch.Generator().manual_seed(height)
    picture, guess = torch.rand(2, 1, 3, height, width, generator=draw, dtype=torch.float64) * 0.2 + 0.4
    inside = torch.rand(height, width, generator=draw) < 0.7
    inside[height // 2, width // 2] = False
    places = inside.nonzero().tolist()
    matrix, right = torch.zeros(len(places), len(places), dtype=torch.float64), torch.zeros(len(places), 3, dtype=torch.float64)
    for row, (y, x) in enumerate(places):
        for at in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if not (0 <= at[0] < height and 0 <= at[1] < width):
                continue
            matrix[row, row] += 1
            right[row] += guess[0, :, y, x] - guess[0, :, at[0], at[1]]
            if list(at) in places:
                matrix[row, places.index(list(at))] -= 1
            else:
                right[row] += picture[0, :, at[0], at[1]]
    expected = picture.clone()
    expected[0][:, inside] = torch.linalg.solve(matrix, right).T
    found = run_on(picture, inside[None, None].double(), guess)
    assert (found - expected.clamp(0, 1)).abs().max() < 1e-6
    assert torch.equal(found[..., ~inside], picture[..., ~inside])


def test_a_larger_hole_takes_no_more_rounds(monkeypatch):
    """Multigrid: plain conjugate gradients take four times as many for the larger of these."""
    cycle, rounds = running_on._cycle, []
    for size in (32, 128):
        _, alpha, _ = scene(size)
        counted: list[int] = []

        def counting(grids, right, counted=counted):
            counted.append(len(grids))
            return cycle(grids, right)

        monkeypatch.setattr(running_on, "_cycle", counting)
        run_on(torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(2)).double(), (alpha > 0).double())
        rounds.append(counted.count(max(counted)))
    assert max(rounds) < 20, rounds


# ---- layers ----


def test_a_known_opacity_gives_the_layers_back(tiny):
    picture, alpha, background = scene()
    found = decompose(tiny, picture[0].float(), mask=alpha[0].float())
    assert found.consistency < 1e-9
    assert (found.background - background).abs().max() < 1e-5
    truth = alpha * torch.tensor([0.9, 0.1, 0.2], dtype=torch.float64).view(1, 3, 1, 1)
    assert (found.layer[:, :3] - truth).abs().max() < 1e-5
    clear = (alpha == 0).expand_as(picture)
    assert torch.equal(found.background[clear], found.picture[clear])


@pytest.mark.parametrize("fill", ["smooth", "model"])
def test_whatever_is_found_the_layers_together_are_the_picture(tiny, fill, monkeypatch, tmp_path):
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    alpha = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    alpha = torch.where(alpha < 0.6, torch.zeros_like(alpha), alpha)
    alpha[..., 10:20, 12:22] = 1
    alpha[..., :3, :] = 0
    call = {"background": "blue", **CALL} if fill == "model" else {}
    monkeypatch.setattr(module, "GROWN", 0)
    found = decompose(tiny, picture[0], mask=alpha[0], fill=fill, **call)
    assert (upon(found.layer, found.background) - found.picture).abs().max() < 1e-12
    assert ((found.background >= 0) & (found.background <= 1)).all()
    stack = read_openraster(write_openraster(tmp_path / "a.ora", found.stack()))
    error = (to_tensor(stack.flatten())[:, :3] - picture).abs()
    exact = ((alpha == 0) | (alpha == 1)).expand_as(error)
    assert error[exact].max() < 0.51 / 255 and error.max() < 2.01 / 255  # 8 bits, in two layers where both are seen


def test_the_model_paints_what_was_hidden_and_it_runs_on(tiny):
    picture, alpha, _ = scene()
    given = {"mask": alpha[0].float(), "fill": "model", "background": "blue", **CALL}
    one, other = decompose(tiny, picture[0].float(), **given), decompose(tiny, picture[0].float(), **{**given, "seed": 4})
    assert (one.background - other.background).abs().max() > 0.01 and one.consistency < 1e-9
    hole = (torch.nn.functional.max_pool2d(alpha, 5, 1, 2) > 0).double()
    plain = tiny("blue", image=picture[0].float(), mask=hole[0].float(), output_type="pt", **CALL).images.double()
    hidden = (alpha == 1).expand_as(picture)
    assert torch.allclose(one.background[hidden], run_on(one.picture, hole, plain)[hidden], atol=1e-6)


class Finds(torch.nn.Module):
    """Opaque where red leads."""

    def __init__(self):
        super().__init__()
        self.config = type("Config", (), {"size": 128})
        self.scale = torch.nn.Parameter(torch.tensor(1.0))

    def separate(self, pictures: Tensor, latents: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (pictures[:, :1] > 0.85).float(), torch.zeros_like(pictures)


@pytest.fixture
def finds(monkeypatch):
    monkeypatch.setattr(module, "open_transparency", lambda *given: OpenedTransparency(Finds(), "0" * 64))


def test_the_thing_is_found_where_no_mask_is_given(tiny, finds):
    picture, alpha, background = scene()
    found = decompose(tiny, picture[0].float())
    assert torch.equal(found.layer[:, 3:] == 1, picture[:, :1].float() > 0.85)
    assert found.consistency < 1e-9 and (found.background - background)[(alpha == 1).expand_as(picture)].abs().max() < 0.05


def test_parts_that_hang_together():
    inside = torch.zeros(1, 1, 6, 7, dtype=torch.bool)
    inside[0, 0, 0, 0] = inside[0, 0, 1, 1] = inside[0, 0, 2, 1] = inside[0, 0, 4, 5] = inside[0, 0, 5, 6] = True
    found = connected(inside)[0, 0]
    assert found.max() == 2 and found[0, 0] == found[1, 1] == found[2, 1] != found[4, 5] == found[5, 6]
    assert ((found > 0) == inside[0, 0]).all()


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_parts_are_those_of_a_flood(share):
    """In the order of their first pixels, also where they wind and meet late."""
    inside = torch.rand(30, 41, generator=torch.Generator().manual_seed(1)) < share
    inside[::4], inside[:, 40] = True, True
    expected, number = torch.zeros(30, 41, dtype=torch.long), 0
    for start in map(tuple, inside.nonzero().tolist()):
        if expected[start]:
            continue
        number, left = number + 1, [start]
        expected[start] = number
        while left:
            y, x = left.pop()
            for at in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
                if 0 <= at[0] < 30 and 0 <= at[1] < 41 and inside[at] and not expected[at]:
                    expected[at] = number
                    left.append(at)
    assert torch.equal(connected(inside[None, None])[0, 0], expected)
    assert not connected(torch.zeros(1, 1, 3, 4, dtype=torch.bool)).any()


def changes(monkeypatch, generator, first: int, end: int) -> None:
    """Make a prompt change the clean latents of these rows of 8, and no others."""
    said, path = object(), generator.denoiser.path

    def denoise(x, level, condition, context):
        x0 = torch.zeros_like(x)
        x0[:, :, first:end] = 1.0 if condition is said else 0.0
        return SimpleNamespace(x0=x0)

    denoise.path = path
    monkeypatch.setattr(generator, "denoiser", denoise)
    monkeypatch.setattr(generator, "encode_prompt", lambda texts, *rest: said if texts[0] else None)


def test_a_prompt_chooses_among_things(tiny, finds, monkeypatch):
    """The thing whose clean latents the prompt changes most is kept, with its faint edge, and the other is not."""
    picture = torch.full((3, 32, 32), 0.3)
    picture[0, 4:12, 4:12], picture[0, 20:28, 18:28] = 0.9, 0.95
    changes(monkeypatch, tiny, 4, 8)
    found = decompose(tiny, picture, prompt="a red heart")
    kept = found.layer[0, 3]
    assert (kept[20:28, 18:28] == 1).all() and not kept[:16].any()


def test_a_prompt_that_chooses_nothing_is_told(tiny, monkeypatch):
    picture, alpha = torch.full((1, 3, 32, 32), 0.3), torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    alpha[..., 2:10, 4:12] = 1
    with pytest.warns(UserWarning, match="Only one thing stands before the background, and it is kept whether or not it is 'a"):
        assert named(tiny, picture, alpha, "a cat").all()
    alpha[..., 2:10, 18:28] = 1
    changes(monkeypatch, tiny, 5, 8)
    with pytest.warns(UserWarning, match="changes the background more than any of the 2 things, so it may name none of them"):
        named(tiny, picture, alpha, "a cat")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        changes(monkeypatch, tiny, 0, 3)
        assert named(tiny, picture, alpha, "a cat").any()


def test_a_model_that_reads_its_scale_chooses_too():
    """As the packaged student does."""
    alpha = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    alpha[..., 4:20, 4:20] = alpha[..., 40:60, 40:60] = 1
    kept = named(Generator.from_pretrained("fast", device="cpu"), torch.full((1, 3, 64, 64), 0.5), alpha, "a cat")
    assert 0 < kept.sum() <= alpha.sum() and torch.equal(kept, kept.round())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"fill": "modell"}, "did you mean 'model'"),
        ({"background": "sky"}, "fill='model'"),
        ({"seed": 3}, "seed is for the model"),
        ({"mask": torch.ones(1, 32, 32), "prompt": "a cat"}, "give one of them"),
        ({"mask": torch.zeros(1, 32, 32)}, "Nothing of the mask is white"),
        ({"mask": torch.ones(1, 32, 32)}, "covers the whole picture"),
        ({"mask": torch.ones(1, 32, 90)}, "another shape"),
    ],
)
def test_what_is_refused(tiny, given, says):
    with pytest.raises(ValueError, match=says):
        decompose(tiny, torch.rand(3, 32, 32), **given)


def test_the_command_writes_layers_and_reads_them(tmp_path, tiny_model, capsys):
    import typer
    from typer.main import get_command

    app = typer.Typer()
    app.command()(command)
    picture, alpha, _ = scene()
    for name, values in (("in.png", picture), ("mask.png", alpha.expand(1, 3, -1, -1))):
        Image.fromarray((values[0].permute(1, 2, 0) * 255).round().byte().numpy()).save(tmp_path / name)

    def run(*arguments: object) -> str:
        get_command(app).main([str(one) for one in arguments], standalone_mode=False)
        return capsys.readouterr().out

    given = (tmp_path / "in.png", "--mask", tmp_path / "mask.png", "--model", tiny_model, "--quiet")
    assert run(*given, "--out", tmp_path / "out.ora").strip() == str(tmp_path / "out.ora")
    flat = run(tmp_path / "out.ora", "--flatten", "--out", tmp_path / "flat.png").strip()
    with Image.open(flat) as back, Image.open(tmp_path / "in.png") as before:
        assert np.abs(np.asarray(back.convert("RGB")).astype(int) - np.asarray(before)).max() <= 2
    with Image.open(run(tmp_path / "out.ora", "--flatten", "--out", tmp_path / "flat.jpg").strip()) as opaque:
        assert opaque.size == (32, 32)
    with pytest.raises(ValueError, match="leave --prompt out"):
        run(tmp_path / "out.ora", "--prompt", "a cat")
    names = run(*given, "--out", tmp_path / "parts").split()
    assert [name.rsplit("/", 1)[1] for name in names] == ["0-background.png", "1-in.png"]
    with Image.open(names[1]) as thing:
        assert thing.mode == "RGBA"
