"""Compile the Triton kernels for an H100, without one, and print their names."""

import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from namm_transfer import scorer_kernel
from namm_transfer.cache import triton_kernels

INTEGERS = {"positions": "*i32", "seen": "*i32", "begins": "*i32", "ends": "*i32", "anew": "*i32", "lengths": "*i32"}
INTEGERS |= {"heads": "*i64", "first": "*i64", "rows": "*i64", "scale": "fp32"}
FLOATS = {"lse", "partial", "partial_lse", "state", "spectrum", "tail", "pending", "dft"}
CONSTANTS = dict(GROUP=2, D=64, DV=64, BLOCK_D=64, BLOCK_DV=64, BLOCK_M=16, BLOCK_N=32, BLOCK_Q=16, BLOCK_S=4)
CONSTANTS |= dict(TILE=tl.bfloat16, WINDOWED=True, ROUNDED=tl.float32, PENDING=True, DECAY=0.85)
CONSTANTS |= dict(PRODUCTS="tf32x3")


def signature(kernel) -> dict[str, str]:
    """The types of a kernel's arguments in a model in bfloat16."""
    types = {}
    for name in kernel.arg_names:
        pointer = "*bf16" if name in ("q", "k", "v", "out") else "i32"
        types[name] = "constexpr" if name in CONSTANTS else "*fp32" if name in FLOATS else INTEGERS.get(name, pointer)
    return types


if __name__ == "__main__":
    for name in ("attend", "combine", "fold_sum", "fold_spectrum"):
        kernel = getattr(triton_kernels, name)
        types = signature(kernel)
        constants = {key: value for key, value in CONSTANTS.items() if key in types}
        compile(ASTSource(kernel, types, constants), target=GPUTarget("cuda", 90, 32))
        print(name, flush=True)
    types = {name: "constexpr" if name.isupper() else "*fp32" for name in scorer_kernel.kernel.arg_names}
    types |= {"tokens": "i32", "scale": "fp32"}
    constants = dict(WIDTH=32, BLOCK_M=128, BLOCK_N=64, PRODUCTS="tf32x3")
    compile(ASTSource(scorer_kernel.kernel, types, constants), target=GPUTarget("cuda", 90, 32))
    print("scorer", flush=True)
