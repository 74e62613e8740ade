import logging
import warnings

import pytest

pytest.importorskip("transformers")

from piston.checkpoint.quiet import quiet
from piston.cli.main import main
from piston.core.errors import MisuseError


def test_what_others_print_meanwhile_reaches_the_terminal(capsys):
    with quiet():
        print("of another thread")  # noqa: T201
    assert capsys.readouterr().out == "of another thread\n"


def test_the_bar_over_a_gguf_file_is_not_shown_and_is_back_afterwards(capsys):
    from transformers import modeling_gguf_pytorch_utils as gguf

    for is_quiet in (True, False):
        if is_quiet:
            with quiet():
                assert list(gguf.tqdm([1, 2], desc="tensors")) == [1, 2]
        else:
            list(gguf.tqdm([1, 2], desc="tensors"))
        assert ("tensors" in capsys.readouterr().err) is not is_quiet


def test_warnings_and_the_libraries_loggers_are_silent_and_are_back_afterwards(capsys):
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    with quiet():
        warnings.warn("advice", stacklevel=1)
        assert not logger.isEnabledFor(logging.WARNING)
    assert logger.level == before
    assert capsys.readouterr() == ("", "")
    with pytest.warns(UserWarning, match="advice"):
        warnings.warn("advice", stacklevel=1)


def test_what_a_checkpoint_prints_is_no_part_of_the_result(monkeypatch, capsys, tmp_path):
    from piston.export import cli

    def prints(*arguments):
        print("hello from a checkpoint's own code")  # noqa: T201
        raise MisuseError("and it fails")

    monkeypatch.setattr(cli, "export_model", prints)
    assert main(["export", str(tmp_path), "-o", str(tmp_path / "out"), "--json"]) == 2
    out, err = capsys.readouterr()
    assert (out, "hello from" in err) == ("", True)
