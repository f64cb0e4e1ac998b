"""The parts of `benchmarks/gpu_suite.py`: what is measured on a machine with an NVIDIA GPU, and how it is recorded."""
