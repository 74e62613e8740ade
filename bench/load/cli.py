"""`piston bench --serve BUNDLE|URL`: a server under load, alone, next to other servers, or against a baseline."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from piston.bench.baseline import Reference, read_reference
from piston.bench.child import Contender
from piston.bench.fingerprint import take_fingerprint
from piston.bench.gate import LOAD_FIGURES, Gate, check_known, check_samples, judge, strictest
from piston.bench.load.measure import measure_loads
from piston.bench.load.setting import LoadSetting, LoadWork, Range, product
from piston.bench.load.slo import parse_slo
from piston.bench.publish import check_outputs, publish
from piston.bench.ratios import ratios_of
from piston.bench.report import Options, Report
from piston.bench.systems import bundle_contender, named_apart, read_against, url_contender
from piston.bench.workload import prompts_of_file
from piston.bench.works import check_positions
from piston.core.bundle.manifest import TEXT_GENERATION
from piston.core.console import Progress
from piston.core.errors import MisuseError
from piston.core.gates import gates_of
from piston.core.given import given_option
from piston.core.machine import num_cores
from piston.core.units import parse_count
from piston.runtime.backends.session import check_threads
from piston.runtime.bundle import Bundle

REPEATS, WARMUP = 5, 1
# Options that servers do not have, with their defaults.
OF_BUNDLES = {
    "--checkpoint": None,
    "--profile": False,
    "--batch": [1],
    "--num-beams": [1],
    "--audio-len": None,
    "--starts": 3,
}
# And those that only servers have.
OF_SERVERS = {
    "--concurrency": None,
    "--rate": None,
    "--requests": None,
    "--shared-prefix": "0",
    "--long-prompt": 0,
    "--slo": "",
    "--engine": False,
}
CONCURRENCY = [1, 8]
REQUESTS, PER_CLIENT, OPEN = 16, 4, 64  # least requests of a run, those of each client, and those of an open loop
URL_VOCAB = 1000  # ids below this are words of any tokenizer; a URL does not say how many it has
EXAMPLE = "ttft<500ms,itl.p95<50ms"


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what only a server under load has."""
    group = parser.add_argument_group("servers under load")
    add = group.add_argument
    add(
        "--serve",
        metavar="BUNDLE|URL",
        help="in place of BUNDLE: serve it, or take a server that runs, and send many requests at a time",
    )
    add("--concurrency", metavar="N,N...", help="closed loop: requests at a time (default: 1,8)")
    add("--rate", metavar="R,R...", help="open loop: requests a second, Poisson (default: no open loop)")
    add(
        "--requests",
        type=int,
        metavar="N",
        help="requests of a run (default: 4 for each at a time, at least 16; with --rate 64)",
    )
    add("--shared-prefix", metavar="N,N...", default="0", help="tokens that all prompts begin with (default: 0)")
    add("--long-prompt", type=int, default=0, metavar="N", help="one more prompt of N tokens in the middle of a run")
    add("--slo", default="", metavar="SLO", help=f"what counts as goodput, such as '{EXAMPLE}' (default: any answer)")
    add("--engine", action="store_true", help="measure the bundle's engine without HTTP too, in turns")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, judge. Wrong options are refused before a server is started."""
    options = _options(arguments)
    parse_slo(arguments.slo)
    gates = gates_of(arguments, LOAD_FIGURES, "--fail-on")
    contenders = [_served(arguments), *read_against(arguments.against, arguments.env, arguments.rivals, served=True)]
    works = _works(arguments)
    reference = _reference(arguments, gates, options, works)
    if reference is not None and reference.contender is not None:
        contenders.append(reference.contender)
    contenders = named_apart(contenders)
    check_positions(contenders, [work.setting for work in works])
    date, machine = datetime.now(UTC).isoformat(timespec="seconds"), take_fingerprint(options.threads)
    progress = Progress(quiet=arguments.quiet)
    systems = tuple(measure_loads(contenders, works, options, progress, engine=arguments.engine))
    report = Report(
        machine=machine,
        options=options,
        systems=systems,
        ratios=ratios_of(systems),
        piston=version("piston"),
        date=date,
    )
    if reference is not None:
        report = replace(report, baseline=reference.baseline(report))
    return publish(replace(report, gates=judge(gates, report, reference, arguments.alpha)), arguments)


def _options(arguments: argparse.Namespace) -> Options:
    options = Options(
        repeats=REPEATS if arguments.repeats is None else arguments.repeats,
        warmup=WARMUP if arguments.warmup is None else arguments.warmup,
        starts=0,
        threads=num_cores() if arguments.threads is None else arguments.threads,
    )
    least = {"--repeats": (options.repeats, 1), "--warmup": (options.warmup, 0), "--threads": (options.threads, 1)}
    least["--requests"] = (1 if arguments.requests is None else arguments.requests, 1)
    least["--long-prompt"] = (arguments.long_prompt, 0)
    for name, (value, bound) in least.items():
        if value < bound:
            raise MisuseError(f"{name} is {value}; it must be at least {bound}.")
    check_threads(options.threads)
    if arguments.bundle:
        raise MisuseError(f"--serve takes the place of BUNDLE; leave out {arguments.bundle[0]}, or use --against.")
    if (option := given_option(arguments, OF_BUNDLES)) is not None:
        raise MisuseError(f"{option} is not for servers; leave it out, or --serve.")
    if arguments.target is not None and is_url(arguments.serve):
        raise MisuseError("--target names an engine of a bundle; leave it out for the URL of a server.")
    if arguments.engine and is_url(arguments.serve):
        raise MisuseError("--engine measures the engine of a bundle; give --serve a bundle.")
    if not 0 < arguments.alpha < 1:
        raise MisuseError(f"--alpha is {arguments.alpha}; it must be a probability between 0 and 1.")
    check_outputs(arguments)
    return options


def is_url(text: str) -> bool:
    """Whether this is the address of a server rather than a directory."""
    return text.startswith(("http:", "https:"))


def _served(arguments: argparse.Namespace) -> Contender:
    if is_url(arguments.serve):
        return url_contender(arguments.serve)
    return bundle_contender(Path(arguments.serve), arguments.target)


def _works(arguments: argparse.Namespace) -> list[LoadWork]:
    bundle = None if is_url(arguments.serve) else Bundle.open(arguments.serve)
    if bundle is not None:
        bundle.manifest.require_task(TEXT_GENERATION, arguments.serve)  # requests are of token ids
    vocab_size = URL_VOCAB if bundle is None else bundle.manifest.model.vocab_size
    texts: tuple[tuple[int, ...], ...] = ()
    digest, prompt_lens = None, ranges(arguments.prompt_len or "128", "--prompt-len")
    if arguments.prompts is not None:
        if bundle is None or arguments.prompt_len is not None:
            raise MisuseError("--prompts needs the tokenizer of a bundle, and has its own lengths; leave out the rest.")
        texts, digest = prompts_of_file(arguments.prompts, bundle.tokenizer())
        prompt_lens = [(min(map(len, texts)), max(map(len, texts)))]
    return [LoadWork(setting, vocab_size, texts) for setting in _settings(arguments, prompt_lens, digest)]


def _settings(arguments: argparse.Namespace, prompt_lens: list[Range], digest: str | None) -> list[LoadSetting]:
    rates = [] if arguments.rate is None else _rates(arguments.rate)
    given = None if arguments.concurrency is None else _counts(arguments.concurrency, "--concurrency", 1)
    concurrency = given or ([] if rates else CONCURRENCY)
    shared = _counts(arguments.shared_prefix, "--shared-prefix", 0)
    gen_lens = ranges(arguments.gen_len, "--gen-len")
    lengths = [(prompt, gen, prefix) for prompt in prompt_lens for gen in gen_lens for prefix in shared]
    for prompt, _, prefix in lengths:
        if prefix >= prompt[0] and prefix:
            raise MisuseError(f"--shared-prefix {prefix} leaves nothing of a prompt of {prompt[0]} tokens; lower it.")
    beside = _counts(arguments.neighbours, "--neighbours", 0)
    found = [
        LoadSetting(
            concurrency=count,
            rate=rate,
            requests=arguments.requests or (OPEN if count is None else max(REQUESTS, PER_CLIENT * count)),
            prompt_len=prompt,
            gen_len=gen,
            shared_prefix=prefix,
            long_prompt=arguments.long_prompt,
            prompts=digest,
            slo=arguments.slo,
            neighbours=busy,
        )
        for count, rate, prompt, gen, prefix in product(concurrency, rates, lengths)
        for busy in beside
    ]
    if arguments.engine and any(item.rate is not None or item.gen_len[0] < item.gen_len[1] for item in found):
        raise MisuseError("--engine needs a closed loop and one --gen-len; leave out --rate and ranges.")
    return list(dict.fromkeys(found))


def _reference(
    arguments: argparse.Namespace, gates: Sequence[Gate], options: Options, works: Sequence[LoadWork]
) -> Reference | None:
    if not arguments.engine and (unmeasured := [gate for gate in gates if gate.metric.metric == "efficiency"]):
        raise MisuseError(f"--require {unmeasured[0].text!r} needs the engine without HTTP; add --engine.")
    for gate in gates:
        check_known(gate, [work.setting for work in works])
    changes = [gate for gate in gates if gate.change_of is not None]
    if arguments.baseline is None:
        if changes:
            raise MisuseError(f"--require {changes[0].text!r} bounds a change; give --baseline, a file or a bundle.")
        return None
    if not changes:
        raise MisuseError("--baseline needs a gate; give one such as --require 'ttft<=105%', or use --against.")
    reference = read_reference(arguments.baseline)
    if reference.side is not None:
        raise MisuseError(f"--baseline {arguments.baseline} is an environment, which only recipes can use.")
    reference.check(options, [work.setting for work in works])
    there = reference.samples(options)
    level = strictest(gates, lambda _: len(works), arguments.alpha)
    for gate in changes:
        check_samples(gate, min(options.repeats, options.repeats if there is None else there.repeats), level)
    return reference


def ranges(text: str, option: str) -> list[Range]:
    """Lengths such as `128,64-256`: fixed, or drawn evenly from a range; raises MisuseError."""
    found = []
    for part in text.replace("_", "").split(","):
        first, dash, last = part.partition("-")
        low, high = parse_count(first), parse_count(last if dash else first)
        if low is None or high is None:
            raise MisuseError(f"{option} {text!r} is not a list of lengths such as 128,64-256.")
        found.append((low, high))
    if any(not 1 <= low <= high for low, high in found):
        raise MisuseError(f"{option} {text!r}: a length is at least 1, and a range goes up.")
    return found


def _counts(text: str | list[int], option: str, least: int) -> list[int]:
    parts = text if isinstance(text, list) else [parse_count(part) for part in text.replace("_", "").split(",")]
    counts = [part for part in parts if part is not None and part >= least]
    if len(counts) < len(parts):
        raise MisuseError(f"{option} {text!r} is not a list of integers of at least {least}, such as 1,8,32.")
    return list(dict.fromkeys(counts))


def _rates(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < rate < 1e6 for rate in found):  # noqa: PLR2004 - beyond any server; NaN is outside too
        raise MisuseError(f"--rate {text!r} is not a list of requests a second such as 0.5,2.")
    return found


def check_unserved(arguments: argparse.Namespace) -> None:
    """Refuse options of --serve without it; raises MisuseError."""
    if (option := given_option(arguments, OF_SERVERS)) is not None:
        raise MisuseError(f"{option} is for servers; give --serve BUNDLE or URL.")
