"""What is said where something went wrong: one sentence, whoever shows it."""

from __future__ import annotations


def sentence(error: BaseException) -> str:
    """An error in words: our own refusals as they are, those of the system with their file, others as a defect of ours."""
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror or error}."
    if isinstance(error, MemoryError | RuntimeError):
        from gen.models.decoding import is_out_of_memory

        if is_out_of_memory(error):
            return "Memory ran out; make smaller pictures, or use a smaller model, another device or another dtype."
    return f"{type(error).__name__}: {error}. This is a defect of fewstep; set FEWSTEP_TRACEBACK=1 to see where it happened."
