"""Our own CPU library in C++17 (sources here), its build and its binding. No torch, no BLAS, no third-party code.

build.py     compile the library into this folder:  python -m serve.engine.native.build
library.py   load it and name a missing or stale one; the C functions with their types
weights.py   safetensors files mapped into memory, no copy
*.h, *.cpp   the library; api.cpp is its only surface
"""
