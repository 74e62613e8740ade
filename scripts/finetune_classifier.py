"""Fine-tune an encoder into a classifier of sentences, on the CPU in minutes: a checkpoint to measure quantization on.

    python scripts/finetune_classifier.py CHECKPOINT sst2.train.tsv -o DIR [--epochs 1] [--rows N]

TRAIN.tsv has columns "sentence" (or "text") and "label"; labels are the numbers from 0, named by --labels. The whole
model is trained by AdamW with a linear decay, in batches of texts of like length, from seed 0. It needs torch and
transformers.
"""

import argparse
import csv
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

BATCH, RATE, WARM_UP = 32, 5e-5, 0.1


def main() -> None:
    """Train, and save the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--max-length", type=int, default=64, help="tokens of a sentence; longer ones are cut")
    parser.add_argument("--rows", type=int, help="train on so many rows, chosen at random (default: all)")
    parser.add_argument("--labels", default="negative,positive", help="names, in the order of their numbers")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with arguments.train.open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    torch.manual_seed(0)
    if arguments.rows is not None:
        rows = [rows[index] for index in torch.randperm(len(rows)).tolist()[: arguments.rows]]
    texts = [row.get("sentence") or row["text"] for row in rows]
    targets = torch.tensor([int(float(row["label"])) for row in rows])
    names = arguments.labels.split(",")
    tokenizer = AutoTokenizer.from_pretrained(arguments.checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(
        arguments.checkpoint,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    steps = arguments.epochs * ((len(rows) + BATCH - 1) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (WARM_UP * steps), (steps - step) / steps)
    )
    began, done = time.perf_counter(), 0
    for _ in range(arguments.epochs):
        for batch in batches(texts):
            inputs = tokenizer(
                [texts[index] for index in batch],
                padding=True,
                truncation=True,
                max_length=arguments.max_length,
                return_tensors="pt",
            )
            loss = model(**inputs, labels=targets[batch]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            done += 1
            if done % 10 == 0:
                spent = time.perf_counter() - began
                left = spent / done * (steps - done)
                sys.stderr.write(f"step {done} of {steps}: loss {loss.item():.3f}, {left:.0f} s left\n")
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


def batches(texts: list[str]) -> list[list[int]]:
    """Random batches of texts of like length: sorted within random pools of 32 batches."""
    order = torch.randperm(len(texts)).tolist()
    pool = 32 * BATCH
    pools = (sorted(order[at : at + pool], key=lambda index: len(texts[index])) for at in range(0, len(order), pool))
    found = [part[at : at + BATCH] for part in pools for at in range(0, len(part), BATCH)]
    return [found[index] for index in torch.randperm(len(found)).tolist()]


if __name__ == "__main__":
    main()
