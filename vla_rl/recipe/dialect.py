"""YAML of recipes: YAML 1.2's plain scalars, no tags, no anchors, every key with its line.

PyYAML speaks YAML 1.1, where `1e-5` is text, `off` is a boolean and `1:30` is ninety. Recipes use the core schema of
YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), in which only text that looks like a number is converted to
one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Path = tuple[str | int, ...]

_CORE_SCHEMA = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    """Loader like SafeLoader, with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own shape

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:  # noqa: ANN401 - PyYAML's signature
        """Refuse aliases, a few lines of which can expand to gigabytes, and tags, which name other types."""
        event: Any = self.peek_event()
        if self.check_event(yaml.AliasEvent):
            raise ComposerError(
                None, None, f"aliases are not allowed, write the value out: *{event.anchor}", event.start_mark
            )
        if getattr(event, "tag", None) is not None:
            raise ComposerError(None, None, f"tags are not allowed: {event.tag}", event.start_mark)
        return super().compose_node(parent, index)

    def construct_yaml_int(self, node: ScalarNode) -> int:
        """Read decimal only: `010` is ten, not eight."""
        return int(self.construct_scalar(node))


class _Dumper(yaml.SafeDumper):
    """Dumper like SafeDumper that also quotes text which only YAML 1.2 would read as a number."""


for _tag, _pattern, _first in _CORE_SCHEMA:
    _compiled = re.compile(f"^(?:{_pattern})$")
    _Loader.add_implicit_resolver(_tag, _compiled, _first)
    _Dumper.add_implicit_resolver(_tag, _compiled, _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


class YamlError(ValueError):
    """Text that is not YAML, or not the YAML of recipes."""


@dataclass(frozen=True, slots=True)
class Document:
    """Parsed text with the places of its keys."""

    data: Any
    lines: dict[Path, int]  # key path to line, counted from 1
    repeated: list[tuple[Path, int, int]]  # key path, line of the first, line of the second
    odd_keys: list[tuple[Path, int, str]]  # path of the mapping, line, the key as written, where it is not text


def parse(text: str) -> Document:
    """Read one YAML document.

    Raises:
        YamlError: the text is not YAML, holds more than one document, a tag or an alias.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        document = Document(data=None, lines={}, repeated=[], odd_keys=[])
        if node is None:
            return document
        _index(node, (), document)
        data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise YamlError(f"{place}{error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise YamlError(str(error)) from error
    except RecursionError:
        raise YamlError("nested too deeply") from None
    return Document(data=data, lines=document.lines, repeated=document.repeated, odd_keys=document.odd_keys)


def _index(node: Node, path: Path, document: Document) -> None:
    """Record the line of every key below `node`, duplicate keys, and keys that are not text."""
    if isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            document.lines[(*path, index)] = item.start_mark.line + 1
            _index(item, (*path, index), document)
    elif isinstance(node, MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                written = key.value if isinstance(key, ScalarNode) else type(key.value).__name__
                document.odd_keys.append((path, line, str(written)))
                continue
            inner = (*path, key.value)
            if inner in document.lines:
                document.repeated.append((inner, document.lines[inner], line))
            document.lines[inner] = line
            _index(value, inner, document)


def dump(data: dict[str, Any]) -> str:
    """Return ASCII YAML text that `parse` reads back to equal data, keys in their own order."""
    # Not allow_unicode: PyYAML would write U+0085 and U+2028 unescaped and read them back as line breaks.
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=120)
