"""Worker processes (pytest-xdist) share the machine: each computes on one thread, and so do the programs that it starts."""

import os
import tempfile

# what programs remember of files between runs (gen.io.digests) stays out of the user's own cache
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="cache-")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

    import torch

    torch.set_num_threads(1)
