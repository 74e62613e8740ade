"""Write the tables of request fields into docs/serving.md, from the endpoints of piston.serving.tasks.

    python scripts/serving_fields.py [--check]

With --check nothing is written; exit status 1 where the table is not what the code says.
"""

import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from piston.core.tasks import task_module, task_names
from piston.serving import fields, tasks
from piston.serving.endpoint import Endpoint
from piston.serving.generation_fields import StreamOptions

DOCUMENT = Path(__file__).parents[1] / "docs/serving.md"
BEGIN, END = "<!-- fields: scripts/serving_fields.py writes this table -->", "<!-- end of fields -->"


def main(arguments: list[str]) -> int:
    """Write or check."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = f"{before}{BEGIN}\n{tables()}\n{END}{after}"
    if "--check" in arguments:
        return int(made != text)
    DOCUMENT.write_text(made, encoding="utf-8")
    return 0


def tables() -> str:
    """One table for each kind of request."""
    found: dict[type, Endpoint] = {}
    for task in ("text-generation", *task_names(tasks)):
        for endpoint in task_module(tasks, task).ENDPOINTS.values():
            found.setdefault(endpoint.kind, endpoint)
    return "\n\n".join(map(_table, found.values()))


def _table(endpoint: Endpoint) -> str:
    rows = [
        f"| `{field.name}` | {_type(field.type)} | {_note(field)} |" for field in msgspec.structs.fields(endpoint.kind)
    ]
    rows += [f"| `{name}` | refused | {_reason(item)} |" for name, item in endpoint.refused.items()]
    title = (endpoint.kind.__doc__ or "").strip().rstrip(".")
    return "\n".join([f"### {title}\n", "| field | type | |", "|---|---|---|", *rows])


def _type(kind: Any) -> str:
    """A type as a reader of JSON knows it."""
    inner = [item for item in get_args(kind) if not isinstance(item, msgspec.Meta) and item is not msgspec.UnsetType]
    origin = getattr(kind, "__origin__", None)
    if hasattr(kind, "__metadata__"):
        return _type(inner[0])
    if origin in (list, dict):
        return "list" if origin is list else "object"
    names = {
        str: "text",
        int: "integer",
        float: "number",
        bool: "true or false",
        bytes: "file",
        Any: "any",
        StreamOptions: "object",
    }
    if get_origin(kind) is Literal:
        return "text"
    return names[kind] if kind in names else " or ".join(dict.fromkeys(map(_type, inner)))


def _note(field: msgspec.structs.FieldInfo) -> str:
    """What the field's own Meta says."""
    pending, notes = [field.type], []
    while pending:
        kind = pending.pop()
        notes += [item.description for item in getattr(kind, "__metadata__", ()) if item.description]
        pending += [item for item in get_args(kind) if not isinstance(item, msgspec.Meta)]
    return "; ".join([*notes, *(["needed"] if field.required else [])])


def _reason(refused: fields.Refused) -> str:
    accepted = ", ".join(f"`{msgspec.json.encode(value).decode()}`" for value in refused.harmless)
    return refused.reason + (f" ({accepted} is accepted)" if accepted else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
