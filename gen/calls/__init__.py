"""Calls as plain data: what the batch, the server and the page make of what a user wrote, before a `Generator` is called."""
