"""Tests of the documentation: its examples run, its paths exist, its tables are what the sources say."""
