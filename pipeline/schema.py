"""Makes the JSON schema of a recipe, docs/schemas/recipe.json, from the options of the verbs."""

from typing import Any

from piston.pipeline.options import Option, options_of
from piston.pipeline.recipe import FLOAT, TABLES

_TEXT: dict[str, Any] = {"type": "string"}
_CHECKPOINT = {
    "source": {**_TEXT, "description": "a path relative to the recipe, or a hub id"},
    "sha256": {**_TEXT, "description": "of a file; of a directory's listing as sha256sum prints it"},
    "revision": {**_TEXT, "pattern": "^[0-9a-f]{40}$", "description": "the commit of a hub id"},
    "license": {**_TEXT, "description": "SPDX expression, for the bill of materials"},
}
_GATES = {
    "require": {"type": "array", "items": _TEXT},
    "skip": {
        "type": "array",
        "items": {"enum": ["verify"]},
        "description": "do not run `piston verify`: for bundles none of whose engines runs on this machine",
    },
}
_OUTPUT = {
    "bundle": {**_TEXT, "description": "the bundle that met the gates, relative to the recipe"},
    "report": {**_TEXT, "description": "a directory for report.json, junit.xml, summary.md and index.html"},
    "lock": {**_TEXT, "default": "piston.lock"},
}


def schema() -> dict[str, Any]:
    """The schema; raises MissingExtraError where a verb's packages are not installed."""
    from piston.cli.main import VERBS

    verbs = {verb: _table(verb, options_of(verb)) for verb in TABLES if verb in VERBS}
    either = {"anyOf": [{"required": ["sha256"]}, {"required": ["revision"]}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A recipe of `piston make`",
        "type": "object",
        "properties": {
            "schema": {"const": 1},
            "checkpoint": {**_object(_CHECKPOINT, ["source"], "what is exported"), **either},
            **verbs,
            "gates": _object(_GATES, [], "what must hold before the bundle is published"),
            "output": _object(_OUTPUT, ["bundle"], "what is written"),
        },
        "required": ["checkpoint", "output"],
        "additionalProperties": False,
    }


def _table(verb: str, options: dict[str, Option]) -> dict[str, Any]:
    properties = {name: _property(option) for name, option in sorted(options.items())}
    if verb == "eval":
        properties["reference"]["description"] = f"a bundle or model directory, or {FLOAT!r}: what this recipe exports"
    return _object(properties, [], f"options of `piston {verb}`")


def _property(option: Option) -> dict[str, Any]:
    value: dict[str, Any] = {"type": option.kind}
    if option.kind in {"integer", "number"}:
        value["minimum"] = 0
    if option.choices:
        value["enum"] = list(option.choices)
    if option.is_list:
        value = _list(value) | {"minItems": 1}
    return {**value, "description": option.help}


def _object(properties: dict[str, Any], required: list[str], description: str) -> dict[str, Any]:
    found = {"type": "object", "description": description, "properties": properties, "additionalProperties": False}
    return {**found, **({"required": required} if required else {})}


def _list(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}
