from checkpoints import write_checkpoint

from piston.export import ExportOptions, export_model


def test_the_same_checkpoint_gives_the_same_files_in_another_directory(tmp_path):
    options = ExportOptions(check_parity=False)
    for name in ("first", "second/deeper"):
        write_checkpoint(tmp_path / name / "checkpoint")
        export_model(tmp_path / name / "checkpoint", tmp_path / name / "model", options)
    first, second = tmp_path / "first/model", tmp_path / "second/deeper/model"
    names = sorted(path.name for path in first.iterdir())
    assert "model.onnx.data" in names
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
