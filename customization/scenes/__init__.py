"""Pictures of several concepts together, made from pictures of each alone (Gen4Gen), and measures of such pictures."""
