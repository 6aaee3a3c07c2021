"""Networks: backbones, attention, text encoder, autoencoder, and the registry that builds them from configs."""
