"""Prepare the rivals of `piston bench --against`: an environment for each, and the demo model in each one's format.

Run it where the export extra is installed (PyTorch, transformers 5, gguf). Every step leaves a mark in DIR/steps and is
not repeated, so an interrupted run is taken up where it stopped. DIR/rivals.json says what `--rivals` needs. It takes
about 4 GB, of which DIR/env/convert may be deleted when all is done.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TORCH = "torch==2.13.0"
# What each environment installs. The converters of OpenVINO and CTranslate2 need transformers before 5.
ENVIRONMENTS = {
    "convert": (TORCH, "transformers<5", "safetensors", "sentencepiece"),
    "genai": ("onnxruntime-genai==0.18.0", "numpy"),
    "ct2": ("ctranslate2==4.8.5", "numpy"),
    "openvino": ("openvino-genai==2026.4.1.0", "numpy"),
    "llama.cpp": ("llama-cpp-python==0.3.36", "numpy"),
}
CONVERTERS = (
    TORCH,
    "transformers<5",
    "optimum-intel[openvino]",
    "openvino-genai==2026.4.1.0",
    "ctranslate2==4.8.5",
)
# llama.cpp is built for the instructions of this machine except AMX: `GGML_NATIVE` would switch AMX on, and that path
# has crashed on virtual machines. cpuinfo's name of a flag: the option of the build.
INSTRUCTIONS = {
    "avx": "AVX", "avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "bmi2": "BMI2", "avx_vnni": "AVX_VNNI",
    "avx512f": "AVX512", "avx512vbmi": "AVX512_VBMI", "avx512_vnni": "AVX512_VNNI", "avx512_bf16": "AVX512_BF16",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Workshop:
    """The directory everything is made in; `step` runs what is not yet done."""

    root: Path
    checkpoint: Path

    def python(self, environment: str) -> Path:
        """The interpreter of an environment."""
        return self.root / "env" / environment / "bin" / "python"

    def model(self, name: str) -> Path:
        """The path of a converted model."""
        return self.root / "models" / name

    def step(self, name: str, make: Callable[[], None]) -> None:
        """Do `make` once."""
        mark = self.root / "steps" / name
        if mark.exists():
            return
        print(f"{name} ...", file=sys.stderr, flush=True)
        make()
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def main() -> None:
    """Make what is missing, then write rivals.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--checkpoint", type=Path, metavar="GGUF", help="default: the demo checkpoint")
    kinds = ("genai", "openvino", "ct2", "llama.cpp", "transformers")
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds, metavar="KIND", help=", ".join(kinds))
    arguments = parser.parse_args()
    shop = Workshop(arguments.directory.absolute(), arguments.checkpoint or demo_checkpoint())
    shop.step("huggingface", lambda: write_huggingface(shop))
    for kind in arguments.only:
        PREPARE[kind](shop)
    write_list(shop)


def prepare_genai(shop: Workshop) -> None:
    """Weight-only int8 and int4, with the lm_head of the last position only, which is what a prompt needs."""
    install(shop, "genai")
    for precision in ("int8", "int4"):
        shop.step(f"genai-{precision}", partial(convert_genai, shop, precision))


def prepare_openvino(shop: Workshop) -> None:
    """Weights in int8, as optimum-intel exports them."""
    install(shop, "openvino")
    shop.step("openvino-int8", lambda: convert_openvino(shop))


def prepare_ct2(shop: Workshop) -> None:
    """Weights in int8, activations rounded as they come."""
    install(shop, "ct2")
    shop.step("ct2-int8", lambda: convert_ct2(shop))


def prepare_llama_cpp(shop: Workshop) -> None:
    """The checkpoint as it is, Q4_0 (whose kernels are llama.cpp's fastest) and Q8_0; and llama-server."""
    install(shop, "llama.cpp", {"CMAKE_ARGS": " ".join(llama_options())})
    shop.step("llama.cpp-server", lambda: build_llama_server(shop))
    for form in ("Q4_0", "Q8_0"):
        shop.step(f"llama.cpp-{form}", partial(convert_llama_cpp, shop, form))


