"""Pictures made larger by networks that were trained to: upsamplers of a cascade."""
