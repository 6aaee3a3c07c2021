"""How several adapters make one picture: a composition by name, or a region for each."""
