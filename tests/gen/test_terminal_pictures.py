"""Pictures in terminals: each protocol's bytes, read back; half blocks; previews that leave the cursor where it was."""

from __future__ import annotations

import base64
import io
import os
import re

import pytest
from PIL import Image

from gen.cli import app as cli
from gen.cli.live_preview import LivePreview
from gen.cli.sixel import sixel
from gen.cli.terminal_pictures import blocks, choose, detect, iterm, kitty

PICTURE = Image.new("RGB", (40, 30), (200, 10, 30))


def test_what_a_terminal_shows_is_told_from_what_it_says():
    def of(**environment: str) -> str:
        return detect(environment, terminal=True)

    assert of(TERM="xterm-kitty") == of(KITTY_WINDOW_ID="1") == of(TERM_PROGRAM="ghostty") == "kitty"
    assert of(TERM_PROGRAM="iTerm.app") == of(LC_TERMINAL="iTerm2") == of(TERM_PROGRAM="WezTerm") == "iterm"
    assert of(TERM="xterm-256color", COLORTERM="truecolor") == "blocks"
    assert of(TERM="xterm-256color") == "blocks256" and of(TERM="dumb") == of() == of(TERM="vt100") == "none"
    assert of(TERM="tmux-256color", TMUX="x", KITTY_WINDOW_ID="1", COLORTERM="truecolor") == "blocks"  # passes none on
    assert detect({"TERM": "xterm-kitty"}, terminal=False) == "none"
    assert of(TERM="foot") == of(TERM="xterm-sixel") == of(KONSOLE_VERSION="230400") == of(MLTERM="3.9") == "sixel"
    assert of(KONSOLE_VERSION="210400", COLORTERM="truecolor") == of(TERM="foot", TMUX="x", COLORTERM="truecolor") == "blocks"
    with pytest.raises(ValueError, match="--preview is 'regis'"):
        choose("regis")


def test_kitty_gets_the_picture_in_chunks():
    noise = Image.effect_noise((200, 200), 90)
    messages = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", kitty(noise))
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in messages) == kitty(noise)
    assert [keys for keys, _ in messages] == ["a=T,f=100,q=2,m=1", *["m=1"] * (len(messages) - 2), "m=0"]
    assert len(messages) > 3 and all(len(data) <= 4096 for _, data in messages)
    with Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in messages)))) as sent:
        assert sent.tobytes() == noise.tobytes()


def test_iterm_gets_a_file():
    found = re.fullmatch(r"\x1b\]1337;File=inline=1;size=(\d+);preserveAspectRatio=1:([^\x07]*)\x07", iterm(PICTURE))
    data = base64.b64decode(found[2])
    assert len(data) == int(found[1]) and Image.open(io.BytesIO(data)).size == (40, 30)


