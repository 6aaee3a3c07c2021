"""Layouts: a prompt for every region of a picture."""
