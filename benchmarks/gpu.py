"""Each graph and a whole video on a GPU, by every backend that is installed, beside PyTorch eager and torch.compile.

    python benchmarks/gpu.py                          # needs CUDA, torch, and one of the three below
    python benchmarks/gpu.py --only 'full/ar_*'       # some rows; --list names them all
    python benchmarks/gpu.py --smoke                  # the whole script on a CPU, small: figures mean nothing

**This has not been executed on a GPU yet.** ``--smoke`` goes through all of it but `CudaDevice`, CUDA graphs and
`gpu_backends.Engines`: TensorRT is there the stand-in of the tests (tests/fake_gpu.py), whose engines are ONNX Runtime.

Of onnxruntime-gpu, tensorrt and tensorrt-rtx whatever is installed and serves the GPU is run; engines are built in the
run, in a folder of its own, and the time of that is told apart. Measured are the graphs of a bundle, a video of it from
prompt to frames, and the graphs of full-size modules with random weights (STDiT3-XL/2 at 512x512 and 68 frames, the
393 M video autoencoder's 17-frame chunk, the 323 M token model, two layers of T5 XXL), in fp16. Inputs and outputs lie
on the device and caches are updated in place. Parity comes first: the relative error to PyTorch in exact float32 with
the same weights, for the video the difference to the frames of the CPU; where it fails, the time is withheld. Then
median and range of repeats, as TFLOP/s and bytes/s beside a matrix product and a device copy measured in the same run.

PyTorch runs with static shapes; the ONNX graphs are dynamic in theirs. PyTorch's token model copies its caches at every
step, as the module is written; the others update them in place. A time limit ends the run between measurements, and an
engine whose build takes too long is given up; what decides comes first.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":   # not in the processes that build engines, which would import torch for nothing
    from gpu_run import main

    sys.exit(main())
