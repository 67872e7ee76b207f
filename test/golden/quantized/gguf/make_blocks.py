"""Writes blocks.txt: random blocks of each GGUF type, and what gguf-py (the reference implementation) makes of them.

python -m venv v && v/bin/pip install gguf numpy && v/bin/python make_blocks.py > blocks.txt
A line per type: name, the block's bytes in hexadecimal, the values as little-endian float32 in hexadecimal.
"""
import numpy as np
from gguf.constants import GGMLQuantizationType as T, GGML_QUANT_SIZES
from gguf.quants import dequantize

rng = np.random.default_rng(20261121)
# where a block's float16 scales lie; they are replaced by sane numbers, the rest is random
SCALES = {T.Q4_0: [0], T.Q8_0: [0], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}
for kind, places in SCALES.items():
    _, size = GGML_QUANT_SIZES[kind]
    block = rng.integers(0, 256, size, dtype=np.uint8)
    for at in places:
        scale = np.float16(rng.uniform(-0.05, 0.05) if kind in (T.Q4_0, T.Q8_0, T.Q6_K) else rng.uniform(0.001, 0.05))
        block[at:at + 2] = np.frombuffer(scale.tobytes(), np.uint8)
    values = dequantize(block.reshape(1, -1), kind).astype("<f4")
    print(kind.name, block.tobytes().hex(), values.tobytes().hex())
