"""Answers of a bundle next to transformers': greedy ones, and hypotheses of a beam search with their scores.

    python scripts/compare_text_to_text.py CHECKPOINT BUNDLE --text TEXT [--text TEXT] [--num-beams 4] [--max-tokens 24]

The exit status is 1 where a token differs, or a score by more than 0.001.
"""

import argparse
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from piston.runtime import load
from piston.runtime.sampling.beam_params import BeamParams

SCORE = 1e-3


def main() -> int:
    """Compare, and print each answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("bundle")
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument("--num-beams", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=24)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.checkpoint)
    reference = AutoModelForSeq2SeqLM.from_pretrained(arguments.checkpoint, dtype=torch.float32).eval()
    is_same = True
    with load(arguments.bundle) as model:
        for num_beams in dict.fromkeys((1, arguments.num_beams)):
            beams = None if num_beams == 1 else BeamParams(num_beams=num_beams, num_return_sequences=num_beams)
            found = iter(model.generate(arguments.text, model.sampling(max_tokens=arguments.max_tokens), beams=beams))
            for text in arguments.text:
                expected: Any = reference.generate(
                    **tokenizer(text, return_tensors="pt"),
                    do_sample=False,
                    num_beams=num_beams,
                    num_return_sequences=num_beams,
                    max_new_tokens=arguments.max_tokens,
                    output_scores=True,
                    return_dict_in_generate=True,
                )
                scores = [None] if num_beams == 1 else expected.sequences_scores.tolist()
                for ids, score in zip(expected.sequences.tolist(), scores, strict=True):
                    completion = next(found)
                    same = list(completion.token_ids) == ids[1 : 1 + len(completion.token_ids)]
                    same &= score is None or abs(completion.score - score) <= SCORE
                    is_same &= same
                    print("same" if same else "DIFFERS", num_beams, completion.score, repr(completion.text))
    return 0 if is_same else 1


if __name__ == "__main__":
    raise SystemExit(main())
