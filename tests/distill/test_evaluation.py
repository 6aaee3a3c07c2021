"""Numbers while training: they are what the pictures give, and training does not notice them."""

import json

import pytest
import torch
from PIL import Image

from distill.checkpointing import folder as checkpoints
from distill.config import ConfigError, TrainConfig, parse_config
from distill.eval.during_training import FIRST
from distill.eval.metrics import frechet_distance, precision_recall
from distill.objectives import make_objective
from distill.objectives.bases.teacher import Teacher
from distill.run_folder import TrainingError
from distill.trainer import Trainer
from distill.types import Batch
from gen.models.components import save_component
from gen.models.folder import write_model
from gen.nn.registry import build
from tests.distill.cases import AUTOENCODER, COMMON
from tests.distill.evaluation import LABELS
from tests.distill.students import randomise

SIZE = 8
DIT = {"type": "dit", "size": SIZE, "patch": 4, "channels": 3, "dim": 16, "depth": 1, "heads": 2, "num_classes": 3}
MODEL = {"path": {"type": "rectified_flow"}, "prediction": "x0", "clock": "1000t", "sample_size": SIZE}


class Pictures:
    """Random pictures of three labels, every third without a caption."""

    concepts = LABELS[:3]

    def __init__(self):
        self.asked = []

    def batch(self, counters) -> Batch:
        numbers = [int(i) for i in counters]
        self.asked.append(numbers)
        rows = [torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in numbers]
        captions = ["" if i % 3 == 2 else self.concepts[i % 3] for i in numbers]
        index = torch.tensor(numbers)
        return Batch(index=index, images=torch.stack(rows), captions=captions, labels=index % 3)


@pytest.fixture(scope="module")
def places(tmp_path_factory, evaluator):
    folder = tmp_path_factory.mktemp("evaluation")
    torch.manual_seed(0)
    write_model(folder / "teacher", MODEL, randomise(build(DIT), 1))
    save_component(evaluator, folder / "evaluator")
    return folder


def trainer(places, output, lr=1e-3, max_steps=4, objective=None, network=None, source=None, **evaluation) -> Trainer:
    torch.manual_seed(0)
    teacher = {"model": str(places / "teacher"), "steps": 8, "guidance_scale": 1.0}
    settings = {"type": "multistep_consistency", "teacher": teacher, "steps": 2, "substeps": [4, 8], "anneal": 2}
    asked = {"every": 2, "steps": [1, 3], "pictures": 6, "batch_size": 3, "reference_steps": 3,
             "features": f"evaluator:{places / 'evaluator'}", "references": str(places / "kept"), **evaluation}  # fmt: skip
    changes = {"output": output, "max_steps": max_steps, "optimizer": {"type": "adamw", "lr": lr}, "batch_size": 4}
    config = parse_config({**COMMON, "objective": objective or settings, "network": network or {}, "data": {"type": "pictures"},
                           **changes, "evaluation": asked if evaluation.get("every", 1) else None})  # fmt: skip
    source = source or Pictures()
    start = build(network) if network else torch.nn.Identity()
    return Trainer(config, make_objective(config.objective, start, source), source)


def rows(output):
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "time"} for row in lines if any(k.startswith("evaluation/") for k in row)]


def weights(output):
    return {(g, n): v for g, t in checkpoints.load_latest(output).tensors.items() for n, v in t.items()}


def test_an_untrained_student_at_its_teacher_s_steps_is_the_teacher(places, tmp_path):
    """Its weights hardly move; with DDIM at as many steps, pictures are the same, in fewer they are not."""
    run = trainer(places, tmp_path, lr=1e-12, max_steps=2)
    run.train()
    [row] = rows(tmp_path)
    assert (
        row["step"] == 2 and row["evaluation/3/distance_to_reference"] < 1e-6 < 0.01 < row["evaluation/1/distance_to_reference"]
    )
    assert row["evaluation/3/frechet_distance"] != row["evaluation/1/frechet_distance"]


def test_numbers_are_those_of_the_pictures(places, tmp_path, evaluator):
    run = trainer(places, tmp_path, max_steps=2)
    run.train()
    [row] = rows(tmp_path)
    source, found = Pictures(), run.evaluation
    counters = [*range(FIRST, FIRST + 3), *range(FIRST + 4, FIRST + 7)]  # within the batches of 4 that the source may rely on
    assert [n for asked in run.source.asked for n in asked if n >= FIRST] == counters
    real = source.batch(counters)
    features = evaluator.features(real.images)
    for steps in (1, 3):
        images = torch.cat(found.drawn[steps])
        made = evaluator.features(images)
        assert row[f"evaluation/{steps}/frechet_distance"] == pytest.approx(frechet_distance(made, features), rel=1e-3)
        precision, recall = precision_recall(features, made)
        assert (row[f"evaluation/{steps}/precision"], row[f"evaluation/{steps}/recall"]) == (precision, recall)
        apart = (images - torch.cat(found.taught)).square().flatten(1).mean(1).sqrt().mean()
        assert row[f"evaluation/{steps}/distance_to_reference"] == pytest.approx(float(apart), rel=1e-5)
        order = evaluator.classify(images).argsort(1, descending=True)
        for k in (1, 5):
            share = sum(int(label) in o[:k].tolist() for o, label in zip(order, real.labels, strict=True)) / 6
            assert row[f"evaluation/{steps}/top{k}"] == pytest.approx(share)
    sheet = Image.open(tmp_path / "evaluations" / "00000002.png")
    assert sheet.width < 4 * 2 * SIZE + 8 and sheet.height > 3 * SIZE  # three columns; teacher, 1 step, 3 steps


