"""In how many ways the beginning of a text may still go on by a schema.

llama.cpp follows all of them at once (llama-grammar.cpp: `llama_grammar_advance_stack` compares each
new stack with every other), and nothing can stop it in the middle: in one recursive schema
whose arrays begin alike they multiply with each bracket. So ways are counted before it gets to see a schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from edgeft.errors import InputError

NESTED = 64
"""ways through arrays and objects in each other"""
WAYS = 4000
"""the same, times the constants, properties and patterns that are possible in the innermost"""
PAIRS = 100_000
"""alternatives that are held to each other"""
TYPES = (None, "string", "number", "integer", "boolean", "null", "object", "array")
HINT = "tell alternatives apart by a required first property with a const"
Schema = Mapping[str, Any]
T = TypeVar("T")


class Counter:
    """Reads a schema as llama_cpp.llama_grammar.SchemaConverter.visit does.

    What may hold other values (an array, an object) is a node of a graph, with an edge to each
    array and object that may stand in it. Where two that begin alike go on without a bound, and one
    of them leads back, each level of a text adds to the ways of the one around it.
    """

    def __init__(self, root: Schema, size_of: Callable[[str], float]) -> None:
        """`size_of`: how large a regular expression is."""
        self._root, self._size_of = root, size_of
        self._pairs = 0
        self._cache: dict[tuple[str, Any], Any] = {}
        self._kept: list[Any] = []
        self._low: dict[int, int] = {}
        self._open: list[int] = []
        self._ring: dict[int, int] = {}
        """node -> the first of those that lead to each other"""
        self._deep: set[int] = set()
        """nodes that can go on without a bound"""
        self._ways: dict[int, tuple[float, float]] = {}

    def check(self) -> None:
        """InputError where a text may have too many ways."""
        top = self._leaves(self._root)
        for leaf in top:
            self._visit(leaf)
        nested, total = self._sum([top], None)
        if nested > NESTED or total > WAYS:
            raise InputError("the schema can be followed in too many ways at once", HINT)

    def _visit(self, leaf: Schema) -> None:
        """Tarjan's strongly connected components; ways are counted from the innermost."""
        own = id(leaf)
        if own in self._low:
            return
        number = self._low[own] = len(self._low)
        self._open.append(own)
        inner = [child for places in self._places(leaf) for child in places]
        for child in inner:
            self._visit(child)
            if id(child) not in self._ring:
                self._low[own] = min(self._low[own], self._low[id(child)])
        if self._low[own] != number:
            return
        ring = self._open[self._open.index(own) :]
        del self._open[-len(ring) :]
        self._ring.update(dict.fromkeys(ring, own))
        leaves = [self._cache["leaf", one] for one in ring]
        below = [child for one in leaves for places in self._places(one) for child in places]
        if any(self._ring[id(c)] == own or id(c) in self._deep for c in below) or _is_any(leaf):
            self._deep.update(ring)
        ways = self._sum([places for one in leaves for places in self._places(one)], own)
        width = max(map(self._width, leaves))
        self._ways.update(dict.fromkeys(ring, (ways[0], max(ways[1], width))))

    def _sum(self, places: list[tuple[Schema, ...]], ring: int | None) -> tuple[float, float]:
        """The most (nested, all) ways of one of the places; InputError where they grow."""
        most = [1.0, 1.0]
        for leaves in places:
            most[1] = max(most[1], sum(map(self._before_told, leaves)))
            for alike in self._alike(leaves):
                numbers = list(map(id, alike))
                back = [self._ring[number] == ring for number in numbers]
                if any(back) and sum(number in self._deep for number in numbers) > 1:
                    raise InputError(
                        "the schema contains itself in alternatives that begin alike", HINT
                    )
                # What is not led back from begins anew with each level, as deep as it is itself.
                times = len(self._ways) + 1.0 if any(back) else 1.0
                counts = [
                    (1.0, 1.0)
                    if is_back
                    else (self._ways[number][0], self._ways[number][1] * times)
                    for number, is_back in zip(numbers, back, strict=True)
                ]
                most = [
                    max(a, sum(b)) for a, b in zip(most, zip(*counts, strict=True), strict=True)
                ]
        return most[0], most[1]

    def _alike(self, leaves: tuple[Schema, ...]) -> list[list[Schema]]:
        """For each kind of node those that a text may be in at once; all that holds nothing together."""
        key = "alike", tuple(map(id, leaves))
        if key not in self._cache:
            holds = [leaf for leaf in leaves if _kind(leaf) != "scalar"]
            self._spend(len(holds) ** 2)
            groups = [[b for b in holds if self._are_alike(a, b)] for a in holds]
            self._cache[key] = [*groups, [leaf for leaf in leaves if _kind(leaf) == "scalar"]]
        return [group for group in self._cache[key] if group]

    def _are_alike(self, one: Schema, other: Schema) -> bool:
        """Whether a text of both may have gone into something that holds other values."""
        if one is other:
            return True
        if _kind(one) != _kind(other):
            return False
        for (a, value), (b, second) in zip(
            self._required(one), self._required(other), strict=False
        ):
            if a != b:
                return False
            first, then = self._constants(value), self._constants(second)
            if first and then and not first & then:
                return False
            if not (self._is_flat(value) and self._is_flat(second)):
                return True
        return True

    def _leaves(self, node: Any) -> tuple[Schema, ...]:
        """The alternatives of a place where a value is expected, behind references."""
        return self._once("leaves", node, lambda: tuple(self._alternatives(node, frozenset())))

    def _alternatives(self, node: Any, seen: frozenset[str]) -> Iterator[Schema]:
        self._spend(1)
        if (ref := node.get("$ref")) is not None:
            if ref in seen:
                raise InputError(f"{ref} of the schema is nothing but itself")
            found: Iterable[Schema] = self._alternatives(target(self._root, ref), seen | {ref})
        elif "oneOf" in node or "anyOf" in node:
            every = node.get("oneOf") or node["anyOf"]
            found = (leaf for one in every for leaf in self._alternatives(one, seen))
        elif isinstance(kinds := node.get("type"), list):
            found = self._once("kinds", node, lambda: [{"type": kind} for kind in kinds])
        else:
            found = [node]
        for leaf in found:
            if leaf.get("type") not in TYPES and not _is_literal(leaf):
                raise InputError(f"{str(leaf['type'])[:40]!r} is no type of a schema")
            self._cache["leaf", id(leaf)] = leaf
            yield leaf

    def _places(self, leaf: Schema) -> list[tuple[Schema, ...]]:
        """What may stand in it, for each place on its own."""
        return self._once("places", leaf, lambda: self._inside(leaf))

    def _inside(self, leaf: Schema) -> list[tuple[Schema, ...]]:
        if (found := self._object(leaf)) is not None:
            properties, _, extra = found
            other = () if extra is None else self._leaves(extra)
            # A name that is known may be any name as well.
            self._spend(len(properties) * len(other))
            places = [(*self._leaves(value), *other) for value in properties.values()]
            return [*places, other]
        return [self._leaves(item) for item in _items(leaf) or ()]

    def _required(self, leaf: Schema) -> list[tuple[str, Any]]:
        def find() -> list[tuple[str, Any]]:
            properties, names, _ = self._object(leaf) or ({}, set(), None)
            return [(name, value) for name, value in properties.items() if name in names]

        return self._once("required", leaf, find)

    def _before_told(self, leaf: Schema) -> float:
        """Ways within the first properties, which all that are told apart later still share."""
        most = 1.0
        for _, value in self._required(leaf):
            if not self._is_flat(value):
                break
            most = max(most, sum(map(self._width, self._leaves(value))))
            if len(self._constants(value)) == 1:
                break
        return most

    def _constants(self, node: Any) -> frozenset[str]:
        """All values that are possible, as text; empty where others are."""

        def find() -> frozenset[str]:
            values: set[str] = set()
            for leaf in self._leaves(node):
                given = [leaf["const"]] if "const" in leaf else leaf.get("enum")
                if not given:
                    return frozenset()
                values.update(json.dumps(value) for value in given)
            return frozenset(values)

        return self._once("constants", node, find)

    def _is_flat(self, node: Any) -> bool:
        def find() -> bool:
            return all(_kind(leaf) == "scalar" for leaf in self._leaves(node))

        return self._once("flat", node, find)

    def _width(self, leaf: Schema) -> float:
        if "const" in leaf:
            return 1.0
        if "enum" in leaf:
            return float(len(leaf["enum"]))
        if (found := self._object(leaf)) is not None:
            return 1.0 + len(found[0])
        return max(1.0, self._size_of(leaf["pattern"])) if "pattern" in leaf else 1.0

    def _object(self, leaf: Schema) -> tuple[dict[str, Any], set[str], Any] | None:
        """(properties, those that are required, what other names have or None); None for all else."""
        return self._once("object", leaf, lambda: _object(leaf, self._root))

    def _spend(self, pairs: int) -> None:
        """So much work is to be done; InputError where all of it is too much."""
        self._pairs += pairs
        if self._pairs > PAIRS:
            raise InputError("the schema has too many alternatives", "simplify it")

    def _once(self, what: str, node: Any, find: Callable[[], T]) -> T:
        key = what, id(node)
        if key not in self._cache:
            self._kept.append(node)  # so that its id stays its own
            self._cache[key] = find()
        found: T = self._cache[key]
        return found


