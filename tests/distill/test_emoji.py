"""The emoji data: what the build accepts, what a variant looks like, what captions say, and that all of it is pure."""

import colorsys
import hashlib
import io
import json
import random
import re
import tarfile
import zipfile
from dataclasses import replace

import pytest
import torch

from distill.data import make_source
from distill.data.emoji import build as building
from distill.data.emoji import concepts as concepts_module
from distill.data.emoji.archive import read_archive
from distill.data.emoji.captions import HELD_OUT, article, held_out_colours, read_common, without_colour
from distill.data.emoji.concepts import read_concepts
from distill.data.emoji.data import EmojiConfig, EmojiData, Variant
from distill.data.emoji.packs import KEYWORDS, NAMES, PACKS, Pack, read_members
from distill.data.emoji.recolor import BACKGROUNDS, COLOURS, hsv_to_rgb, measure, recolour, rgb_to_hsv
from distill.data.errors import DataError

DISC = '<circle cx="16" cy="16" r="12" fill="#d02020"/>'
EMOJI = [  # code, character, label, group, subgroup
    ("1F600", "\U0001f600", "grinning face", 0, 0),
    ("2764-FE0F", "\u2764\ufe0f", "red heart", 0, 0),
    ("1F697", "\U0001f697", "automobile", 1, 1),
    ("1F3E0", "\U0001f3e0", "house", 1, 1),
    ("1F46E", "\U0001f46e", "police officer", 2, 2),
]


def tarball(path, members, links=()):
    """Write a .tgz of {name: bytes} and of symbolic links; returns its sha512."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    return hashlib.sha512(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder of small packages, and the pack in it."""
    folder = tmp_path_factory.mktemp("packages")
    data = [{"hexcode": c, "emoji": e, "label": n, "group": g, "subgroup": s, "tags": []} for c, e, n, g, s in EMOJI]
    groups = {
        "groups": {"0": "smileys-emotion", "1": "travel-places", "2": "people-body"},
        "subgroups": {"0": "face-smiling", "1": "place-building", "2": "person-role"},
    }
    codes = {"1F697": ["car", "red_car"], "2764": "heart"}
    base = {"en/data.json": data, "meta/groups.json": groups}
    base |= {f"en/shortcodes/{name}.json": codes for name in concepts_module.SHORTCODES}
    encode = lambda files: {f"package/{name}": json.dumps(value).encode() for name, value in files.items()}  # noqa: E731
    names = replace(NAMES, sha512=tarball(folder / NAMES.file, encode(base)))
    keywords = {"dist/emoji-en-US.json": {"\U0001f697": ["automobile", "motor car"]}}
    words = replace(KEYWORDS, sha512=tarball(folder / KEYWORDS.file, encode(keywords)))

    icons = {
        "grinning-face": {"body": '<image href="file:///etc/passwd" width="32" height="32"/>'},
        "red-heart": {"body": DISC, "width": 16, "height": 32},
        "automobile": {"body": DISC},
        "house": {"body": '<circle cx="16" cy='},
        "police-officer": {"body": DISC},
        "automobile-dark": {"body": DISC},
        "old-car": {"body": DISC, "hidden": True},
    }
    pack = replace(PACKS[0], slug="fake", style="fake", sha512="")
    members = encode({"icons.json": {"icons": icons, "width": 32, "height": 32}})
    hostile = {"/package/icons.json": b"{}", "package/../../icons.json": b"{}", "../chars.json": b"{}"}
    pack = replace(pack, sha512=tarball(folder / pack.file, hostile | members, links=["package/link"]))
    return folder, pack, names, words


@pytest.fixture(scope="module")
def fake_build(packages):
    """(folder of packages, a function that builds into a folder, a pack)."""
    folder, pack, names, words = packages
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(concepts_module, "NAMES", names)
        patch.setattr(concepts_module, "KEYWORDS", words)
        yield folder, lambda out, size=32, packs=(pack,): building.build(folder, out, ["train"], size, packs), pack


@pytest.fixture(scope="module")
def archive(fake_build, tmp_path_factory):
    out = tmp_path_factory.mktemp("built")
    fake_build[1](out)
    return out / "emoji-train.zip"


@pytest.fixture(scope="module")
def shipped():
    return EmojiData(seed=3)


# --- the build


