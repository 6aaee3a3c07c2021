"""Tests of `gen.batch`."""
