"""Image to image and inpainting through `Generator`: against the samplers' own functions, and what stays to the pixel."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data.decode import decode
from gen.io.contact_sheet import contact_sheet
from gen.io.errors import RecipeError
from gen.io.images import open_picture, read_picture
from gen.pipeline.recipe import Recipe
from samplers.denoiser import Condition, Context
from samplers.editing import Inpaint, image_to_image
from samplers.guidance import ClassifierFree
from samplers.noise import normal
from samplers.path import RectifiedFlow
from samplers.registry import get_grid, get_solver
from samplers.sample import sample
from tests.gen.test_recipe import HOSTILE


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    array = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(array)


@pytest.fixture(scope="module")
def mask() -> Image.Image:
    """The left 13 columns are to be made."""
    array = np.zeros((32, 32), np.uint8)
    array[:, :13] = 255
    return Image.fromarray(array)


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).float().permute(2, 0, 1)[None] / 255


def setup(tiny, picture):
    tokens, mask = tiny.text_encoder.encode(["a cat"])
    latents = tiny.autoencoder.encode(tensor(picture) * 2 - 1)
    return (
        Condition(tokens=tokens, mask=mask),
        latents,
        normal([7], (4, 8, 8), "latents"),
        get_grid("uniform", RectifiedFlow(), 6),
    )


def test_image_to_image_is_the_samplers_own(tiny, picture):
    with torch.no_grad():
        condition, latents, eps, levels = setup(tiny, picture)
        field = ClassifierFree(tiny.denoiser, 3.0)
        expected = image_to_image(field, get_solver("dpmpp_2m"), latents, eps, levels, 0.5, condition, context=Context())
    call = {"seed": 7, "num_inference_steps": 6, "output_type": "latent", "progress": False, "batch_invariant": False}
    made = tiny("a cat", image=picture, strength=0.5, **call)  # by the kernels that the sampler gets by itself
    torch.testing.assert_close(made.images, expected, rtol=0, atol=1e-6)
    assert made.recipes[0].nfe == 6 and made.recipes[0].num_inference_steps == 6  # 3 of 6 steps, two branches


@pytest.mark.parametrize("steps", [4, 20])
def test_an_adaptive_sampler_starts_where_strength_says(tiny, picture, steps):
    """At the level of the schedule's own hundred steps, whatever number of steps was asked for, and not at one of two."""
    call = {"seed": 7, "image": picture, "output_type": "latent", "progress": False, "sampler": "dpm_adaptive"}
    call |= {"schedule": "uniform", "num_inference_steps": steps, "batch_invariant": False}
    levels = get_grid("uniform", RectifiedFlow(), 2)
    for strength in (0.3, 0.75):
        with torch.no_grad():
            condition, latents, eps, _ = setup(tiny, picture)
            start = RectifiedFlow()(strength)
            cut = [start, *(level for level in levels if level.t < strength)]
            field = ClassifierFree(tiny.denoiser, 3.0)
            expected = sample(field, get_solver("dpm_adaptive"), start.mix(latents, eps), cut, condition, context=Context())
        made = tiny("a cat", strength=strength, **call)
        torch.testing.assert_close(made.images, expected, rtol=0, atol=1e-5)


def test_inpainting_is_the_samplers_own_and_keeps_pixels(tiny, picture, mask):
    with torch.no_grad():
        condition, latents, eps, levels = setup(tiny, picture)
        # 13 columns of pixels touch 4 of 8 columns of latents
        wanted = torch.zeros(1, 1, 8, 8).index_fill_(3, torch.arange(4), 1)
        field = Inpaint(ClassifierFree(tiny.denoiser, 3.0), latents, wanted, eps)
        x = levels[0].mix(latents, eps)
        expected = sample(field, get_solver("dpmpp_2m"), x, levels, condition, context=Context())
    call = {"seed": 7, "num_inference_steps": 6, "image": picture, "mask": mask, "progress": False}
    made = tiny("a cat", output_type="latent", batch_invariant=False, **call)
    torch.testing.assert_close(made.images, expected, rtol=0, atol=1e-6)
    output = tiny("a cat", **call)
    before, after = np.array(picture), np.array(output.images[0])
    assert (before[:, 13:] == after[:, 13:]).all() and (before[:, :13] != after[:, :13]).mean() > 0.5
    assert output.recipes[0].start.strength == 1.0


