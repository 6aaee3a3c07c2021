"""`python -m tests.benchmarks.guidance`: methods of guidance without training, compared on the default model."""
