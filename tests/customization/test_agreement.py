"""Data that do not fit the model that is to be taught are refused before a step is taken."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from customization.agreement import check_agreement
from customization.data import make_data
from customization.train import main
from distill.agreement import Disagreement
from distill.data import make_source
from gen.generator import Generator
from gen.models.components import save_component
from tests.customization.kit import objective, pictures, trainer
from tests.gen.conftest import randomise, tiny_autoencoder


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"size": 64}, "was made for pictures of 32 x 32, and the data give 64 x 64; set the data's size to 32"),
        ({"size": 36}, "takes sides that are multiples of 8, and the data give pictures of 36 x 36"),
        ({"type": "latents", "autoencoder": "OTHER"}, "whose weights are not those of the model"),
    ],
)
def test_what_disagrees_is_refused(tmp_path, tiny_model, capsys, data, message):
    """By the command too, also under --dry-run, and with nothing written."""
    images = pictures(tmp_path / "images", captions=True)
    if data.get("type") == "latents":
        save_component(randomise(tiny_autoencoder(), 7), tmp_path / "other")
        source = {"type": "images", "folder": str(images), "size": 32}
        text = f"{{type: latents, autoencoder: {tmp_path / 'other'}, folder: {tmp_path / 'kept'}, source: {source}}}"
    else:
        text = f"{{type: concept, images: {images}, prompt: a cat, size: {data['size']}}}"
    file = tmp_path / "config.yaml"
    file.write_text(
        f"output: {tmp_path / 'run'}\nmax_steps: 2\nbatch_size: 2\ndevice: cpu\nprecision: fp32\n"
        f"objective: {{type: lora, model: {tiny_model}, adapter: {{rank: 2}}}}\ndata: {text}\n"
    )
    for arguments in ([str(file), "--dry-run"], [str(file)]):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_sizes_of_others_are_taught_where_the_data_say_so(tmp_path, tiny_model):
    images = pictures(tmp_path / "images", size=64)
    taught = objective(tiny_model)
    several = {"type": "sizes", "sizes": [16, 64], "of": {"images": str(images), "prompt": "a cat"}}
    check_agreement(taught, make_data(several, 3, 2, taught.generator))
    trainer(tmp_path / "run", images, tiny_model, data={"size": 40})  # no further from the model's own than it can draw


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ([], "takes labels of 3 classes, and the data have none"),
        (["cat", "dog", "fox", "hen"], "have the label 3, and the model 'classes' knows 0 to 2"),
        (["cat", "dog"], None),
    ],
)
def test_models_of_classes_need_labels_that_they_know(tmp_path, class_model, folders, message):
    for name in folders or ["."]:
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        for i in range(2):
            Image.fromarray(np.full((16, 16, 3), 90 * i, np.uint8)).save(tmp_path / "images" / name / f"{i}.png")
    made = objective(class_model)
    data = make_data({"type": "images", "folder": str(tmp_path / "images"), "size": 8, "min_side": 8}, 3, 2, made.generator)
    if message is None:
        check_agreement(made, data)
        return
    with pytest.raises(Disagreement, match=message):
        check_agreement(made, data)


@pytest.mark.parametrize("wrap", [False, True])
def test_teaching_drops_no_captions_of_any_source_unless_told(tmp_path, tiny_model, wrap):
    """A network that is trained whole must learn what nothing in particular looks like; one that is taught knows it."""
    folder = {"type": "images", "folder": str(pictures(tmp_path / "images", captions=True)), "size": 32}

    def empty(make, **changes) -> int:
        config = {**folder, **changes}
        if wrap:
            save_component(tiny_autoencoder(), tmp_path / "autoencoder")
            config = {"type": "latents", "source": config, "autoencoder": str(tmp_path / "autoencoder")}
            config["folder"] = str(tmp_path / "kept")
        return make(config).batch(range(200)).captions.count("")

    generator = Generator.from_pretrained(tiny_model, "cpu", "float32")

    def teaching(config):
        return make_data(config, 3, 2, generator)

    assert empty(teaching) == 0 and 60 < empty(teaching, drop_caption=0.5) < 140
    assert 8 < empty(lambda config: make_source(config, 3, 2)) < 40