def test_half_blocks_are_two_pixels_each():
    picture = Image.new("RGB", (3, 3))
    picture.putdata([(i * 20, 255 - i * 20, i) for i in range(9)])
    lines = blocks(picture, 80).split("\n")
    cells = [re.findall(r"\x1b\[38;2;(\d+);(\d+);(\d+);(?:48;2;(\d+);(\d+);(\d+)|49)m▀", line) for line in lines]
    assert [len(row) for row in cells] == [3, 3] and all(line.endswith("\x1b[0m") for line in lines)
    for y in range(3):
        for x in range(3):
            values = cells[y // 2][x][3 * (y % 2) : 3 * (y % 2) + 3]
            assert tuple(map(int, values)) == picture.getpixel((x, y))
    assert len(blocks(PICTURE, 20).split("\n")) == 8 and "38;5;160" in blocks(Image.new("RGB", (2, 2), (215, 0, 0)), 2, False)


def seen_through_sixels(text: str) -> tuple[list[list[tuple[int, ...] | None]], tuple[int, int]]:
    """What a terminal shows of sixels: rows of colours, None where nothing was drawn, and the size that was announced."""
    body = re.fullmatch(r"\x1bP[\d;]*q(.*)\x1b\\", text, re.DOTALL)[1]
    colours, place, pixels, colour, size = {}, [0, 0], {}, 0, (0, 0)
    for token in re.finditer(r'"1;1;(\d+);(\d+)|#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|(?:!(\d+))?([?-~])|([$-])', body):
        wide, tall, register, red, green, blue, chosen, count, sixel_, end = token.groups()
        if wide:
            size = int(wide), int(tall)
        elif register:
            colours[int(register)] = tuple(round(int(part) * 2.55) for part in (red, green, blue))
        elif chosen:
            colour = int(chosen)
        elif end:
            place = [0, place[1]] if end == "$" else [0, place[1] + 6]
        else:
            for _ in range(int(count or 1)):
                for bit in range(6):
                    if ord(sixel_) - 63 >> bit & 1:
                        pixels[place[0], place[1] + bit] = colours[colour]
                place[0] += 1
    assert "".join(token[0] for token in re.finditer(r"[^\s]", body)) == body  # nothing else stands in it
    return [[pixels.get((x, y)) for x in range(size[0])] for y in range(size[1])], size


@pytest.mark.parametrize("size", [(1, 1), (7, 6), (40, 31)])
def test_sixels_are_the_picture(size):
    picture = Image.new("RGB", size)
    picture.putdata([(40 * (i % 7), 255 - 60 * (i % 3), 30 * (i % 5)) for i in range(size[0] * size[1])])
    shown, announced = seen_through_sixels(sixel(picture))
    assert announced == size
    for y in range(size[1]):
        for x in range(size[0]):
            assert shown[y][x] == pytest.approx(picture.getpixel((x, y)), abs=2)  # hundredths of 255


def test_sixels_of_many_colours_stay_near():
    noise = Image.merge("RGB", [Image.effect_noise((64, 50), 60)] * 3)
    shown, _ = seen_through_sixels(sixel(noise))
    far = [abs(shown[y][x][0] - noise.getpixel((x, y))[0]) for y in range(50) for x in range(64)]
    assert max(far) <= 8 and len({colour for row in shown for colour in row}) > 60


def cursor_after(text: str, height: int) -> tuple[int, int]:
    """(how many lines the screen scrolled, the line of the cursor) of a terminal whose cursor was on its last line."""
    line, scrolled, saved = height - 1, 0, 0
    for token in re.finditer(r"\x1b\[(\d+)A|\x1b([78])|(\n)", re.sub(r"\x1b(?:_G|P|\]).*?(?:\x1b\\|\x07)", "", text)):
        up, cursor, newline = token.groups()
        if up:
            line -= int(up)
        elif cursor:
            saved, line = (line, line) if cursor == "7" else (saved, saved)
        elif newline:
            line, scrolled = min(line + 1, height - 1), scrolled + (line == height - 1)
    return scrolled, line


@pytest.mark.parametrize("kind", ["blocks", "blocks256", "kitty", "iterm", "sixel"])
def test_previews_leave_the_cursor_in_its_line(kind, monkeypatch):
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((100, 40)))
    monkeypatch.setattr("gen.cli.live_preview.cell_height", lambda file: 10)
    file = io.StringIO()
    live = LivePreview(kind, file)
    live.show(PICTURE)
    lines = 15 if kind.startswith("blocks") else 3
    assert cursor_after(file.getvalue(), 40) == (lines + 1, 40 - 1 - lines - 1)
    live.close()
    assert file.getvalue().endswith("\x1b[J") and live.shown == 1
    for too_small in ((100, lines + 1), (0, 0)):
        monkeypatch.setattr("shutil.get_terminal_size", lambda size=too_small: os.terminal_size(size))
        live.show(PICTURE)
    assert live.shown == 1
    assert LivePreview("none", file).show(PICTURE) is None


def test_previews_come_while_it_draws(tiny, monkeypatch):
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((100, 40)))
    file = io.StringIO()
    live = LivePreview("blocks", file, every=0)
    call = {"num_inference_steps": 3, "seed": 1, "progress": False}
    watched = tiny("a cat", **call, callback_on_step_end=live, callback_on_step_end_tensor_inputs=("denoised",))
    assert live.shown == 3 and file.getvalue().count("▀") == 3 * 32 * 16  # as large as the picture
    assert watched.images[0].tobytes() == tiny("a cat", **call).images[0].tobytes()


def test_a_model_without_previews_is_drawn_all_the_same(tiny, monkeypatch):
    monkeypatch.setattr("gen.generator.Generator.preview", lambda *_: (_ for _ in ()).throw(ValueError("its own layout")))
    live = LivePreview("blocks", io.StringIO(), every=0)
    watched = {"callback_on_step_end": live, "callback_on_step_end_tensor_inputs": ("denoised",)}
    assert len(tiny("a cat", num_inference_steps=2, seed=1, progress=False, **watched).images) == 1 and live.shown == 0


def test_image_shows_pictures(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["image", "a cat", "--seed", "1", "--steps", "1", "--model", str(tiny_model), "--show"]
    assert cli.main(arguments) == 0
    assert "does not say that it can show pictures" in capsys.readouterr().err
    monkeypatch.setattr("gen.cli.terminal_pictures.detect", lambda: "blocks")
    assert cli.main(arguments) == 0
    said = capsys.readouterr()
    assert said.out == "a-cat-1-1.png\n" and said.err.count("▀") == 32 * 16
