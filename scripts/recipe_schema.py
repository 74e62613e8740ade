"""Write docs/schemas/recipe.json: run it after a verb's options changed."""

import json
from pathlib import Path

from piston.pipeline.schema import schema

path = Path(__file__).parents[1] / "docs/schemas/recipe.json"
path.write_text(json.dumps(schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
print(path)
