"""Concepts that a model is to draw no more: changes of its weights in closed form, and what tells whether they worked."""
