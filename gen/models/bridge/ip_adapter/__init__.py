"""IP-Adapters: pictures as prompts of a U-Net, by attention of their own beside that to text (arXiv 2308.06721)."""
