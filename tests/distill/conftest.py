import pytest

from tests.distill.evaluation import VENDORS, archive, knowing_evaluator, tiny_text_encoder


@pytest.fixture(scope="session")
def emoji_data(tmp_path_factory):
    """A folder with a small archive of training pictures."""
    folder = tmp_path_factory.mktemp("data")
    archive(folder / "emoji-train.zip", VENDORS)
    return folder


@pytest.fixture(scope="session")
def text_encoder():
    return tiny_text_encoder()


@pytest.fixture(scope="session")
def evaluator():
    return knowing_evaluator()
