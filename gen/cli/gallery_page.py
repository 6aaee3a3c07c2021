"""The HTML of `fewstep gallery`. What stands in files is text to it: escaped, and kept from running by its own policy."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from gen.io.errors import printable

if TYPE_CHECKING:
    from PIL.Image import Image

MARK = "<!-- a gallery made by fewstep -->"  # such a file is replaced by the next one
STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.4 system-ui,sans-serif;margin:0 auto;max-width:1400px;padding:1rem}
header{position:sticky;top:0;background:Canvas;padding:.5rem 0;display:flex;gap:1rem;align-items:baseline;flex-wrap:wrap}
h1{font-size:1.1rem;margin:0}
input{font:inherit;padding:.3rem .5rem;flex:1;min-width:12rem}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:1rem}
figure{margin:0;overflow-wrap:anywhere}
img{width:100%;height:auto;display:block;background:#8882}
figcaption{padding:.3rem 0}
summary{cursor:pointer;color:GrayText;font-size:.85rem}
table{font-size:.8rem;border-collapse:collapse}
th{overflow-wrap:normal;text-align:left;font-weight:normal;color:GrayText;padding-right:.5rem;vertical-align:top}
td{white-space:pre-wrap}
[hidden]{display:none}
"""
SCRIPT = """
const find=document.querySelector('input'),count=document.querySelector('output');
const all=[...document.querySelectorAll('figure')].map(f=>[f,f.textContent.toLowerCase()]);
find.addEventListener('input',()=>{
  const words=find.value.toLowerCase().split(/\\s+/).filter(Boolean);let n=0;
  for(const [figure,text] of all){const ok=words.every(w=>text.includes(w));figure.hidden=!ok;n+=ok}
  count.textContent=n+' of '+all.length;
});
"""


def page(title: str, place: Path, entries: Sequence[tuple[Path, Image, dict[str, str]]]) -> str:
    """A page.

    title: above it.
    place: the folder that it will lie in, from which it links to the pictures.
    entries: (file, small copy, names and values of its recipe) of each picture.
    """
    allowed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; base-uri 'none'"
    figures = "\n".join(_figure(place, *entry) for entry in entries)
    return f"""<!DOCTYPE html>
{MARK}
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="{policy}"><meta name="referrer" content="no-referrer">
<title>{_text(title)}</title><style>{STYLE}</style></head><body>
<header><h1>{_text(title)}</h1><input type="search" placeholder="Words of prompts and settings" aria-label="Search">
<output>{len(entries)}</output></header>
<main>
{figures}
</main><script>{SCRIPT}</script></body></html>
"""


def _figure(place: Path, file: Path, small: Image, rows: dict[str, str]) -> str:
    link = quote(Path(os.path.relpath(file.absolute(), place.absolute())).as_posix().encode("utf-8", "surrogateescape"))
    prompt = rows.get("prompt", rows.get("Prompt", ""))
    cells = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows.items())
    recipe = f"<details><summary>{_text(file.name)}</summary><table>{cells}</table></details>"
    return (
        f'<figure><a href="./{link}"><img src="{_data(small)}" width="{small.width}" height="{small.height}" '
        f'alt="{_text(prompt)}" loading="lazy"></a><figcaption>{_text(prompt)}</figcaption>{recipe}</figure>'
    )


def _text(value: str) -> str:
    """Control characters and half surrogates written out, then escaped."""
    return escape(printable(value).encode("utf-8", "backslashreplace").decode())


def _data(image: Image) -> str:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
