"""Keep the advice, bars and warnings of the libraries off the terminal while they work; what matters is raised."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

NOISY = ("torch.onnx", "torch.export", "torch._export", "onnxscript", "transformers")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, these libraries' loggers and whatever they print to stdout and stderr."""
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        transformers_logging.enable_progress_bar()
