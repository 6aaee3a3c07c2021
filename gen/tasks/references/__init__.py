"""Pictures to resemble, through a trained encoder (`gen.nn.reference_encoder`)."""
