"""The evaluation network: what a picture shows, by labels and by how well a text fits it. Trained apart from any generator."""

from gen.nn.registry import COMPONENTS
from gen.rewards import REWARDS, RewardInfo

COMPONENTS.setdefault("evaluator", ("distill.networks.evaluator.network", "EvaluatorConfig", "Evaluator"))
REWARDS.setdefault(
    "evaluator",
    RewardInfo(
        "evaluator",
        "distill.networks.evaluator.reward",
        "EvaluatorReward",
        "the shipped evaluation network finds that the picture fits its prompt",
        ("by", "copies"),
        reads_prompts=True,
    ),
)
