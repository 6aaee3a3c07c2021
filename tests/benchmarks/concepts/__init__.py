"""`python -m tests.benchmarks.concepts`: two concepts, taught separately, composed in one picture in every way there is."""
