"""What methods that teach a model have in common: the objective, the parameters that train, new words, the file's metadata."""
