"""The packages that the emoji data is made from: pinned versions, digests, licences, and how a file of one is read.

Packages are npm tarballs. They are read member by member and never unpacked, so that no path inside one is ever used, and
each is checked against its sha512 before anything in it is looked at.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.data.errors import DataError
from gen.io.errors import opened

MEMBER_LIMIT = 1 << 28  # bytes; the largest member in use is about a third of this


@dataclass(frozen=True)
class Package:
    """An npm package at one version; `sha512` is the hexadecimal digest of its tarball."""

    name: str
    version: str
    licence: str
    sha512: str

    @property
    def file(self) -> str:
        """The name that `npm pack` gives the tarball."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


@dataclass(frozen=True)
class Pack(Package):
    """A package of SVG pictures. `family` says what they may be used for, `style` how captions call their look. numbered: it
    has several drawings of one thing, which it calls name, name-1, name-2."""

    slug: str
    family: str
    style: str
    numbered: bool = False


# train: Apache-2.0 and MIT, the only family that a published generator is trained on and that is shipped.
# evaluator: a network that scores pictures may see it too. more: further drawings for training, whose licence (CC-BY-4.0, as
# the evaluator's) asks for attribution. test: never trained on. lora: kept for adapter demonstrations.
FAMILIES = ("train", "evaluator", "more", "test", "lora")

PACKS = (
    Pack(
        "@iconify-json/noto",
        "1.2.9",
        "Apache-2.0",
        "0d08ae5c435bba7e35721f973d2579e47f456962a91d3cb3e3a6082ad49a2980f87c80c3ccbd6d47a1f89e9fd3dfc8dfad301e237adc285d26a8761e65502e6b",
        "noto",
        "train",
        "noto",
    ),
    Pack(
        "@iconify-json/noto-v1",
        "1.2.5",
        "Apache-2.0",
        "fc3b15322bacebd4347d14b9df3ed02b54d1392b9aafad3a8e2231fa5697b5db1818c5e97fa2ed1c1c7a0867e8a375071dbfd7a41b30fb52f5c777b23ea32e54",
        "noto-v1",
        "train",
        "blob",
    ),
    Pack(
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "MIT",
        "0fc1ba6ca03222ccb13f5af366d216aff820fdf3b8460d7e0f209695fa8a2b887c5bee049bf6343fa4188095104e551c6a0cc9bd2ca0fbd381bf8873e0773f40",
        "fluent-emoji",
        "train",
        "3d",
    ),
    Pack(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "MIT",
        "458e3b4603dbe3b7d8522cab03ae2c20e2f4f94534dacdbdb17a4d05b2104415253e57cd1532949990c4446bb10ecffbc8d196a9062fb9a4983353387d15e553",
        "fluent-emoji-flat",
        "train",
        "fluent",
    ),
    Pack(
        "@iconify-json/fxemoji",
        "1.2.2",
        "Apache-2.0",
        "5006ac45ac7315429f2064a62f09e86abb2cb00e0b5f454b2ee126a6522a33a64d42a21046d6aff2d6781f59de4e506b797b8c4320227ebe633f8927efc0e989",
        "fxemoji",
        "train",
        "firefox",
    ),
    Pack(
        "@iconify-json/twemoji",
        "1.2.5",
        "CC-BY-4.0",
        "b8aa6e204574bfa2b9056dcc8ddca5f972855406db70fc408227cabc432d668519079f98898e7368c9b6b8d342c725f301653dc8d2e58f8d5653afe6be000bb3",
        "twemoji",
        "evaluator",
        "twemoji",
    ),
    Pack(
        "@iconify-json/streamline-emojis",
        "1.2.4",
        "CC-BY-4.0",
        "88dafd4fd5ee6554f240f24ef1994bc41ccf9298bba8c97ecf59740b7d6fa4432a84f31e96d8779fb09e59062d8b175eb433dd23cd72786e113aa8d6a58244e8",
        "streamline-emojis",
        "more",
        "streamline",
        numbered=True,
    ),
    Pack(
        "@iconify-json/emojione",
        "1.2.3",
        "CC-BY-4.0",
        "4fdf93dc721b24d2ca2ac9b160a95a621be71d8933fc73584d5ed21c25d564f7de522e05aac918ef461e37cc980194fc702bfbc39bc9c52e10d66f336fd08c32",
        "emojione",
        "test",
        "emojione",
    ),
    Pack(
        "@iconify-json/emojione-v1",
        "1.2.3",
        "CC-BY-SA-4.0",
        "52323655011756d1a53c1bd0bb1122ceba3b4028017090ce630294ba9aaebef67c515e313a5be6e39214f3625859e8220162dead8efd8052cc676e94e8cb3ec3",
        "emojione-v1",
        "test",
        "emojione classic",
    ),
    Pack(
        "@iconify-json/openmoji",
        "1.2.29",
        "CC-BY-SA-4.0",
        "bd776192a7175523bab2ecbe9bd2db71433739d572b8d3ada55f3f6a5b3f5aa7e44084717af2f919e6ff83ee861ff4309ead4eaa4b0499a0c64c2999e6714a25",
        "openmoji",
        "lora",
        "openmoji",
    ),
)

