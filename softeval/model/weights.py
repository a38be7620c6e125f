"""Hashes of a checkpoint: of its weights, loaded or beforehand from its files, tokenizer and config.

Both of the weights are the same: sha256 over names, shapes, dtypes and bytes of all parameters and
persistent buffers as they are once the model is loaded. From files that takes a model without
storage, which tells the names, and no memory but for one tensor at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from softeval.errors import UserError
from softeval.model.checkpoint import Checkpoint

if TYPE_CHECKING:
    from softeval.model.language_model import LanguageModel


class StoredWeights(NamedTuple):
    """What a checkpoint's weights will be once loaded.

    Attributes:
        sha256: their `weights_hash`.
        dtype: that of the embedding.
        files: what tells whether a file was written since it was hashed: size and time.
    """

    sha256: str
    dtype: torch.dtype
    files: Mapping[Path, tuple[int, int]]

    def require_unwritten(self) -> None:
        """Make sure that what was loaded since is what was hashed.

        Raises:
            UserError: a file was written in between, as by a training that saves its best there.
        """
        for file, known in self.files.items():
            if not file.exists() or _stamp(file) != known:
                raise UserError(
                    f"{file} was written while it was being read; start again once it is whole,"
                    " or give a copy that nothing writes to"
                )


def weights_hash(model: nn.Module) -> str:
    """sha256 over names, shapes, dtypes and bytes of all parameters and persistent buffers."""
    return _hash(sorted(model.state_dict().items()))


def tokenizer_hash(tokenizer: Any) -> str:
    """sha256 over what turns texts into ids and back, and the chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    template = str(getattr(tokenizer, "chat_template", None))
    return hashlib.sha256(f"{text}\n{template}".encode()).hexdigest()


def config_hash(model: Checkpoint | LanguageModel) -> str | None:
    """First 16 hex digits of the sha256 of what the config and the end tokens of a checkpoint say.

    None of one on the hub, whose files nobody edits, or of a model that is in memory only. What is
    told elsewhere does not count: precision, names, versions.
    """
    folder = Path(model.path if model.adapter is None else model.adapter.base).expanduser()
    if not (folder / "config.json").is_file():
        return None
    files = (folder / f"{name}.json" for name in ("config", "generation_config"))
    config, generation = (json.loads(f.read_text()) if f.is_file() else {} for f in files)
    kept = {k: v for k, v in config.items() if v is not None and k not in _TOLD_ELSEWHERE}
    said = json.dumps([kept, generation.get("eos_token_id")], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


_TOLD_ELSEWHERE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


def stored_weights(checkpoint: Checkpoint, dtype: str | torch.dtype) -> StoredWeights | None:
    """What `Checkpoint.load` would give, from the files; they are downloaded where need be.

    Args:
        checkpoint: of a directory or hub id.
        dtype: precision in which it would be loaded; "auto" is the checkpoint's own.

    Returns:
        None where the files alone do not tell: quantised weights, an adapter, the language model of
        a multimodal checkpoint, code that comes with the
        checkpoint, weights that are renamed, merged or kept in another precision as they are
        loaded, and files that cannot be read, of which loading says why.
    """
    config = checkpoint.config
    precision = config.dtype if dtype == "auto" else dtype
    quantised = getattr(config.get_text_config(), "quantization_config", None) is not None
    remote = checkpoint.options["trust_remote_code"]
    made = checkpoint.whole is not None or checkpoint.adapter is not None
    if quantised or remote or made or not isinstance(precision, torch.dtype):
        return None
    model: Any = meta_model(config, precision)
    if model._get_dtype_plan(precision):
        return None
    try:
        places = _tensor_files(checkpoint)
        files = {file: _stamp(file) for file in set(places.values())}
        names = _stored_names(model, places)
        sha256 = _hash(_as_loaded(model, names, places))
    except (OSError, ValueError, LookupError, SafetensorError):
        return None
    return StoredWeights(sha256, model.get_input_embeddings().weight.dtype, files)


def meta_model(config: Any, dtype: torch.dtype, trust_remote_code: bool = False) -> nn.Module:
    """A model without storage (torch's meta device), in evaluation mode.

    Args:
        config: transformers' configuration.
        dtype: of its weights.
        trust_remote_code: run code that comes with the checkpoint.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=trust_remote_code
        )
    return model.eval()


def _stamp(file: Path) -> tuple[int, int]:
    """Size and time of the last write, in bytes and nanoseconds."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensor_files(checkpoint: Checkpoint) -> dict[str, Path]:
    """The file of each tensor by its name there; OSError where there are none."""
    single = _file(checkpoint, "model.safetensors")
    if single is not None:
        with safe_open(single, framework="pt") as content:
            return dict.fromkeys(content.keys(), single)
    index = _file(checkpoint, "model.safetensors.index.json")
    if index is None:
        raise FileNotFoundError(f"{checkpoint.path} holds no model.safetensors")
    shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    shards = {name: _file(checkpoint, name) for name in sorted(set(shard_of.values()))}
    return {name: place for name, shard in shard_of.items() if (place := shards[shard])}


def _file(checkpoint: Checkpoint, name: str) -> Path | None:
    from transformers.utils.hub import cached_file

    options = {k: v for k, v in checkpoint.options.items() if k != "trust_remote_code"}
    missing_is_none = {"_raise_exceptions_for_missing_entries": False}
    found = cached_file(checkpoint.path, name, **options, **missing_is_none)
    return None if found is None else Path(found)


def _stored_names(model: nn.Module, places: Mapping[str, Path]) -> dict[str, str]:
    """The name in the files of each of a model's tensors; LookupError where it is not just one.

    Tensors that share their storage, as tied embeddings do, are stored once.
    """
    tied: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        tied.setdefault(id(tensor), []).append(name)
    found: dict[str, str] = {}
    for names in tied.values():
        stored = [name for name in names if name in places]
        if len(stored) != 1:
            raise LookupError(f"{names[0]} is stored {len(stored)} times")
        found |= dict.fromkeys(names, stored[0])
    return found


def _as_loaded(
    model: nn.Module, names: Mapping[str, str], places: Mapping[str, Path]
) -> Iterator[tuple[str, Tensor]]:
    """Names and stored tensors in the order and the precision of the loaded model."""
    with ExitStack() as stack:
        files = {
            place: stack.enter_context(safe_open(place, framework="pt"))
            for place in set(places.values())
        }
        for name, like in sorted(model.state_dict().items()):
            tensor = files[places[names[name]]].get_tensor(names[name])
            yield name, tensor.to(like.dtype)
