"""One file per family of networks: how the network is called, how its prompts are read, what it is used with by default."""