def test_build_keeps_good_pictures_and_counts_the_rest(fake_build, tmp_path, capsys):
    fake_build[1](tmp_path)
    records, pictures, concepts = read_archive(tmp_path / "emoji-train.zip")
    assert [(r.hex, r.label, r.names) for r in records] == [
        ("1F697", "automobile", ("car", "red car")),
        ("2764", "red heart", ("heart",)),
    ]
    assert len(pictures) == 2
    assert set(concepts) == {"automobile", "house", "red heart"}
    report = capsys.readouterr().out
    for line in ("1 unsafe or malformed drawing", "1 not renderable", "1 a person", "1 hidden alias", "kept     2"):
        assert line in report
    assert sorted(p.name for p in tmp_path.iterdir()) == ["emoji-train.zip"]


def test_build_gives_the_same_bytes_twice(archive, fake_build, tmp_path):
    fake_build[1](tmp_path)
    assert (tmp_path / "emoji-train.zip").read_bytes() == archive.read_bytes()


def test_a_picture_is_square_with_a_margin(archive):
    # the heart's view box is 16 x 32 of units; a disc of radius 12 in 32 units plus 10 % is 12/35.2 of the width
    data = EmojiData(EmojiConfig(archives=[str(archive)], size=32))
    alpha = data.pictures[:, 3].float() / 255
    assert alpha[0].sum().item() == pytest.approx(torch.pi * (12 / 35.2 * 32) ** 2, rel=0.01)
    assert alpha[1].sum().item() == pytest.approx(alpha[0].sum().item() - _outside_left(), rel=0.05)


def _outside_left() -> float:
    """Area in pixels of the disc that lies right of a square view box from -9.6 to 25.6 units."""
    t = torch.linspace(25.6, 28, 1000, dtype=torch.float64)
    return 2 * torch.trapezoid((144 - (t - 16) ** 2).clamp_min(0).sqrt(), t).item() * (32 / 35.2) ** 2


def test_a_changed_package_is_refused(fake_build, tmp_path):
    _, run, pack = fake_build
    with pytest.raises(DataError, match=r"has sha512 .* delete the file and fetch it again"):
        run(tmp_path, packs=(replace(pack, sha512="0" * 128),))
    with pytest.raises(DataError, match="is missing; run `npm pack"):
        run(tmp_path, packs=(replace(pack, version="9.9.9"),))
    assert not list(tmp_path.iterdir())


def test_a_link_in_place_of_a_file_is_refused(tmp_path):
    tarball(tmp_path / "a.tgz", {}, links=["package/icons.json"])
    with pytest.raises(DataError, match="is a link or appears twice"):
        read_members(tmp_path / "a.tgz", ["icons.json"])
    tarball(tmp_path / "b.tgz", {"/package/icons.json": b"{}", "package/../package/icons.json": b"{}"})
    with pytest.raises(DataError, match=r"has no icons.json"):
        read_members(tmp_path / "b.tgz", ["icons.json"])
    (tmp_path / "c.tgz").write_bytes(b"not a tarball")
    with pytest.raises(DataError, match="cannot be read"):
        read_members(tmp_path / "c.tgz", ["icons.json"])


@pytest.mark.parametrize(
    "body",
    [
        "<script>1</script>",
        '<use xlink:href="http://x/y"/>',
        "<!DOCTYPE a>",
        '<rect fill="url(file:///a)"/>',
        '<feImage href="#a"/>',
        7,
    ],
)
def test_drawings_that_reach_outside_are_refused(body):
    assert building.svg_document({"body": body}, 32, 32) is None
    assert building.svg_document({"body": '<use href="#a"/><rect fill="url(#b)"/>'}, 32, 32) is not None


def test_concepts_have_clean_names(fake_build):
    concepts = read_concepts(fake_build[0])
    assert concepts["2764"].label == "red heart"
    assert concepts["1F697"].keywords == ("automobile", "motor car")
    assert concepts["1F46E"].excluded == "a person"


def test_a_broken_archive_is_refused(archive, tmp_path):
    (tmp_path / "no.zip").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as an emoji archive"):
        read_archive(tmp_path / "no.zip")
    with zipfile.ZipFile(archive) as good, zipfile.ZipFile(tmp_path / "path.zip", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, good.read(name).replace(b"images/fake/1F697", b"images/../../1F697"))
    with pytest.raises(DataError, match="is not a picture's name"):
        read_archive(tmp_path / "path.zip")
    with zipfile.ZipFile(archive) as good, zipfile.ZipFile(tmp_path / "picture.zip", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, b"GIF89a" if name.endswith("1F697.webp") else good.read(name))
    with pytest.raises(DataError, match=r"1F697.webp is not a usable WebP picture"):
        EmojiData(EmojiConfig(archives=[str(tmp_path / "picture.zip")], size=32))


