"""A picture to start from: image to image, and inpainting under a mask."""