def target(root: Schema, ref: str) -> Any:
    """What a reference into the same schema points to; KeyError where that is nothing."""
    found: Any = root
    for name in ref.split("#")[-1].split("/")[1:]:
        found = found[name]
    return found


def _object(leaf: Schema, root: Schema) -> tuple[dict[str, Any], set[str], Any] | None:
    if _is_literal(leaf) or leaf.get("type") not in (None, "object"):
        return None
    extra = leaf.get("additionalProperties")
    if not isinstance(extra, bool | dict | None):
        raise InputError("additionalProperties of a schema is true, false or a schema")
    if "properties" in leaf or _has_others(leaf):
        other = {} if extra is True else extra if isinstance(extra, dict) else None
        properties = _named(leaf.get("properties", {}))
        return properties, set(leaf.get("required", ())), other
    if "allOf" not in leaf:
        return None
    properties, required = {}, set[str]()
    for part in leaf["allOf"]:
        for component in part.get("anyOf", [part]):
            if "$ref" in component:
                component = target(root, component["$ref"])
            for name, value in _named(component.get("properties", {})).items():
                if name in properties:
                    raise InputError(f"two parts of an allOf of the schema have {name!r}")
                properties[name] = value
                required |= set() if "anyOf" in part else {name}
    return properties, required, None


