"""Pictures with alpha: the thing alone, without what the model draws behind it."""
