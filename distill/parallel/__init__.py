"""Several processes: how they are launched, replicas and shards of networks, and blocks computed again to save memory."""