def _named(properties: dict[str, Any]) -> dict[str, Any]:
    if "*" in properties:
        raise InputError("a property of a schema is not named *")
    return properties


def _items(leaf: Schema) -> list[Any] | None:
    if _is_literal(leaf) or leaf.get("type") not in (None, "array"):
        return None
    if not ("items" in leaf or "prefixItems" in leaf):
        return None
    items = leaf.get("items") or leaf["prefixItems"]
    return list(items) if isinstance(items, list) else [items]


def _has_others(leaf: Schema) -> bool:
    return leaf.get("additionalProperties") not in (None, True)


def _is_literal(leaf: Schema) -> bool:
    return "const" in leaf or "enum" in leaf


def _is_any(leaf: Schema) -> bool:
    """An array or object of anything, which can go on without a bound."""
    return _kind(leaf) != "scalar" and _items(leaf) is None and not (
        {"properties", "allOf"} & leaf.keys() or _has_others(leaf)
    )  # fmt: skip


def _kind(leaf: Schema) -> str:
    """By how its texts begin."""
    kind = leaf.get("type")
    if _is_literal(leaf):
        return "scalar"
    if kind in ("object", "array"):
        return str(kind)
    if kind is not None:
        return "scalar"
    if not leaf or {"properties", "allOf"} & leaf.keys() or _has_others(leaf):
        return "object"
    return "array" if {"items", "prefixItems"} & leaf.keys() else "scalar"
