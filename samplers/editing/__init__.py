"""Editing that every solver, path and denoiser gets for free: x is latents or pixels, whatever the model works on."""

from samplers.editing.image_to_image import image_to_image, start_at, start_at_level
from samplers.editing.inpaint import Inpaint
from samplers.editing.interpolation import lerp, slerp
from samplers.editing.inversion import Mirror, MirrorPath, invert, invert_exact
from samplers.editing.repaint import repaint, repaint_walk
from samplers.solvers.edict import EDICT, invert_edict

__all__ = [
    "EDICT",
    "Inpaint",
    "Mirror",
    "MirrorPath",
    "image_to_image",
    "invert",
    "invert_edict",
    "invert_exact",
    "lerp",
    "repaint",
    "repaint_walk",
    "slerp",
    "start_at",
    "start_at_level",
]
