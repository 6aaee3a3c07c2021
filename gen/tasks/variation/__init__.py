"""A picture near another one: its noise turned a little towards that of a second seed."""
