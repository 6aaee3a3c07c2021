"""YAML as plain data: no tags, no aliases, no dates, and `1e-4` is a number."""

from __future__ import annotations

import re

import yaml


class PlainLoader(yaml.SafeLoader):
    """The loader of all YAML that is read here. What it makes of a scalar may raise what int() raises, besides YAMLError."""

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.events.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read; write values out", event.start_mark)
        if getattr(event, "tag", None) is not None:
            problem = f"the tag {event.tag!r} is not read; write the value without it"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)


PlainLoader.yaml_implicit_resolvers = {  # without dates, of which no key is one
    first: [(tag, pattern) for tag, pattern in rows if tag != "tag:yaml.org,2002:timestamp"]
    for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
