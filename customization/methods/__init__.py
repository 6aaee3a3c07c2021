"""Methods of customization, one page each; `customization.registry` names those that train."""
