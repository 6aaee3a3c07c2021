"""Pictures larger than a model makes, from windows: panorama, outpainting, upscaling."""