def test_training_does_not_notice_and_a_resumed_run_finds_the_same(places, tmp_path):
    trainer(places, tmp_path / "without", every=0).train()
    trainer(places, tmp_path / "whole").train()
    trainer(places, tmp_path / "parts", max_steps=2).train()
    first = trainer(places, tmp_path / "parts")
    drawn = []
    first.objective.taught = lambda *given: drawn.append(given)
    first.train()
    assert not drawn  # what the teacher draws was kept
    without, whole, parts = (weights(tmp_path / name) for name in ("without", "whole", "parts"))
    assert all(torch.equal(v, whole[k]) and torch.equal(v, parts[k]) for k, v in without.items()) and len(without) == len(whole)
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts") and [r["step"] for r in rows(tmp_path / "whole")] == [2, 4]
    assert not rows(tmp_path / "without")


def test_the_teacher_s_pictures_depend_on_the_teacher_only(places, tmp_path):
    plain = trainer(places, tmp_path / "a")
    keys = {plain.objective.teacher_digest()}
    teacher = {"model": str(places / "teacher"), "steps": 4, "guidance_scale": 1.0}
    other = {"type": "latent_consistency", "teacher": teacher, "steps": 2}
    keys.add(trainer(places, tmp_path / "b", objective=other).objective.teacher_digest())
    assert len(keys) == 1  # another method, other steps of training
    for changes in ({"guidance_scale": 2.0}, {"solver": "heun"}, {"dtype": "bfloat16"}):
        keys.add(
            trainer(places, tmp_path / "c", objective={**other, "teacher": {**teacher, **changes}}).objective.teacher_digest()
        )
    with torch.no_grad():
        next(plain.objective.teacher.network.parameters()).view(-1)[0].add_(1e-3)
    keys.add(plain.objective.teacher_digest())
    assert len(keys) == 5


def test_alignment_is_that_of_the_captions_that_say_something(places, tmp_path, evaluator, text_encoder):
    objective = {"type": "diffusion", "prediction": "x0"}
    run = trainer(places, tmp_path, objective=objective, network=DIT, steps=[2])
    run.objective.text_encoder = text_encoder
    run.objective.condition = lambda batch, device: type(run.objective).condition(_without_text(run.objective), batch, device)
    run.train()
    real = run.evaluation.source.batch([*range(FIRST, FIRST + 3), *range(FIRST + 4, FIRST + 7)])
    images = torch.cat(run.evaluation.drawn[2])
    texts = evaluator.embed_texts(text_encoder.pooled(list(real.captions)))
    told = [i for i, caption in enumerate(real.captions) if caption]
    assert 0 < len(told) < 6
    expected = (evaluator.embed(images) * texts).sum(1)[told].mean()
    row = rows(tmp_path)[-1]
    assert row["evaluation/2/prompt_alignment"] == pytest.approx(float(expected), abs=1e-5)
    assert "evaluation/2/distance_to_reference" not in row  # no teacher


def _without_text(objective):
    class Plain:
        text_encoder, roles = None, objective.roles

    return Plain()


def test_the_bar_shows_distances(places, tmp_path, capsys):
    trainer(places, tmp_path).train()
    distances = rows(tmp_path)[0]
    shown = f"FD=1:{distances['evaluation/1/frechet_distance']:.4g} 3:{distances['evaluation/3/frechet_distance']:.4g}"
    assert shown in capsys.readouterr().err


def test_what_cannot_be_evaluated_is_said(places, tmp_path):
    with pytest.raises(TrainingError, match="AutoencoderObjective draws no pictures"):
        trainer(places, tmp_path, objective={"type": "autoencoder"}, network=AUTOENCODER)
    for wrong in ({"steps": [1, 1]}, {"steps": [0]}, {"every": 0}, {"pictures": 3}):
        with pytest.raises(ConfigError):
            given = {**COMMON, "objective": {}, "network": {}, "data": {}, "output": "x", "evaluation": {"every": 1, **wrong}}
            parse_config(given)
    prompts = Pictures()
    prompts.batch = lambda counters: Batch(index=torch.tensor(list(counters)), captions=["a cat"] * len(counters))
    with pytest.raises(TrainingError, match="no pictures to evaluate against"):
        trainer(places, tmp_path, source=prompts).train()
    with pytest.raises(ValueError, match="Unknown features"):
        trainer(places, tmp_path, features="inceptoin:x")
    fixed = {"schedule": "table", "schedule_options": {"values": [0.9, 0.5]}}
    teacher = {"model": str(places / "teacher"), "steps": 8}
    run = trainer(places, tmp_path, objective={"type": "latent_consistency", "teacher": teacher, "steps": 2, **fixed})
    with pytest.raises(ValueError, match="steps"):
        run.train()


def test_a_config_with_evaluation_comes_back_from_a_checkpoint(places, tmp_path):
    run = trainer(places, tmp_path)
    assert TrainConfig(**run.config.model_dump(mode="json")) == run.config
    assert isinstance(run.objective.teacher, Teacher)