# --- pictures


def test_rendering_on_white_is_alpha_compositing(shipped):
    index = [5, 700, 4000]
    images = shipped.render([Variant(i) for i in index])
    rgba = shipped.pictures[index].double() / 255
    expected = rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]
    assert torch.allclose(images.double(), 2 * expected - 1, atol=1e-6)
    assert images.dtype == torch.float32 and images.shape == (3, 3, 128, 128)
    blue = torch.tensor(BACKGROUNDS["blue"]).double() / 255
    expected = rgba[:1, :3] * rgba[:1, 3:] + blue[:, None, None] * (1 - rgba[:1, 3:])
    assert torch.allclose(shipped.render([Variant(5, None, "blue")]).double(), 2 * expected - 1, atol=1e-6)


def test_hsv_agrees_with_the_standard_library():
    rgb = torch.randint(0, 256, (1, 3, 40, 40), generator=torch.Generator().manual_seed(0)).double() / 255
    rgb[0, :, 0, :4] = torch.tensor([[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0]]).double().T
    hue, saturation, value = rgb_to_hsv(rgb)
    expected = [colorsys.rgb_to_hsv(*pixel) for pixel in rgb[0].flatten(1).T.tolist()]
    got = torch.stack([hue / 360, saturation, value], -1).reshape(-1, 3)
    difference = (got - torch.tensor(expected).double()).abs()
    difference[:, 0] = torch.minimum(difference[:, 0], 1 - difference[:, 0])
    assert difference.max() < 1e-6
    assert torch.allclose(hsv_to_rgb(hue, saturation, value), rgb, atol=1e-6)


def disc(rgb, size=128):
    """(1, 4, size, size) uint8: a disc of one colour with a black ring, transparent outside."""
    axis = torch.arange(size) - size / 2 + 0.5
    radius = (axis[:, None] ** 2 + axis[None] ** 2).sqrt()
    picture = torch.zeros(1, 4, size, size)
    picture[0, :3] = torch.tensor(rgb).float()[:, None, None] * (radius < 50)
    picture[0, 3] = 255.0 * (radius < 58)
    return picture.to(torch.uint8)


@pytest.mark.parametrize("source", [(200, 30, 30), (250, 210, 60), (30, 90, 40), (200, 200, 205)])
def test_a_recoloured_disc_has_the_hue_that_was_asked_for(source):
    picture = disc(source)
    palette = measure(picture)
    assert palette.recolourable.item()
    rgb = picture[:, :3].float() / 255
    for colour, (hue, saturation_factor, _, _) in COLOURS.items():
        new = recolour(rgb, palette, torch.tensor([0]), [colour])
        new_hue, new_saturation, new_value = (channel[0, 64, 64].item() for channel in rgb_to_hsv(new))
        if saturation_factor:
            assert abs((new_hue - hue + 180) % 360 - 180) < 6, colour
            assert new_saturation > 0.3, colour
        else:
            assert new_saturation < 0.02
            assert (new_value < 0.35, 0.35 < new_value < 0.75, new_value > 0.8)[("black", "gray", "white").index(colour)]
        assert new[0, :, 64, 10].max() < 0.02, "the black ring stays black"


def test_a_picture_of_many_colours_is_not_recoloured():
    picture = disc((200, 30, 30))
    for k, rgb in enumerate([(30, 200, 30), (30, 30, 200), (220, 220, 30)]):
        picture[0, :3, :, 16 + 32 * k : 40 + 32 * k] = torch.tensor(rgb, dtype=torch.uint8)[:, None, None]
    assert not measure(picture).recolourable.item()


def test_colour_names_of_real_pictures(shipped):
    by_name = {(r.pack, r.label): shipped.palette.names[i] for i, r in enumerate(shipped.records)}
    for label, colour in [("red heart", "red"), ("blue heart", "blue"), ("banana", "yellow"), ("frog", "green")]:
        assert by_name["noto", label] == colour


