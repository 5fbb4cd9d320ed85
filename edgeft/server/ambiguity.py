"""In how many ways the beginning of a text may still go on by a schema.

llama.cpp follows all of them at once (llama-grammar.cpp: `llama_grammar_advance_stack` compares each
new stack with every other), and nothing can stop it in the middle: one recursive schema whose arrays
begin alike would keep it busy for hours. So ways are counted before it gets to see a schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgeft.errors import InputError

NESTED = 64
"""ways through arrays and objects in each other"""
WAYS = 4000
"""the same, times the constants, properties and patterns that are possible in the innermost"""
VISITS = 5000
HINT = "tell alternatives apart by a required first property with a const"
Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Ways:
    nested: float = 1.0
    all: float = 1.0
    backs: frozenset[int] = frozenset()
    """schemas around this one that it comes back to"""
    deep: bool = False
    """nested without a bound"""


SCALAR = Ways()
ANYTHING = Ways(deep=True)
"""a value of any kind, each of which begins in its own way"""


class Counter:
    """Reads a schema as llama_cpp.llama_grammar.SchemaConverter.visit does."""

    def __init__(self, root: Schema, size_of: Callable[[str], float]) -> None:
        """`size_of`: how large a regular expression is."""
        self._root, self._size_of = root, size_of
        self._known: dict[int, Ways] = {}
        self._kept: list[Any] = []
        self._visits = 0

    def check(self) -> None:
        """InputError where a text may have too many ways."""
        found = self._union(self._root, frozenset())
        if found.nested > NESTED or found.all > WAYS:
            raise InputError("the schema can be followed in too many ways at once", HINT)

    def _union(self, node: Any, around: frozenset[int]) -> Ways:
        """Of a place where a value is expected."""
        leaves = list(self._leaves(node, frozenset()))
        every = [self._leaf(leaf, around) for leaf in leaves]
        nested, total = 1.0, 1.0
        for leaf in leaves:
            alike = [w for other, w in zip(leaves, every, strict=True) if self._alike(leaf, other)]
            _refuse_growth(alike)
            nested = max(nested, sum(ways.nested for ways in alike))
            total = max(total, sum(ways.all for ways in alike))
        backs = frozenset().union(*(ways.backs for ways in every))
        return Ways(nested, total, backs, any(ways.deep for ways in every))

    def _leaves(self, node: Any, seen: frozenset[str]) -> Iterator[Schema]:
        """The alternatives, behind references."""
        self._visits += 1
        if self._visits > VISITS:
            raise InputError("the schema refers to itself in too many ways", "simplify it")
        if (ref := node.get("$ref")) is not None:
            if ref in seen:
                raise InputError(f"{ref} of the schema is nothing but itself")
            yield from self._leaves(target(self._root, ref), seen | {ref})
        elif "oneOf" in node or "anyOf" in node:
            for one in node.get("oneOf") or node["anyOf"]:
                yield from self._leaves(one, seen)
        elif isinstance(kinds := node.get("type"), list):
            yield from ({"type": kind} for kind in kinds)
        else:
            yield node

    def _leaf(self, leaf: Schema, around: frozenset[int]) -> Ways:
        own = id(leaf)
        if own in around:
            return Ways(backs=frozenset((own,)), deep=True)
        if own in self._known:
            return self._known[own]
        self._kept.append(leaf)  # so that its id stays its own
        found = self._inside(leaf, around | {own})
        deep = found.deep or own in found.backs
        found = Ways(found.nested, found.all, found.backs - {own}, deep)
        if not found.backs:
            self._known[own] = found
        return found

    def _inside(self, leaf: Schema, around: frozenset[int]) -> Ways:
        kind = leaf.get("type")
        if "const" in leaf:
            return SCALAR
        if "enum" in leaf:
            return Ways(all=len(leaf["enum"]))
        if (found := _object(leaf, self._root)) is not None:
            properties, extra = found
            values = [self._union(value, around) for value in properties.values()]
            other = [] if extra is None else [self._union(extra, around)]
            for value in values:  # a name may be any name as well
                _refuse_growth([value, *other])
            more = other[0] if other else Ways(0.0, 0.0)
            return Ways(
                max([1.0, *(value.nested + more.nested for value in values)]),
                max([1.0 + len(values), *(value.all + more.all for value in values)]),
                frozenset().union(*(value.backs for value in [*values, *other])),
                any(value.deep for value in [*values, *other]),
            )
        if (items := _items(leaf)) is not None:
            values = [self._union(item, around) for item in items]
            return Ways(
                max([1.0, *(value.nested for value in values)]),
                max([1.0, *(value.all for value in values)]),
                frozenset().union(*(value.backs for value in values)),
                any(value.deep for value in values),
            )
        if kind in (None, "string") and "pattern" in leaf:
            return Ways(all=max(1.0, self._size_of(leaf["pattern"])))
        return ANYTHING if kind in (None, "object", "array", "value") else SCALAR

    def _alike(self, one: Schema, other: Schema) -> bool:
        """Whether a text of both may have gone into something nested."""
        if one is other:
            return True
        if _kind(one) != _kind(other):
            return False
        names = [self._required(leaf) for leaf in (one, other)]
        for (a, value), (b, second) in zip(*names, strict=False):
            if a != b:
                return False
            first, then = self._constants(value), self._constants(second)
            if first and then and not first & then:
                return False
            if not (self._flat(value) and self._flat(second)):
                return True
        return True

    def _required(self, leaf: Schema) -> list[tuple[str, Any]]:
        found = _object(leaf, self._root)
        if found is None:
            return []
        names = set(leaf.get("required", ())) if "allOf" not in leaf else set(found[0])
        return [(name, value) for name, value in found[0].items() if name in names]

    def _constants(self, node: Any) -> frozenset[str]:
        """All values that are possible, as text; empty where others are."""
        values: set[str] = set()
        for leaf in self._leaves(node, frozenset()):
            given = [leaf["const"]] if "const" in leaf else leaf.get("enum")
            if not given:
                return frozenset()
            values.update(json.dumps(value, sort_keys=True) for value in given)
        return frozenset(values)

    def _flat(self, node: Any) -> bool:
        return all(_kind(leaf) == "scalar" for leaf in self._leaves(node, frozenset()))


def target(root: Schema, ref: str) -> Any:
    """What a reference into the same schema points to; KeyError where that is nothing."""
    found: Any = root
    for name in ref.partition("#")[2].split("/")[1:]:
        found = found[name]
    return found


def _refuse_growth(alike: list[Ways]) -> None:
    """Where two that begin alike are without a bound, and one comes back to here, each level adds
    to the ways of the one before."""
    if sum(ways.deep for ways in alike) > 1 and any(ways.backs for ways in alike):
        raise InputError("the schema contains itself in alternatives that begin alike", HINT)


def _object(leaf: Schema, root: Schema) -> tuple[dict[str, Any], Any] | None:
    """(properties, what other names have or None), or None for what is no object with properties."""
    if leaf.get("type") not in (None, "object"):
        return None
    extra = leaf.get("additionalProperties")
    if "properties" in leaf or extra not in (None, True):
        other = {} if extra is True else extra if isinstance(extra, dict) else None
        return dict(leaf.get("properties", {})), other
    if "allOf" not in leaf:
        return None
    properties: dict[str, Any] = {}
    for part in leaf["allOf"]:
        for component in part.get("anyOf", [part]):
            if "$ref" in component:
                component = target(root, component["$ref"])
            for name, value in component.get("properties", {}).items():
                if name in properties:
                    raise InputError(f"two parts of an allOf of the schema have {name!r}")
                properties[name] = value
    return properties, None


def _items(leaf: Schema) -> list[Any] | None:
    if leaf.get("type") not in (None, "array") or not ("items" in leaf or "prefixItems" in leaf):
        return None
    items = leaf.get("items") or leaf["prefixItems"]
    return list(items) if isinstance(items, list) else [items]


def _kind(leaf: Schema) -> str:
    """By how its texts begin."""
    kind = leaf.get("type")
    if "const" in leaf or "enum" in leaf:
        return "scalar"
    if kind in ("object", "array"):
        return str(kind)
    if kind is not None:
        return "scalar"
    if not leaf or {"properties", "additionalProperties", "allOf"} & leaf.keys():
        return "object"
    return "array" if {"items", "prefixItems"} & leaf.keys() else "scalar"
