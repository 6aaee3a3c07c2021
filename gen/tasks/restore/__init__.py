"""Restoring a picture: inpainting, super-resolution, colour and sharpness as inverse problems."""