def test_small_pictures_are_averages(archive):
    full = EmojiData(EmojiConfig(archives=[str(archive)], size=32))
    half = EmojiData(EmojiConfig(archives=[str(archive)], size=16))
    mean = torch.nn.functional.avg_pool2d(full.render([Variant(0)]), 2)
    assert (half.render([Variant(0)]) - mean).abs().max() < 3 / 127.5  # two roundings to 8 bits
    assert half.palette.hue.equal(full.palette.hue)
    with pytest.raises(DataError, match="choose a divisor of 32"):
        EmojiData(EmojiConfig(archives=[str(archive)], size=24))


# --- samples


def test_a_batch_is_the_union_of_its_samples(shipped):
    counters = [0, 7, 123456789012, 3]
    batch = shipped.batch(counters)
    for row, counter in enumerate(counters):
        one = shipped.batch(torch.tensor([counter]))
        assert torch.equal(one.images[0], batch.images[row])
        assert one.captions[0] == batch.captions[row]
        assert one.labels[0] == batch.labels[row]
    assert batch.index.tolist() == counters
    assert shipped.choose([5]) != EmojiData.choose(_reseeded(shipped, 4), [5])


def _reseeded(data, seed):
    other = object.__new__(EmojiData)
    other.__dict__.update(data.__dict__)
    other.seed = seed
    return other


def _configured(data, **changes):
    other = _reseeded(data, data.seed)
    other.config = data.config.model_copy(update=changes)
    return other


def test_variants(shipped):
    assert shipped.variant(17, 0) == Variant(17)
    assert shipped.variant(17, 5) == _reseeded(shipped, 99).variant(17, 5)
    few = _configured(shipped, variants=3)
    assert {k for _, k in few.choose(range(300))} == {0, 1, 2}
    drawn = [shipped.variant(*chosen) for chosen in shipped.choose(range(4000))]
    can = [v for v in drawn if shipped.recolourable[v.index]]
    assert sum(v.color is not None for v in can) / len(can) == pytest.approx(0.35, abs=0.03)
    coloured = [v for v in drawn if v.color != "white"]
    assert sum(v.background is not None for v in coloured) / len(coloured) == pytest.approx(0.15, abs=0.02)
    assert all(v.background is not None for v in drawn if v.color == "white")
    assert not any(v.background and v.background == (v.color or shipped.palette.names[v.index]) for v in drawn)
    for v in drawn:
        assert v.color is None or shipped.recolourable[v.index]


@pytest.mark.parametrize("weight", [0.0, 0.6, 1.0])
def test_everyday_concepts_have_their_share(shipped, weight):
    common = set(shipped.common)
    chosen = _configured(shipped, common_weight=weight).choose(range(4000))
    share = sum(shipped.labels[index].item() in common for index, _ in chosen) / 4000
    assert share == pytest.approx(weight, abs=0.025)


def test_every_everyday_label_exists(shipped):
    assert set(read_common()) <= set(shipped.concepts)
    assert len(shipped.common) == len(read_common())


def test_held_out_pairs_never_occur(shipped):
    pairs = [(re.compile(rf"\b{pair.colour}\b"), re.compile(rf"\b({'|'.join(pair.words)})(s|es)?\b")) for pair in HELD_OUT]
    concerned = [i for i, names in enumerate(shipped.names) if names.held_out]
    assert {shipped.records[i].label for i in concerned} >= {pair.label for pair in HELD_OUT}
    always = _configured(shipped, recolor=1.0, drop_caption=0.0)
    for index in concerned:
        for k in range(40):
            variant = always.variant(index, k)
            assert variant.color not in shipped.names[index].held_out
            caption = re.sub("violet", "purple", always.caption(variant, 40 * index + k))
            caption = re.split(r"(?: on an?|,) [a-z ]+ background", caption)[0]
            for colour, noun in pairs:
                # a colour before the noun describes it; "red brick house" would, "house, red door" would not
                assert not re.search(f"{colour.pattern}[a-z ]*{noun.pattern}", caption), caption


@pytest.mark.parametrize(
    ("names", "colours"),
    [
        (["police car"], {"purple"}),
        (["Taxis"], {"purple"}),
        (["two dogs"], {"green"}),
        (["bunch of bananas"], {"blue"}),
        (["pineapple", "carrot", "greenhouse"], set()),
        (["dog-house"], {"green", "red"}),
    ],
)
def test_held_out_colours_by_word(names, colours):
    assert held_out_colours(names) == colours


