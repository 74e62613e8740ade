"""Language models: perplexity, and agreement with the float model token by token."""

from piston.evaluation.metrics import METRICS as FIGURES

# What a bound may be on: figures of one model beside another that say how far it moved.
METRICS = {name: FIGURES[name] for name in ("ppl", "kl", "top1")}
# Of a scheme by itself, on text that calibration did not see: what is beyond is no quantized model but a broken one.
DEFAULTS = {"fp": "ppl<=1%", "w8": "ppl<=2%", "w8a8": "ppl<=10%", "w4": "ppl<=50%"}
