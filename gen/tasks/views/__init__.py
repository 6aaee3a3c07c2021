"""Pictures that are read in several ways: upside down, mirrored, in inverted colours."""
