"""Build and install the engines that `compare.py` and `serving.py` measure ours against.

    python bench/peers/install.py DIRECTORY [--home HOME]

Needs what the package registry has, a C++ compiler, 8 GB of disk and about 20 minutes; finished steps are not repeated.
Run with the project's own interpreter and the model installed (`llmosd models pull`), whose GGUF file all start from:

    llama.cpp           from the source distribution of llama-cpp-python, by the registry's cmake and ninja; the file as
                        it is (Q4_1), and as Q4_0, Q8_0 and F16 by `llama-quantize --allow-requantize`
    openvino-genai      reads GGUF: Q4_1, Q4_0 (int4), Q8_0 (int8), F16 (float32 arithmetic; F32 it does not read)
    onnxruntime-genai   its model builder's int4, int8 and fp32, from the float32 weights; it needs torch and
                        transformers, which get a virtual environment of their own
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from avx2_only import LLAMA as LLAMA_AVX2

from llmosd.config import default_home
from llmosd.runtime.installed import InstalledModel, find

LLAMA = "llama_cpp_python==0.3.36"
RUNTIME = ("onnxruntime-genai==0.18.0", "openvino-genai==2026.4.1", "cmake", "ninja")
BINDINGS = ("diskcache", "jinja2", "numpy", "typing_extensions")  # what llama-cpp-python's bindings import
BUILDER = ("onnxruntime-genai==0.18.0", "onnx", "onnx_ir", "onnxruntime", "torch", "transformers")
SWITCHES = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "ON",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "CMAKE_CXX_FLAGS": f"-include {Path(__file__).with_name('tileconfig.h').absolute()}",
}
LLAMA_SOURCE = "vendor/llama.cpp"
TARGETS = ("llama", "llama-quantize", "llama-server")
QUANTISED = ("q4_0", "q8_0", "f16")
SAVE_OPENVINO = "import sys, openvino_genai as g; g.LLMPipeline(sys.argv[1], 'CPU', enable_save_ov_model=True)"


def run(*command: object, **environment: str) -> None:
    print("+", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True, env=os.environ | environment)


def virtual_environment(directory: Path, packages: tuple[str, ...]) -> Path:
    """Its interpreter."""
    python = directory / "bin/python"
    if not python.exists():
        run(sys.executable, "-m", "venv", directory)
        run(python, "-m", "pip", "install", "--quiet", *packages)
    return python


def llama_cpp(directory: Path, python: Path) -> None:
    """Programs and libraries in DIRECTORY/llama/bin; the Python bindings in the virtual environment find them there."""
    if (directory / "llama/bin/llama-server").exists():
        return
    source = directory / "source"
    run(
        python,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        "llama_cpp_python",
        "--dest",
        source,
        LLAMA,
    )
    archive = next(source.glob("*.tar.gz"))
    with tarfile.open(archive) as packed:
        packed.extractall(source, filter="data")
    unpacked = source / archive.name.removesuffix(".tar.gz")
    build(unpacked / LLAMA_SOURCE, directory / "llama", python, SWITCHES, TARGETS)
    packages = next((python.parent.parent / "lib").glob("python3*/site-packages"))
    (unpacked / "llama_cpp/lib").symlink_to(directory / "llama/bin")
    (packages / "llama_cpp").symlink_to(unpacked / "llama_cpp")


def llama_cpp_for_avx2(directory: Path, python: Path) -> None:
    """The libraries alone, in DIRECTORY/llama-avx2/bin."""
    target = directory / LLAMA_AVX2
    if not (target / "bin/libllama.so").exists():
        unpacked = next(path for path in (directory / "source").iterdir() if path.is_dir())
        build(unpacked / LLAMA_SOURCE, target, python, SWITCHES | {"GGML_NATIVE": "OFF"}, ("llama",))


def build(source: Path, target: Path, python: Path, switches: dict[str, str], products: tuple[str, ...]) -> None:
    """By the cmake and ninja of a virtual environment."""
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    options = [f"-D{name}={value}" for name, value in switches.items()]
    run("cmake", "-S", source, "-B", target, "-G", "Ninja", *options, PATH=path)
    run("ninja", "-C", target, *products, PATH=path)


def gguf_files(directory: Path, model: InstalledModel) -> None:
    (directory / "gguf").mkdir(exist_ok=True)
    original = directory / "gguf/q4_1.gguf"
    if not original.exists():
        shutil.copy(model.source, original)
    for name in QUANTISED:
        target = directory / f"gguf/{name}.gguf"
        if not target.exists():
            run(directory / "llama/bin/llama-quantize", "--allow-requantize", original, target, name.upper())


def openvino_models(directory: Path, python: Path) -> None:
    for name in ("q4_1", *QUANTISED):
        target = directory / f"openvino/{name}"
        if not (target / "openvino_model.xml").exists():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(directory / f"gguf/{name}.gguf", target / "model.gguf")
            run(python, "-c", SAVE_OPENVINO, target / "model.gguf")


def genai_models(directory: Path, python: Path, model: InstalledModel) -> None:
    """Each format twice: with logits of the last token alone, as it is timed, and of all, as it is scored."""
    weights = directory / "huggingface"
    if not weights.exists():
        export = Path(__file__).with_name("export.py")
        run(sys.executable, export, model.source, model.path / "tokenizer.json", weights)
    for form in ("int4", "int8", "fp32"):
        for suffix, options in (("", ("--extra_options", "prune_lm_head=true")), ("-all", ())):
            target = directory / f"genai/{form}{suffix}"
            if not (target / "model.onnx").exists():
                builder = (python, "-m", "onnxruntime_genai.models.builder", "-i", weights, "-e", "cpu", "-p", form)
                run(*builder, "-o", target, "-c", directory / "cache", *options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--home", type=Path, default=default_home(), help="data directory with the model")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--avx2", action="store_true", help="also a llama.cpp for `compare.py --avx2`")
    options = parser.parse_args()
    directory, model = options.directory.absolute(), find(options.home, options.model)
    directory.mkdir(parents=True, exist_ok=True)
    python = virtual_environment(directory / "venv", (*RUNTIME, *BINDINGS))
    llama_cpp(directory, python)
    if options.avx2:
        llama_cpp_for_avx2(directory, python)
    gguf_files(directory, model)
    openvino_models(directory, python)
    genai_models(directory, virtual_environment(directory / "builder", BUILDER), model)


if __name__ == "__main__":
    main()
