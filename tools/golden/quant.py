"""Write the block-dequantisation goldens under crates/kernels/tests/fixtures/quant/.

For every GGML block type: `<TYPE>.q.bin`, ROWS rows x COLS elements of packed blocks (row-major, no padding), and
`<TYPE>.f32.bin`, the same elements dequantised by the PyPI `gguf` package as little-endian f32.

The blocks are random bytes, so that every bit of every field is exercised, with the f16 scales replaced by finite ones:
mostly of normal size and either sign, and in the first row one each of zero, subnormal and large.
"""

import zlib
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

OUT = Path(__file__).resolve().parents[2] / "crates/kernels/tests/fixtures/quant"
ROWS, COLS = 4, 512

# Byte offsets of the f16 scale (and minimum) fields inside one block.
SCALES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
}


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    for name, offsets in SCALES.items():
        kind = GGMLQuantizationType[name]
        packed = random_blocks(name, kind, offsets)
        values = quants.dequantize(packed, kind)
        assert values.shape == (ROWS, COLS) and np.isfinite(values).all(), name
        (OUT / f"{name}.q.bin").write_bytes(packed.tobytes())
        (OUT / f"{name}.f32.bin").write_bytes(values.astype("<f4").tobytes())
        print(f"{name:7} {packed.nbytes:5} bytes  |x| max {np.abs(values).max():.4g}")


def random_blocks(name: str, kind: GGMLQuantizationType, offsets: list[int]) -> np.ndarray:
    """`[ROWS, COLS / block_len * block_bytes]` u8."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    block_len, block_bytes = GGML_QUANT_SIZES[kind]
    per_row = COLS // block_len
    blocks = rng.integers(0, 256, (ROWS * per_row, block_bytes), dtype=np.uint8)
    for offset in offsets:
        scale = rng.uniform(0.002, 0.05, len(blocks)) * rng.choice([-1.0, 1.0], len(blocks))
        # In the first blocks, so that they are there whatever the block length: 0, the smallest subnormal, 1.5.
        edge = np.roll([0.0, 5.9604645e-08, 1.5], offset // 2 % 3)
        scale[: min(per_row, 3)] = edge[: min(per_row, 3)]
        blocks[:, offset : offset + 2] = scale.astype("<f2").view(np.uint8).reshape(-1, 2)
    return blocks.reshape(ROWS, per_row * block_bytes)


if __name__ == "__main__":
    main()
