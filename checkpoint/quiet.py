"""Keep the advice, bars and warnings of the libraries off the terminal while they work; what matters is raised.

The process's stdout and stderr are left alone: other threads write there too, and what they write is theirs.
"""

import contextlib
import functools
import logging
import warnings
from collections.abc import Iterator
from unittest import mock

NOISY = ("torch.fx", "torch.onnx", "torch.export", "torch._export", "onnxscript", "transformers")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, these libraries' loggers and the bars of transformers."""
    from tqdm.auto import tqdm
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    # The bar over a GGUF file's tensors asks for no setting.
    bar = functools.partial(tqdm, disable=True)
    try:
        with warnings.catch_warnings(), mock.patch.dict(vars(gguf), tqdm=bar):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        transformers_logging.enable_progress_bar()
