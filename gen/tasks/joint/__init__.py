"""A picture and a map of it drawn together, or one of the other (`gen.nn.joint`)."""
