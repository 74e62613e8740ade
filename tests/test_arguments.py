"""Public functions refuse what is of another type, before anything is read."""

import re

import pytest

from piston.calibration.calibrate import calibrate
from piston.calibration.recipe import Recipe
from piston.core.errors import MisuseError
from piston.engines import build
from piston.export import export_model, export_module
from piston.runtime.conversation import Conversation


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (build, ("a", "b", "ort-cpu"), "targets is 'ort-cpu'; it must be a list of strings; for one text, give [text]"),
        (build, ("a", "b", ["ort-cpu", 3]), "targets[1] is 3; it must be a string"),
        (build, (3, "b"), "model_dir is 3; it must be a string or a Path"),
        (calibrate, ("a", "b", {}), "recipe is {}; it must be a Recipe"),
        (
            calibrate,
            ("a", "b", Recipe(scheme="w8"), "rows.txt"),
            "data is 'rows.txt'; it must be a list of strings or Paths",
        ),
        (Conversation.say, (None, 5), "text is 5; it must be a string"),
        (export_model, ("a", "b", {}), "options is {}; it must be an ExportOptions or None"),
        (export_module, ("a", {}, "b"), "module is 'a'; it must be a Module"),
    ],
)
def test_an_argument_of_another_type_is_named_with_what_it_takes(function, arguments, message):
    with pytest.raises(MisuseError, match=re.escape(message)):
        function(*arguments)
