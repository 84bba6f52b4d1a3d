"""Recognises error messages of GPU libraries, and gives advice.

Importing it does not load torch.
"""

from __future__ import annotations

# cuBLAS, cuDNN and the driver allocate memory without torch's allocator, and each has its own
# message for a lack of it. cuDNN finds no engine if none fits into the free memory.
_LACK_OF_MEMORY = (
    "cuda out of memory",
    "error: out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "unable to find an engine",
    "unable to find a valid cudnn algorithm",
)
_OTHERS = ("cuda error", "cuda driver error", "cublas_status", "cudnn error", "cudnn_status")


def lacks_gpu_memory(error: Exception) -> bool:
    """Whether a GPU failed because its memory is full; false for a lack of main memory."""
    import torch

    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(w in text for w in _LACK_OF_MEMORY)


def gpu_advice(error: Exception) -> str:
    """Advice on an error of the GPU; ``""`` for other errors.

    Returns:
        A clause without a full stop, to which the caller may add an ``or``.
    """
    text = str(error).lower()
    if lacks_gpu_memory(error):
        return "Free the GPU, choose another --device"
    if "no kernel image" in text:
        return "Install a torch that supports this GPU, use --device cpu"
    if any(words in text for words in _OTHERS):
        return "Look at the GPU with nvidia-smi, choose another --device"
    return ""
