import json

import pytest
from embedded import classifier

from piston.core.errors import MisuseError
from piston.evaluation.tasks.text_classification import quality


def test_several_labels_of_a_text_are_refused_where_the_model_gives_one(tmp_path):
    records = [{"text": "a", "label": "a-ish"}, {"text": "b", "label": ["a-ish", "b-ish"]}]
    path = tmp_path / "dev.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(MisuseError, match="record 2, has 2 labels; the model gives each text one"):
        quality(classifier(), path)
    assert set(quality(classifier("multi_label"), path)) == {"accuracy", "f1"}