def prepare_transformers(shop: Workshop) -> None:
    """Nothing: it runs here, on the Hugging Face directory."""
    del shop


PREPARE = {
    "genai": prepare_genai,
    "openvino": prepare_openvino,
    "ct2": prepare_ct2,
    "llama.cpp": prepare_llama_cpp,
    "transformers": prepare_transformers,
}


def write_huggingface(shop: Workshop) -> None:
    """The GGUF file as config, tokenizer and safetensors in float32, as Piston reads it: transformers drops keys."""
    from piston.checkpoint.checkpoint import load_config, load_model, locate
    from piston.checkpoint.gguf.tokenizer import gguf_tokenizer

    out, checkpoint = fresh(shop.model("huggingface")), locate(str(shop.checkpoint))
    load_config(checkpoint)
    model: Any = load_model(checkpoint)
    # transformers 5 refuses to save what came from GGUF; a model of the same configuration it saves.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(out)
    gguf_tokenizer(checkpoint.header).save_pretrained(out)
    state_for_transformers_4(out)


def state_for_transformers_4(out: Path) -> None:
    """Say again what transformers 4 looks for elsewhere: the base of the rotary angles, a known tokenizer class."""
    edit_json(out / "config.json", lambda config: config | {"rope_theta": config["rope_parameters"]["rope_theta"]})
    edit_json(out / "tokenizer_config.json", lambda config: config | {"tokenizer_class": "PreTrainedTokenizerFast"})