def test_replay_needs_the_same_image_and_mask(tiny, picture, mask):
    made = tiny("a cat", seed=7, image=picture, mask=mask, output_type="pt", progress=False)
    recipe = Recipe.from_json(made.recipes[0].to_json())
    again = tiny.replay(recipe, "pt", False, image=picture, mask=mask)
    assert torch.equal(again.images, made.images) and again.recipes[0] == recipe
    for given, message in (
        ({}, "made from an image, which is not in its recipe"),
        ({"image": picture}, "made from a mask"),
        ({"image": picture.rotate(90), "mask": mask}, "This image is not the one"),
        ({"image": picture, "mask": mask.rotate(90)}, "This mask is not the one"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny.replay(recipe, "pt", False, **given)
    plain = tiny("a cat", seed=7, progress=False).recipes[0]
    with pytest.raises(ValueError, match="made without an image"):
        tiny.replay(plain, "pt", False, image=picture)


def test_pixel_models_edit_too(pixel_model, picture, mask):
    from gen.generator import Generator

    generator = Generator.from_pretrained(pixel_model, device="cpu", dtype="float32")
    output = generator(seed=1, image=picture, mask=mask, output_type="pt", progress=False)
    small = torch.nn.functional.interpolate(tensor(picture), (8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(output.images[..., 4:], small[..., 4:], rtol=0, atol=1e-6)


def test_pictures_of_every_kind_are_read_alike(picture, tmp_path):
    picture.save(tmp_path / "p.png")
    for source in (picture, np.array(picture), tensor(picture)[0], tmp_path / "p.png", str(tmp_path / "p.png")):
        assert torch.equal(read_picture("image", source, "RGB"), tensor(picture))
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (read_picture("image", clear, "RGB") == 1).all()  # what is transparent is white


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photos_are_turned_as_their_exif_says(orientation, tmp_path):
    """The top left corner, red, is where a viewer shows it: against what each value of the tag means."""
    array = np.full((16, 24, 3), 255, np.uint8)
    array[:8, :8] = (255, 0, 0)
    told = Image.Exif()
    told[0x0112] = orientation
    Image.fromarray(array).save(tmp_path / "a.jpg", exif=told, quality=95, subsampling=0)
    seen = read_picture("image", tmp_path / "a.jpg", "RGB")[0, 1] < 0.5  # red has no green
    turned = np.rot90(array[..., 1] == 0, {1: 0, 3: 2, 6: 3, 8: 1}[orientation])  # 6: clockwise
    assert seen.shape == turned.shape and (seen.numpy() == turned).mean() > 0.98
    with Image.open(tmp_path / "a.jpg") as opened:
        assert torch.equal(read_picture("image", opened, "RGB")[0, 1] < 0.5, seen)


@pytest.mark.parametrize("tail", [b"", b"no tiff", b"II*\0\x08\0\0\0\xff\xff", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02"])
def test_damaged_exif_turns_nothing(tail, tmp_path):
    Image.new("RGB", (6, 4), "red").save(tmp_path / "a.jpg", exif=b"Exif\0\0" + tail)
    assert read_picture("image", tmp_path / "a.jpg", "RGB").shape == (1, 3, 4, 6)


def test_other_sizes_are_cut_about_the_middle_and_said(tiny):
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = 200  # the middle square
    call = {"seed": 1, "height": 32, "width": 32, "strength": 0.25, "output_type": "latent", "progress": False}
    with pytest.warns(UserWarning, match="image is 100 x 40, another shape than the 32 x 32 of the picture"):
        output = tiny("a cat", image=wide, **call)
    square = tiny("a cat", image=np.full((32, 32, 3), 200, np.uint8), **call)
    torch.testing.assert_close(output.images, square.images, rtol=0, atol=1e-5)


def made(tiny, rows, columns, **call):
    """(width, height) of the picture made from one of this size, and what was said of it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        output = tiny(
            "a cat",
            seed=1,
            image=np.zeros((rows, columns, 3), np.uint8),
            strength=0.25,
            output_type="pt",
            progress=False,
            **call,
        )
    return tuple(output.images.shape[:1:-1]), [
        str(one.message) for one in said if "was made for pictures of" not in str(one.message)
    ]


@pytest.mark.parametrize("task", ["image", "deblur"])
def test_a_picture_keeps_its_own_shape(tiny, task):
    """The tiny model knows 32 x 32 and takes multiples of 8: sides from 16 to 128, the shorter one below 64, are made as they
    are, others in the same shape with about 1,024 pixels."""

    def shape(rows, columns, **call):
        if task == "image":
            return made(tiny, rows, columns, **call)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            image = np.zeros((rows, columns, 3), np.uint8)
            output = tiny.restore(
                image, "deblur", "a cat", seed=1, num_inference_steps=2, output_type="pt", progress=False, **call
            )
        return tuple(output.images.shape[:1:-1]), [
            str(one.message) for one in said if "was made for pictures of" not in str(one.message)
        ]

    for size in ((48, 96), (56, 40), (128, 16)):
        assert shape(*size) == (size[::-1], [])
    assert shape(50, 30)[0] == (32, 48) and "is 30 x 50; the picture is made at 32 x 48" in shape(50, 30)[1][0]
    assert shape(400, 100)[0] == (16, 64) and shape(8, 8)[0] == (32, 32)
    assert shape(100, 400, width=64)[0] == (64, 16) and shape(100, 400, height=32)[0] == (128, 32)
    assert shape(48, 96, height=32, width=64)[0] == (64, 32)
    if task == "image":  # a size that is given is the call's own
        assert [said[:44] for said in shape(48, 96, height=32, width=32)[1]] == ["image is 96 x 48, another shape than the 32 "]


@pytest.mark.parametrize(("rows", "columns", "why"), [
    (50, 30, "30 x 50; the picture is made at 32 x 48, as sides are multiples of 8 here."),
    (400, 100, "100 x 400; the picture is made at 16 x 64, nearer to the 32 x 32 that the model was made for."),
])  # fmt: skip
def test_the_note_on_a_size_says_why_it_is_another(tiny, rows, columns, why):
    assert made(tiny, rows, columns)[1][0] == f"The image is {why} Give height and width for another size."
    assert made(tiny, 48, 96)[1] == [] and made(tiny, 400, 100, width=16)[1] == []  # what was asked for is no news


def test_an_enlarged_picture_beyond_the_model_is_told(tiny):
    """It is made smaller first, which nobody would guess from its size."""
    with pytest.warns(UserWarning, match="is 32 x 32, 128 x 128 when enlarged; the picture is made at 32 x 32, nearer to"):
        tiny.restore(np.zeros((32, 32, 3), np.uint8), "superres", "a cat", seed=1, num_inference_steps=2, progress=False)


@pytest.mark.parametrize(("rows", "columns"), [(3, 2000), (2000, 3), (16, 272)])
def test_a_shape_beyond_what_a_model_can_make_is_refused(tiny, rows, columns):
    """It would be made longer than it is."""
    with pytest.raises(ValueError, match=f"is {columns} x {rows}, and one side may be at most 16 times the other"):
        made(tiny, rows, columns)
    with pytest.raises(ValueError, match="at most 16 times"):
        made(tiny, rows, columns, width=32)
    assert made(tiny, rows, columns, height=32, width=32)[0] == (32, 32)
    assert max(made(tiny, 15, 240)[0]) <= 128


def test_enlarged_pictures_keep_their_shape(tiny):
    image = np.zeros((8, 16, 3), np.uint8)
    output = tiny.restore(image, "superres", "a cat", seed=1, num_inference_steps=2, output_type="pt", progress=False)
    assert output.images.shape == (1, 3, 32, 64)


def test_masks_of_another_shape_are_refused(tiny, picture):
    wide = np.zeros((16, 32), np.uint8)
    with pytest.raises(ValueError, match="mask is 32 x 16 and the image 32 x 32, which is another shape"):
        tiny("a cat", image=picture, mask=wide, progress=False)
    with pytest.raises(ValueError, match="mask is 32 x 16 and the image 32 x 32"):
        tiny.restore(picture, "inpaint", "a cat", mask=wide, progress=False)
    with pytest.raises(ValueError, match="reference_mask is 32 x 16 and the picture 32 x 32"):
        tiny("a cat", reference=picture, reference_mask=wide, progress=False)
    twice = np.zeros((64, 65), np.uint8)  # of the same shape but for a pixel
    assert tiny("a cat", image=picture, mask=twice, seed=1, output_type="pt", progress=False).images.shape[-1] == 32


def grey_ramp() -> np.ndarray:
    return np.arange(256, dtype=np.uint8).repeat(4).reshape(32, 32)


def kinds_of_grey(ramp: np.ndarray) -> dict[str, Image.Image]:
    """The same ramp of 256 greys in every kind of pixels that can hold it; each value is exact."""
    grey = Image.fromarray(ramp)
    clear = Image.merge("LA", (grey, Image.new("L", grey.size, 255)))
    palette = grey.convert("P")
    palette.putpalette([v for i in range(256) for v in (255 - i,) * 3])
    palette.putdata([255 - v for v in grey.getdata()])
    found = {mode: grey.convert(mode) for mode in ("L", "RGB", "RGBA", "F", "I")}
    found |= {"LA": clear, "palette": palette, "16 bits": Image.fromarray(ramp.astype(np.uint16) * 257)}
    found |= {"I of 16 bits": Image.fromarray(ramp.astype(np.int32) * 257)}
    found |= {"floats to 1": Image.fromarray(ramp.astype(np.float32) / 255)}
    return found | {"floats of 16 bits": Image.fromarray(ramp.astype(np.float32) * 257)}


@pytest.mark.parametrize("kind", kinds_of_grey(grey_ramp()))
def test_every_kind_of_pixels_means_the_same_to_generation_and_training(kind, tmp_path):
    ramp = grey_ramp()
    image = kinds_of_grey(ramp)[kind]
    expected = torch.from_numpy(ramp).float() / 255
    assert torch.equal(read_picture("image", image, "RGB"), expected.expand(1, 3, -1, -1))
    assert torch.equal(read_picture("mask", image, "L"), expected[None, None])
    file = tmp_path / ("a.tif" if image.mode in ("F", "I") else "a.png")
    image.save(file)
    assert torch.equal(read_picture("image", file, "RGB"), expected.expand(1, 3, -1, -1))
    assert (np.asarray(decode(file.read_bytes())) == ramp[..., None]).all()
    assert (np.asarray(contact_sheet([image]))[8:40, 8:40] == ramp[..., None]).all()


def test_white_in_16_bits_is_white_in_8():
    white = np.full((4, 4, 3), 65535, np.uint16)
    assert read_picture("image", white, "RGB").min() == 1 and read_picture("image", white // 257 * 200, "RGB").max() < 0.8


def test_pixels_that_no_scale_explains_are_refused():
    for values, message in (
        (np.float32("nan"), "NaN or infinite"),
        (np.float32(-3), "pixels from -3 to -3"),
        (np.int32(1 << 20), "save it"),
    ):
        with pytest.raises(ValueError, match=f"image: it has .*{message}"):
            read_picture("image", Image.fromarray(np.full((4, 4), values)), "RGB")


def test_what_is_transparent_is_white_whatever_says_so(tmp_path):
    half = np.zeros((8, 8), np.uint16)
    half[:, 4:] = 30_000
    Image.fromarray(half).save(tmp_path / "16.png", transparency=30_000)
    bit = Image.fromarray((half > 0).astype(np.uint8) * 255).convert("1")
    bit.save(tmp_path / "1.png", transparency=1)
    palette = Image.fromarray((half > 0).astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.save(tmp_path / "p.gif", transparency=1)
    palette.save(tmp_path / "p.png", transparency=b"\xff\0")
    for name in ("16.png", "1.png", "p.gif", "p.png"):
        seen = read_picture("image", tmp_path / name, "RGB")
        assert (seen[..., 4:] == 1).all() and (seen[..., :4] == 0).all(), name


def test_arrays_of_16_bits_and_of_truth_values_are_scaled():
    ramp = np.linspace(0, 65535, 256).reshape(16, 16)
    assert read_picture("image", ramp.astype(np.uint16), "RGB").mean() == pytest.approx(0.5, abs=0.002)
    colour = np.repeat(ramp.astype(np.uint16)[..., None], 3, 2)
    assert read_picture("image", colour, "RGB").mean() == pytest.approx(0.5, abs=0.002)
    assert read_picture("mask", ramp > 30_000, "L").unique().tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_a_mask_of_zeros_and_ones_is_warned_of(dtype):
    mask = np.zeros((8, 8), dtype)
    mask[:4] = 1
    image = Image.fromarray(mask)
    with pytest.warns(UserWarning, match="mask holds only 0 and 1 of 255"):
        read_picture("mask", image, "L")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fine in (np.zeros((8, 8), np.uint8), (mask * 255).astype(np.uint8), mask > 0):
            read_picture("mask", fine, "L")
        read_picture("mask", Image.fromarray(mask > 0), "L")
        read_picture("image", mask.astype(np.uint8), "RGB")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"mask": np.zeros((4, 4), np.uint8)}, "mask was given without an image"),
        ({"strength": 0.5}, "strength was given without an image"),
        ({"image": "missing.png"}, r"image: missing.png cannot be opened \(No such file"),
        ({"image": __file__}, r"test_edit.py cannot be opened \(it is not a PNG, JPEG, WEBP, AVIF, GIF, BMP or TIFF"),
        ({"image": 3}, "image is int; give a file name"),
        ({"image": np.zeros((4, 4, 3))}, "give bytes of shape"),
        ({"image": torch.full((3, 8, 8), 2.0)}, "numbers from 0 to 1"),
        ({"image": torch.full((3, 8, 8), float("nan"))}, "numbers from 0 to 1"),
        ({"image": torch.zeros(2, 3, 8, 8)}, "give one picture"),
        ({"image": np.zeros((8, 8, 3), np.uint8), "strength": 1.5}, "strength is 1.5; give a number from 0 to 1"),
        ({"image": np.zeros((8, 8, 3), np.uint8), "strength": 0.1}, "leaves no step of 4"),
        ({"image": np.zeros((8, 8, 3), np.uint8), "mask": np.zeros((8, 8), np.uint8), "guidance": "cfg++"}, "cfg\\+\\+ moves"),
    ],
)
def test_refusals(tiny, asked, message):
    with pytest.raises(ValueError, match=message):
        tiny("a cat", seed=1, progress=False, **asked)


@pytest.mark.parametrize("kind", sorted(HOSTILE.keys() - {"text bomb"}))  # its pixels are read, not its text
def test_hostile_pictures_are_one_sentence(tmp_path, kind):
    """Also what Pillow raises an error for where it only warned for smaller ones: 900 megapixels."""
    path = tmp_path / "a.png"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(ValueError, match=r"^mask: .*a\.png") as caught:
        read_picture("mask", path, "L")
    assert type(caught.value) is ValueError


def test_only_the_formats_asked_for_are_read(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4), "red").save(path, "JPEG")
    assert read_picture("image", path, "RGB").shape == (1, 3, 4, 4)
    with pytest.raises(RecipeError, match="it is not a PNG, or damaged"):
        open_picture(path)
    (tmp_path / "cut.jpg").write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"image: .*cut\.jpg cannot be opened"):
        read_picture("image", tmp_path / "cut.jpg", "RGB")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.ico")
    with pytest.raises(ValueError, match="not a PNG, JPEG, WEBP, AVIF, GIF, BMP or TIFF"):
        read_picture("image", tmp_path / "a.ico", "RGB")