def test_captions(shipped):
    batch_size = 3000
    variants = [shipped.variant(*chosen) for chosen in shipped.choose(range(batch_size))]
    captions = [shipped.caption(v, i) for i, v in enumerate(variants)]
    assert sum(not c for c in captions) / batch_size == pytest.approx(0.1, abs=0.02)
    never = _configured(shipped, drop_caption=0.0, style=0.0)
    for i, v in enumerate(variants):
        caption = never.caption(v, i)
        assert caption and caption == caption.strip() and caption == caption.lower()
        assert len(re.findall(r"\w+|[^\w\s]", caption)) <= 16
        if v.background:
            assert f"{v.background} background" in caption
        if v.color:
            assert any(word in caption for word in (v.color, "grey", "violet", "turquoise"))
        assert not caption.endswith(" style") or "style" in shipped.names[v.index].label
    styled = _configured(shipped, drop_caption=0.0, style=1.0)
    ends = sum(styled.caption(v, i).endswith(f", {shipped.records[v.index].style} style") for i, v in enumerate(variants))
    assert ends / batch_size > 0.9


def test_everyday_words_are_used(shipped):
    quiet = _configured(shipped, drop_caption=0.0, style=0.0)
    first = {record.label: i for i, record in reversed(list(enumerate(shipped.records)))}
    for label, wanted in [
        ("cat face", {"cat", "a cat", "a kitten"}),
        ("automobile", {"car", "a car"}),
        ("hamburger", {"a burger"}),
        ("red heart", {"a red heart", "red heart", "heart", "a heart"}),
        ("dog face", {"a puppy"}),
        ("house", {"a house"}),
        ("pizza", {"a pizza"}),
        ("grinning face", {"smiley", "a smiley"}),
        ("rocket", {"a rocket", "a spaceship"}),
    ]:
        heard = {quiet.caption(Variant(first[label]), i) for i in range(400)}
        assert wanted <= heard, label
    car = Variant(first["automobile"], "green", "yellow")
    assert "a green car on a yellow background" in {quiet.caption(car, i) for i in range(400)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("apple", "an"),
        ("cat", "a"),
        ("unicorn", "a"),
        ("ufo", "a"),
        ("hourglass done", "an"),
        ("umbrella", "an"),
        ("grapes", ""),
        ("french fries", ""),
        ("slice of pizza", "a"),
        ("glass of milk", "a"),
        ("bus", "a"),
        ("octopus", "an"),
        ("bread", ""),
        ("red bread", ""),
        ("cactus", "a"),
        ("orange cat", "an"),
        ("one o'clock", "a"),
        ("pair of scissors", "a"),
        ("smiling face with hearts", "a"),
        ("compass", "a"),
    ],
)
def test_article(name, expected):
    assert article(name) == expected


def test_without_colour():
    assert without_colour("light blue heart") == "heart"
    assert without_colour("orange") == "orange"
    assert without_colour("red apple") == "apple"
    assert without_colour("tired face") == "tired face"


# --- what is shipped


def test_only_permissive_packs_are_shipped(shipped):
    train = {pack.slug for pack in PACKS if pack.family == "train"}
    assert {record.pack for record in shipped.records} == train
    assert {record.licence for record in shipped.records} == {"Apache-2.0", "MIT"}
    assert {record.family for record in shipped.records} == {"train"}
    others = {pack.slug for pack in PACKS if pack.family != "train"}
    assert not train & others
    assert not {r.style for r in shipped.records} & {p.style for p in PACKS if p.slug in others}
    assert all(isinstance(pack, Pack) and len(pack.sha512) == 128 for pack in PACKS)


def test_shipped_contents(shipped):
    assert len(shipped) == len(shipped.records) == 4703
    assert len(shipped.concepts) == 1139 and shipped.concepts == sorted(shipped.concepts)
    for i in random.Random(0).sample(range(len(shipped)), 50):
        assert shipped.concepts[shipped.labels[i]] == shipped.records[i].label


def test_make_source(archive):
    source = make_source({"type": "emoji", "archives": [str(archive)], "size": 16}, 1)
    assert len(source) == 2
    assert source.batch([0, 1]).images.shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="did you mean 'emoji'"):
        make_source({"type": "emojis"}, 0)
    with pytest.raises(ValueError, match="unknown key 'sise'; did you mean 'size'"):
        make_source({"type": "emoji", "sise": 64}, 0)
