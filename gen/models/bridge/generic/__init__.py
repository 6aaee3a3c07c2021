"""Any diffusers pipeline through its own `__call__`, its scheduler replaced for the call."""
