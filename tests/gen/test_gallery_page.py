"""The page of a folder: every picture and recipe on it, nothing of a hostile file running, no other file replaced."""

from __future__ import annotations

import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gen.cli import app as cli
from gen.pipeline.png import save_image
from tests.gen.test_recipe import PICTURE, make

HOSTILE = "<script>alert(1)</script>\" onerror='alert(2)' <img src=x onerror=alert(3)> </td></table> \x1b[31m {prompt} &amp;"


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def gallery(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main(["gallery", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def folder(tmp_path) -> Path:
    """Our own in three formats, another program's, one without a recipe, a damaged one, and files that are no pictures."""
    folder = tmp_path / "pictures"
    (folder / "within").mkdir(parents=True)
    for number, suffix in enumerate((".png", ".jpg", ".webp")):
        save_image(PICTURE, folder / f"own{suffix}", make(prompt=f"a red heart {suffix}"))
        os.utime(folder / f"own{suffix}", (number, number))
    info = PngInfo()
    info.add_text("parameters", f"{HOSTILE}\nSteps: 20, Sampler: Euler a, Seed: 7, Size: 8x8")
    PICTURE.save(folder / "other <b>&#'.png", pnginfo=info)
    PICTURE.save(folder / "bare.gif")
    save_image(PICTURE, folder / "within" / "deep.png", make(prompt="deep down"))
    (folder / "broken.png").write_bytes((folder / "own.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("a red heart")
    (folder / ".hidden.png").write_bytes((folder / "own.png").read_bytes())
    return folder


def test_every_picture_is_on_the_page(gallery, folder):
    code, out, err = gallery("pictures")
    assert code == 0 and out == f"{Path('pictures/gallery.html')}\n" and "5 pictures" in err
    assert "left out" in err and "broken.png" in err
    page = Page((folder / "gallery.html").read_text())
    links = [unquote(attributes["href"]) for tag, attributes in page.tags if tag == "a"]
    assert set(links) == {"./own.png", "./own.jpg", "./own.webp", "./other <b>&#'.png", "./bare.gif"}
    assert links.index("./own.webp") < links.index("./own.jpg") < links.index("./own.png")  # newest first
    assert all((folder / link).is_file() for link in links)
    text = "".join(page.words)
    assert "a red heart .jpg" in text and "Euler a" in text and "num inference steps" in text and "dpmpp_2m" in text
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 5 and all(source.startswith("data:image/webp;base64,") for source in sources)


def test_hostile_texts_stay_texts(gallery, folder):
    gallery("pictures", "-q")
    text = (folder / "gallery.html").read_text()
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "alert(1)" in "".join(page.words) and "\x1b" not in text
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "Content-Security" in (a.get("http-equiv") or ""))
    assert "default-src 'none'" in policy and "'unsafe-inline'; script-src 'sha256-" in policy
    assert not re.findall(r"https?://", text)  # nothing from elsewhere


def test_a_gallery_is_replaced_and_nothing_else(gallery, folder):
    gallery("pictures", "-q")
    (folder / "bare.gif").unlink()
    assert gallery("pictures")[0] == 0 and "bare.gif" not in (folder / "gallery.html").read_text()
    Path("mine.html").write_text("mine")
    code, _, err = gallery("pictures", "-o", "mine.html")
    assert code == 2 and "no gallery of fewstep's" in err and Path("mine.html").read_text() == "mine"
    Path("link.html").symlink_to("mine.html")
    assert gallery("pictures", "-o", "link.html")[0] == 2 and Path("mine.html").read_text() == "mine"


def test_folders_within_and_a_sheet(gallery, folder):
    code, out, _ = gallery("pictures", "-r", "-o", "out/all.html", "--sheet", "sheet.png")
    assert code == 0 and out.split() == [str(Path("out/all.html")), "sheet.png"]
    page = Page(Path("out/all.html").read_text())
    links = [unquote(attributes["href"]) for tag, attributes in page.tags if tag == "a"]
    assert "./../pictures/within/deep.png" in links and all(Path("out", link).is_file() for link in links)
    assert Image.open("sheet.png").width > 2 * PICTURE.width


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "none is not a folder"),
        (["empty"], "holds no pictures"),
        (["broken"], "None of the 1 pictures"),
        (["pictures", "-o", "x.png"], "ends in .html"),
        (["pictures", "--sheet", "x.gif"], "ends in .png"),
    ],
)
def test_what_cannot_be_is_a_sentence(gallery, folder, arguments, message):
    Path("empty").mkdir()
    Path("broken").mkdir()
    shutil.copy(folder / "broken.png", "broken/x.png")
    code, out, err = gallery(*arguments, "-q")
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1 and "defect" not in err
