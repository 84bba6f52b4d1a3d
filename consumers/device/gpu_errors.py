"""What the libraries of a GPU say when they fail, and what can be done about it.

Importing it does not load torch.
"""

from __future__ import annotations

# cuBLAS, cuDNN and the driver ask for memory of their own, past torch's allocator: each says in its
# own words that there is none. cuDNN finds no engine when none fits the memory that is left.
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
    """Whether a GPU failed because its memory is full; not what a CPU says of main memory."""
    import torch

    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(w in text for w in _LACK_OF_MEMORY)


def gpu_advice(error: Exception) -> str:
    """What to do about an error of the GPU; ``""`` for an error of anything else.

    Returns:
        A clause without a full stop, to which the caller may add an ``or``.
    """
    text = str(error).lower()
    if lacks_gpu_memory(error):
        return "Free the GPU, choose another --device"
    if "no kernel image" in text:
        return "Install a torch that is made for this GPU, use --device cpu"
    if any(words in text for words in _OTHERS):
        return "Look at the GPU with nvidia-smi, choose another --device"
    return ""
