"""Several processes: how they are launched, replicas and shards of networks, and blocks computed again to save memory."""

from samplers.renamed import attributes

__getattr__ = attributes(__name__, "distill.parallel.shards", "distill.parallel.launch", "distill.parallel.data_parallel")
