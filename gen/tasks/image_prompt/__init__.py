"""Image prompts: pictures whose content or style a picture takes up, through IP-Adapters."""