def edit_json(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Rewrite a JSON file."""
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8"))), indent=1), encoding="utf-8")


def convert_genai(shop: Workshop, precision: str) -> None:
    """Run the model builder of onnxruntime-genai, a script that needs transformers 5 and not its own package."""
    packages = shop.python("genai").parents[1] / "lib"
    builder = [sys.executable, next(packages.glob("python*/site-packages/onnxruntime_genai/models/builder.py"))]
    source = ["-i", shop.model("huggingface"), "-o", fresh(shop.model(f"genai-{precision}"))]
    options = ["-p", precision, "-e", "cpu", "-c", shop.root / "cache", "--extra_options", "prune_lm_head=true"]
    command([*builder, *source, *options, "hf_token=false"])


def convert_openvino(shop: Workshop) -> None:
    """Run optimum-cli."""
    converter(shop)
    cli = [shop.python("convert").with_name("optimum-cli"), "export", "openvino", "--task", "text-generation-with-past"]
    out = fresh(shop.model("openvino-int8"))
    command([*cli, "--model", shop.model("huggingface"), "--weight-format", "int8", out])


def convert_ct2(shop: Workshop) -> None:
    """Run the converter of CTranslate2."""
    converter(shop)
    cli = [shop.python("convert").with_name("ct2-transformers-converter"), "--quantization", "int8"]
    out = fresh(shop.model("ct2-int8"))
    command([*cli, "--model", shop.model("huggingface"), "--output_dir", out, "--force"])


def convert_llama_cpp(shop: Workshop, form: str) -> None:
    """Requantize the GGUF file; the figures of speed do not depend on having been rounded twice."""
    code = (
        "import sys, llama_cpp as c\n"
        "p = c.llama_model_quantize_default_params()\n"
        "p.ftype, p.allow_requantize, p.pure = getattr(c, 'LLAMA_FTYPE_MOSTLY_' + sys.argv[3]), True, True\n"
        "sys.exit(c.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), p))\n"
    )
    out = shop.model(f"llama.cpp-{form}.gguf")
    out.parent.mkdir(parents=True, exist_ok=True)
    command([shop.python("llama.cpp"), "-c", code, shop.checkpoint, out, form])


def llama_options() -> list[str]:
    """CMake options of llama.cpp for this machine."""
    flags = cpu_flags()
    options = [f"-DGGML_{option}={'ON' if flag in flags else 'OFF'}" for flag, option in INSTRUCTIONS.items()]
    return ["-DGGML_NATIVE=OFF", "-DGGML_AMX_TILE=OFF", "-DGGML_AMX_INT8=OFF", *options]


def build_llama_server(shop: Workshop) -> None:
    """Compile llama-server from the sources in llama-cpp-python's sdist; it is put next to the environment's Python."""
    sources = fresh(shop.root / "sources")
    sources.mkdir()
    words = ["-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    package = ENVIRONMENTS["llama.cpp"][0]
    command([shop.python("llama.cpp"), *words, "--dest", sources, package])
    shutil.unpack_archive(next(sources.glob("*.tar.gz")), sources)
    tree, build = next(sources.glob("*/vendor/llama.cpp")), sources / "build"
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF"]
    command(["cmake", "-S", tree, "-B", build, *options, *llama_options()])
    command(["cmake", "--build", build, "--target", "llama-server", "--parallel", str(os.cpu_count() or 1)])
    shutil.copy(build / "bin" / "llama-server", shop.python("llama.cpp").with_name("llama-server"))
    shutil.rmtree(sources)


def converter(shop: Workshop) -> None:
    """The environment for conversions; created only when something must be converted."""
    install(shop, "convert")

    def add() -> None:
        pip(shop, "convert", CONVERTERS)
        # optimum-intel brings a torchvision for another torch, and transformers 4 fails on importing it.
        command([shop.python("convert"), "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"])

    shop.step("env-converters", add)


def install(shop: Workshop, environment: str, build: dict[str, str] | None = None) -> None:
    """Make an environment and install into it."""

    def make() -> None:
        folder = fresh(shop.root / "env" / environment)
        command([sys.executable, "-m", "venv", folder])
        pip(shop, environment, ENVIRONMENTS[environment], build)

    shop.step(f"env-{environment}", make)


def pip(shop: Workshop, environment: str, packages: Sequence[str], build: dict[str, str] | None = None) -> None:
    """Install packages."""
    words = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet", *packages]
    command([shop.python(environment), *words], build)


def command(words: Sequence[object], more: dict[str, str] | None = None) -> None:
    """Run a command, without the network where a hub might be asked."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    subprocess.run([str(word) for word in words], check=True, env=os.environ | offline | (more or {}))


def fresh(path: Path) -> Path:
    """A path nothing is left at."""
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def cpu_flags() -> set[str]:
    """What the processor has, as Linux names it."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return set(next(line for line in text.splitlines() if line.startswith("flags")).split())


def demo_checkpoint() -> Path:
    """The path of the demo checkpoint."""
    script = HERE / "demo_checkpoint.py"
    found = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    return Path(found.stdout.strip())


def write_list(shop: Workshop) -> None:
    """DIR/rivals.json: what is there, and the interpreter of each."""
    rivals = [
        {"name": name, "kind": kind, "path": str(path), "python": str(python)}
        for name, kind, path, python in (
            ("genai-int8", "genai", shop.model("genai-int8"), shop.python("genai")),
            ("genai-int4", "genai", shop.model("genai-int4"), shop.python("genai")),
            ("openvino-int8", "openvino", shop.model("openvino-int8"), shop.python("openvino")),
            ("ct2-int8", "ct2", shop.model("ct2-int8"), shop.python("ct2")),
            ("llama.cpp-Q4_0", "llama.cpp", shop.model("llama.cpp-Q4_0.gguf"), shop.python("llama.cpp")),
            ("llama.cpp-Q4_1", "llama.cpp", shop.checkpoint, shop.python("llama.cpp")),
            ("llama.cpp-Q8_0", "llama.cpp", shop.model("llama.cpp-Q8_0.gguf"), shop.python("llama.cpp")),
            ("transformers", "transformers", shop.model("huggingface"), Path(sys.executable)),
        )
        if path.exists() and python.exists()
    ]
    (shop.root / "rivals.json").write_text(json.dumps({"rivals": rivals}, indent=1) + "\n", encoding="utf-8")
    print(f"{shop.root / 'rivals.json'}: {', '.join(rival['name'] for rival in rivals)}")


if __name__ == "__main__":
    main()
