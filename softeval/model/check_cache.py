"""Remembers which weights have passed the self-check, and finds weights that are not finite.

Both read every weight once, on its own device. The key is no cryptographic hash: it tells other
weights, dtypes, devices and versions apart, and whoever can write to the cache can forge it anyway.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softeval.errors import UserError

FOLDER_VARIABLE = "SOFTEVAL_CACHE"
_PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def refuse_non_finite(model: Any, name: str) -> None:
    """Refuse weights with NaN or infinity, by name; every number computed from them would be one.

    Raises:
        UserError: naming the first such weight.
    """
    for weight, tensor in model.named_parameters():
        if tensor.dtype in _PLAIN and tensor.numel() and not _is_finite(tensor):
            bad = int((~tensor.detach().isfinite()).sum())
            raise UserError(
                f"{name}: weights are not finite: {bad} of {tensor.numel()} numbers of {weight} are "
                "NaN or infinite; save the checkpoint again from a healthy state"
            )


def _is_finite(tensor: Tensor) -> bool:
    low, high = tensor.detach().aminmax()  # NaN passes through both
    return bool(low.isfinite() & high.isfinite())


class CheckCache:
    """The result of a model's self-check in the user's cache folder; none where it cannot be kept.

    Args:
        model: the transformers model.
        version: of the check.
    """

    def __init__(self, model: Any, version: int) -> None:
        self._file: Path | None = None
        with suppress(Exception):  # no home, a dtype that cannot be hashed: then nothing is kept
            self._file = cache_folder() / "self_check" / _key(model, version)

    def read(self) -> bool | None:
        """Whether the model was batch invariant when it passed; None if it never did."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            if self._file is not None:
                return bool(json.loads(self._file.read_text())["batch_invariant"])
        return None

    def write(self, batch_invariant: bool) -> None:
        """Remember that the model passed."""
        if self._file is None:
            return
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part = self._file.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps({"batch_invariant": batch_invariant}))
            part.replace(self._file)


def cache_folder() -> Path:
    """$SOFTEVAL_CACHE, else the platform's folder for caches."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ["LOCALAPPDATA"]) / "softeval" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "softeval"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "softeval"


def _key(model: Any, version: int) -> str:
    import transformers

    place, cpu = model.device, torch.backends.cpu.get_cpu_capability()  # each rounds in its way
    facts = {
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "config": model.config.to_json_string(use_diff=False),
        "attention": model.config._attn_implementation,
        "device": [place.type, torch.cuda.get_device_name(place) if place.type == "cuda" else cpu],
        "versions": [version, torch.__version__, transformers.__version__],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|{_parity(tensor)}".encode())
    return digest.hexdigest()


def _parity(tensor: Tensor) -> tuple[int, list[int]]:
    """Exclusive or of a tensor's words of eight bytes, and the bytes that are left over."""
    bits = tensor.detach().contiguous().flatten().view(torch.uint8)
    words = len(bits) // 8 * 8
    aligned = bits[:words] if bits.storage_offset() % 8 == 0 else bits[:words].clone()
    # Unsigned words of eight bytes do not fit what `int` takes of a tensor.
    folded = torch.hash_tensor(aligned.view(torch.int64)).view(torch.int64)
    return int(folded) if words else 0, bits[words:].tolist()
