"""The seven devices that programs are compiled for, from their makers' data sheets.

A bound from a data sheet is a lower one: no program does its matmuls faster than the peak, nor
moves its bytes faster than the memory. The numbers of a GPU are those by which XLA compiles for it
(openxla/xla, xla/backends/gpu/target_config/specs).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp


class Device(NamedTuple):
    """A device of JAX: of a v5p both cores, of a v7x one of two.

    Attributes:
      name: what it is called here.
      platform: "tpu" or "gpu".
      kind: what JAX calls it.
      topology: the least that its compiler makes programs for.
      flops: matmul operations a second, at most, by dtype.
      bandwidth: bytes a second of its memory, at most.
      clock: cycles a second; of a TPU those in which its peak is ``flops_per_cycle``.
      target: of a GPU, XLA's description of it (GpuTargetConfigProto).
      cores: of a GPU, its multiprocessors.
      shared_bytes: of a GPU, the shared memory of a multiprocessor.
      architecture: of a GPU, what ptxas calls it.
    """

    name: str
    platform: str
    kind: str
    topology: str
    flops: dict[str, float]
    bandwidth: float
    clock: float
    target: str = ""
    cores: int = 1
    shared_bytes: int = 0
    architecture: str = ""

    @property
    def capability(self) -> str:
        """Of a GPU, its compute capability.

        >>> DEVICES["H100"].capability, DEVICES["B200"].capability
        ('9.0', '10.0')
        """
        number = self.architecture.removeprefix("sm_").removesuffix("a")
        return f"{number[:-1]}.{number[-1]}"

    def bound_s(self, flops: float, moved: float, dtype: Any) -> float:
        """Seconds for so many operations and bytes at the data sheet's best."""
        return max(flops / self.flops[jnp.dtype(dtype).name], moved / self.bandwidth)


def _tpu(
    name: str, kind: str, topology: str, peak: float, bandwidth: float, flops_per_cycle: int
) -> Device:
    # By default a TPU multiplies float32 as bfloat16.
    peaks = dict.fromkeys(("float32", "bfloat16", "float16"), peak)
    return Device(name, "tpu", kind, topology, peaks, bandwidth, clock=peak / flops_per_cycle)


def _gpu(
    name: str,
    model: str,
    capability: int,
    cores: int,
    clock: float,
    peak: float,
    bandwidth: float,
    memory: int,
    l2: int,
    shared: int,
) -> Device:
    accelerated = capability >= 9
    target = f"""gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared - 1024}
  core_count: {cores} fpus_per_core: {128 if accelerated else 64} clock_rate_ghz: {clock / 1e9}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory} l2_cache_size: {l2}
  cuda_compute_capability {{
    major: {capability} feature_extension: {"ACCELERATED_FEATURES" if accelerated else "NONE"}
  }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  name: "{model}"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{model}"
"""
    # By default XLA multiplies float32 in TF32, at half the rate.
    peaks = {"float32": peak / 2, "bfloat16": peak, "float16": peak}
    architecture = f"sm_{capability}0{'a' if accelerated else ''}"
    return Device(
        name, "gpu", model, model, peaks, bandwidth, clock, target, cores, shared, architecture
    )  # fmt: skip


# Matmul operations a cycle of a core, from peak and clock: four arrays of 128 x 128, a product and
# a sum each, and since v6e four times that.
_OLD = 4 * 2 * 128**2
_NEW = 4 * _OLD
DEVICES = {
    device.name: device
    for device in (
        _tpu("v5e", "TPU v5 lite", "v5e:2x2", 197e12, 819e9, _OLD),
        _tpu("v5p", "TPU v5", "v5p:2x2x1", 459e12, 2765e9, 2 * _OLD),
        _tpu("v6e", "TPU v6 lite", "v6e:2x2", 918e12, 1640e9, _NEW),
        _tpu("v7x", "TPU7x", "tpu7x:2x2x1", 2307e12 / 2, 7380e9 / 2, _NEW),
        _gpu("A100", "NVIDIA A100-SXM4-80GB", 8, 108, 1.41e9, 312e12, 2039.04e9,
             85_100_068_864, 41_943_040, 167_936),
        _gpu("H100", "NVIDIA H100 80GB HBM3", 9, 132, 1.98e9, 989e12, 3352.32e9,
             84_942_979_072, 52_428_800, 233_472),
        _gpu("B200", "NVIDIA B200", 10, 148, 1.965e9, 2250e12, 7672.32e9,
             191_514_411_008, 132_644_864, 233_472),
    )
}  # fmt: skip
TPUS = tuple(name for name, device in DEVICES.items() if device.platform == "tpu")
GPUS = tuple(name for name, device in DEVICES.items() if device.platform == "gpu")