NAMES = Package(
    "emojibase-data",
    "17.0.0",
    "MIT",
    "62f81be405a81d588757f82ad6aaf96406ab7018a9f81dbbfd92d1b142646e000468b959fdfa1ff60f3cd8b4e9984a728413440b49b6484988b658c7b13ca08c",
)
KEYWORDS = Package(
    "emojilib",
    "4.0.3",
    "MIT",
    "29b5a262b7bd69149a3db1eb1d9233f739a833edb52c0b0ad55149b674e1d550ad584feb34c0ef8868504e6b1e94597de5d86ab46958db6887d25786e41b96d2",
)


def locate(package: Package, folder: Path) -> Path:
    """The tarball of a package in `folder`, after its digest has been compared with the pinned one."""
    path = folder / package.file
    if not path.is_file():
        raise DataError(f"{path} is missing; run `npm pack {package.name}@{package.version}` in that folder.")
    with opened(path) as file:
        digest = hashlib.file_digest(file, "sha512").hexdigest()
    if digest != package.sha512:
        raise DataError(
            f"{path} has sha512 {digest[:16]}..., but {package.name} {package.version} has {package.sha512[:16]}...; "
            "delete the file and fetch it again."
        )
    return path


def fetch(packages: Sequence[Package], folder: Path) -> None:
    """Bring packages into `folder` with `npm pack`; no script of any package is run."""
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed; install it, or fetch the packages elsewhere and give --packages FOLDER.")
    specs = [f"{package.name}@{package.version}" for package in packages]
    done = subprocess.run([npm, "pack", "--ignore-scripts", "--pack-destination", str(folder), *specs], capture_output=True)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise DataError(f"npm pack failed for {', '.join(specs)}: {reason[-1]}")


def read_members(path: Path, members: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """The named JSON members of a tarball (names below `package/`); every other member is passed over unread."""
    wanted, members_read = {f"package/{name}": name for name in (*members, *optional)}, {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                name = wanted.get(member.name)
                if name is None:
                    continue
                if not member.isreg() or name in members_read:
                    raise DataError(f"{path}: {member.name} is a link or appears twice, which no published package does.")
                if member.size > MEMBER_LIMIT:
                    raise DataError(f"{path}: {member.name} is larger than {MEMBER_LIMIT >> 20} MiB.")
                members_read[name] = json.loads(tar.extractfile(member).read())  # type: ignore[union-attr]  # a regular file has contents
    except (tarfile.TarError, OSError, EOFError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read: {error}.") from None
    missing = [name for name in members if name not in members_read]
    if missing:
        raise DataError(f"{path} has no {', '.join(missing)}.")
    return members_read
