"""A classifier of noisy latents or pictures, to guide a denoiser by: trained by the objective `classifier`."""

from gen.nn.registry import COMPONENTS

COMPONENTS.setdefault("noisy_classifier", ("distill.networks.classifier.network", "NoisyClassifierConfig", "NoisyClassifier"))
