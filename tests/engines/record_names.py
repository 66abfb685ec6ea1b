"""Writes tensorrt_names.json: the names that the real Python bindings of TensorRT 11 have.

    pip download --no-deps --only-binary :all: tensorrt-cu13-bindings==11.4.0.106
    python tests/engines/record_names.py tensorrt_cu13_bindings-*.whl

The bindings load three libraries that no package index but NVIDIA's has; empty ones (made with gcc) are enough to
import them and to look, not to do anything.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
SYMBOLS = (
    "createInferBuilder_INTERNAL", "createInferRuntime_INTERNAL", "createInferRefitter_INTERNAL", "getPluginRegistry",
    "getBuilderPluginRegistry", "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL",
    "getNvOnnxParserVersion", "initLibNvInferPlugins",
)
CLASSES = (
    "Builder", "BuilderFlag", "CausalMaskKind", "DataType", "ExecutionContextAllocationStrategy", "IAttention",
    "IAttentionInputLayer", "IBuilderConfig", "ICudaEngine", "IExecutionContext", "ILayer", "ILogger",
    "INetworkDefinition", "IOptimizationProfile", "IProgressMonitor", "IRuntimeConfig", "IStreamReaderV2",
    "IStreamWriter", "ITensor", "ITimingCache", "LayerType", "Logger", "OnnxParser", "ParserError", "Runtime",
    "TensorIOMode", "TensorLocation",
)
"""What the builder uses, and what a runtime backend would."""
LOOK = """
import json, sys
import tensorrt_bindings as trt
names = {c: sorted(n for n in dir(getattr(trt, c)) if not n.startswith("_")) for c in CLASSES}
names["ILogger.Severity"] = sorted(trt.ILogger.Severity.__members__)
module = sorted(n for n in dir(trt) if not n.startswith("_"))
json.dump({"version": trt.__version__, "module": module, "classes": names}, sys.stdout)
"""


def main(wheel: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel).extractall(folder)
        source = Path(folder, "empty.c")
        source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS), encoding="ascii")
        for library in LIBRARIES:
            soname = f"-Wl,-soname,{library}"
            subprocess.run(["gcc", "-shared", "-fPIC", soname, "-o", Path(folder, library), source], check=True)
        env = {**os.environ, "LD_LIBRARY_PATH": folder, "PYTHONPATH": folder}
        code = f"CLASSES = {CLASSES!r}\n{LOOK}"
        found = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    names = {"wheel": wheel.name, "made_by": "tests/engines/record_names.py", **json.loads(found.stdout)}
    target = Path(__file__).with_name("tensorrt_names.json")
    target.write_text(json.dumps(names, indent=None, separators=(",", ":")).replace('"],"', '"],\n"') + "\n", "ascii")
    print(f"{target}: {sum(map(len, names['classes'].values()))} names of {len(names['classes'])} classes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
