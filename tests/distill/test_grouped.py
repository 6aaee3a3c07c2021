"""Data in groups of one condition, and what is compared of them."""

from __future__ import annotations

import pytest
import torch

from distill.data import make_source
from distill.objectives.inductive_moment_matching import MomentMatchingConfig, MomentMatchingObjective
from distill.types import Batch, Draws
from gen.nn.registry import build
from tests.distill.cases import SIZES
from tests.distill.students import STUDENT, models_of, tiny_teacher
from tests.distill.test_sources import folder, png


@pytest.fixture
def pictures(tmp_path) -> dict:
    """Five cats, five dogs and one more, each of a colour of its own."""
    counts = {"cats": 5, "dogs": 5, "one": 1}
    files = {f"{name}__{i}_png": png(colour=(20 * i, 80 * k, 9)) for k, name in enumerate(counts) for i in range(counts[name])}
    root = folder(tmp_path, **files)
    return {"type": "images", "folder": str(root), "size": 8, "drop_caption": 0.3, "threads": 1}


def test_a_group_has_one_caption_and_class_and_different_pictures_where_there_are_some(pictures):
    source = make_source({"type": "grouped", "size": 4, "source": pictures}, 0, 8)
    plain, batch = make_source(pictures, 0), source.batch(range(88))
    assert torch.equal(batch.index, torch.arange(88)) and len(source) == 11
    for group in range(22):
        rows, first = slice(4 * group, 4 * group + 4), plain.batch([group])
        assert set(batch.captions[rows]) == set(first.captions)
        assert set(batch.labels[rows].tolist()) == set(first.labels.tolist())
        assert torch.equal(batch.images[4 * group], first.images[0])
        assert len({image.numpy().tobytes() for image in batch.images[rows]}) == (1 if first.labels[0] == 2 else 4)
    part = source.batch([6, 7, 40])
    assert torch.equal(part.images, batch.images[[6, 7, 40]]) and part.captions == [batch.captions[i] for i in (6, 7, 40)]
    with pytest.raises(ValueError, match="does not split into groups of 4"):
        source.grouped(6)
    with pytest.raises(ValueError, match="is grouped itself"):
        make_source({"type": "grouped", "source": {"type": "grouped", "source": pictures}}, 0)


def test_where_it_is_not_known_which_pictures_are_alike_a_group_is_one_of_them():
    source = make_source({"type": "grouped", "size": 3, "source": {"type": "emoji", "size": 32}}, 0)
    batch, plain = source.batch(range(6)), source.source.batch([0, 1])
    assert torch.equal(batch.images, plain.images.repeat_interleave(3, 0))
    assert list(batch.captions) == [caption for caption in plain.captions for _ in range(3)]
    assert source.concepts == source.source.concepts


def test_all_pairs_of_such_groups_are_compared_and_by_what_the_network_is_told():
    """Labels tell a labelled network's samples apart whatever the data's captions say, and captions do not."""
    network = build({"type": "dit", **SIZES, "scalars": ["target_time"]})
    config = MomentMatchingConfig(particles=2, start="network", drop_label=0.0)
    objective = MomentMatchingObjective(config, network, None, tiny_teacher())
    latents = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(0))

    def compared(labels: list[int], captions: list[str]) -> float:
        batch = Batch(index=torch.arange(4), latents=latents, labels=torch.tensor(labels), captions=captions)
        draws = Draws(0, batch.index, "student")
        return float(objective.loss(STUDENT, models_of(objective), batch, draws, 0)[1]["compared"])

    assert compared([1, 1, 2, 2], ["a", "b", "c", "d"]) == 1
    assert compared([1, 2, 2, 1], ["", "", "", ""]) == 0.5
