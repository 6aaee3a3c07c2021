"""The version of fewstep: the one place, which the wheel, `fewstep --version` and recipes read."""

__version__ = "0.1.0"
