"""Models of others in one file: original layouts, all in one, GGUF and quantised weights, filled straight into networks."""
