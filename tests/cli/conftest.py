"""A directory with a toy of every kind, in which tests of all commands work."""

import shutil

import pytest


@pytest.fixture(scope="session")
def places(toys, encoder_toys, text_bundle, speech_model, tmp_path_factory):
    """Directory with bundles, models and data by name; tests leave them as they are."""
    import numpy as np
    from checkpoints import write_checkpoint
    from encoders import write_sentence_checkpoint
    from modules import SHAPES, Scorer, example
    from speech import write_sound

    from piston.engines import build
    from piston.export import export_module

    root = tmp_path_factory.mktemp("places")
    for name, source in {
        "MODEL": toys.model_dir(),
        "BUNDLE": toys.bundle(),
        "ENCODER": encoder_toys.bundle("single"),
        "TAGGER": encoder_toys.bundle("tagger"),
        "ANSWERER": encoder_toys.bundle("answerer"),
        "RERANKER": encoder_toys.bundle("reranker"),
        "EMBEDDER": toys.built(toys.exported(write_sentence_checkpoint)),
        "TRANSLATOR": text_bundle,
        "SPEECH": toys.built(speech_model[0], max_batch=2),
    }.items():
        shutil.copytree(source, root / name)
    write_checkpoint(root / "CHECKPOINT")
    export_module(Scorer(), example(), root / "module", dynamic_shapes=SHAPES)
    build(root / "module", root / "MODULE")
    np.savez(root / "ARRAYS.npz", **{name: array.numpy() for name, array in example().items()})
    write_sound(root / "SOUND.wav", 0.9, 3)
    for name in ("TEXT", "OTHER", "MORE", "TEXT.toml"):
        (root / name).write_text("the sea is calm\n" * 40)
    return root
