"""The evaluation network: what a picture shows, by labels and by how well a text fits it. Trained apart from any generator."""

from gen.cli.energies import add_rewards
from gen.nn.registry import COMPONENTS

COMPONENTS.setdefault("evaluator", ("distill.networks.evaluator.network", "EvaluatorConfig", "Evaluator"))
add_rewards()
