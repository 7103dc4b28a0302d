"""What GPUs multiply at best, which model FLOPs utilisation is a share of (PaLM, Chowdhery 2022, appendix B)."""

from __future__ import annotations

# Dense bf16 products in 1e12 a second by NVIDIA's data sheets; the first name that a device's name contains counts.
PEAK_TFLOPS = {"H100 PCIe": 756.0, "H100": 989.0, "H200": 989.0, "A100": 312.0, "B200": 2250.0}


def peak_tflops(device: str) -> float | None:
    """Of a device as torch names it, such as ``NVIDIA H200``; None for one that is not listed."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in device), None)
