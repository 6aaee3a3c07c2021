"""How prompts are read beside their words: layers, lengths, further prompts, the sizes that SDXL is told."""
