"""What makers publish of their GPUs. Not measured: plans multiply these by an efficiency that is assumed."""

from typing import NamedTuple


class Gpu(NamedTuple):
    """Peak figures from the maker's data sheet: dense products (no sparsity), and memory."""

    name: str
    fp32: float  # FLOP/s of the plain units
    tf32: float  # FLOP/s of the tensor cores in TF32
    bf16: float  # FLOP/s of the tensor cores in bfloat16
    bandwidth: float  # bytes/s of its memory
    memory: float  # bytes


_T = 1e12
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("A100", 19.5 * _T, 156 * _T, 312 * _T, 2.039e12, 80e9),  # A100 80 GB SXM
        Gpu("H100", 67 * _T, 494.7 * _T, 989.4 * _T, 3.35e12, 80e9),  # H100 SXM
        Gpu("H200", 67 * _T, 494.7 * _T, 989.4 * _T, 4.8e12, 141e9),  # H200 SXM
        Gpu("B200", 80 * _T, 1_100 * _T, 2_250 * _T, 8e12, 180e9),  # of an HGX B200, per GPU
        Gpu("L40S", 91.6 * _T, 183 * _T, 362 * _T, 0.864e12, 48e9),
        Gpu("RTX4090", 82.6 * _T, 82.6 * _T, 165.2 * _T, 1.008e12, 24e9),
    )
}
PRODUCT_EFFICIENCY = 0.4  # of the peak of `fp32`, assumed: not measured. This project multiplies in float32
BANDWIDTH_EFFICIENCY = 0.6  # of the peak, assumed: not measured


def known_gpu(name: str) -> Gpu:
    """The GPU of that name, in any spelling of case, blanks and dashes; raises ValueError, naming those that are known."""
    plain = "".join(each for each in name.upper() if each.isalnum())
    for gpu in GPUS.values():
        if plain == gpu.name:
            return gpu
    raise ValueError(f"gpu is {name!r}, expected one of {', '.join(GPUS)}")
