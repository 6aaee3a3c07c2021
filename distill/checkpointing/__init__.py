"""A run on disk: step folders, the state that they hold, how a run goes on from one, and hashes of what it reads."""
