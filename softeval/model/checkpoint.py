"""A checkpoint before its weights are read: its config, its tokenizer, and what they rule out.

Everything that these two can tell is refused here, in one line with the remedy, so that
`softeval run --dry-run` finds it and no one waits for a download first. Whatever transformers
raises while it reads files is one line, too.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from softeval.errors import UserError
from softeval.model.layers import SLOT_TILE, check_layer_kinds, memory_argument
from softeval.model.vocabulary import Vocabulary

ATTENTION = ("sdpa", "eager")
"""Implementations of attention that our masks are made for."""

_NO_DEVICE = "softeval runs on cpu, cuda and cuda:N; use --device auto or cpu"


class Adapter(NamedTuple):
    """A PEFT adapter: directory or hub id of its base, and sha256 over its files."""

    base: str
    sha256: str


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Config and tokenizer of a checkpoint that can be decoded, as far as they can tell.

    Attributes:
        path: directory or hub id.
        config: of transformers; of a multimodal checkpoint, that of its language model.
        tokenizer: of transformers.
        options: revision and trust_remote_code, for further files.
        notes: what is done otherwise than the files say, a sentence each.
        whole: config of a multimodal checkpoint; None of another.
        adapter: the PEFT adapter that the path holds; None where it holds a model.
        device_map: how transformers spreads the layers over devices; None for one device.
    """

    path: str
    config: Any
    tokenizer: Any
    options: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    whole: Any = None
    adapter: Adapter | None = None
    device_map: str | None = None

    @property
    def base(self) -> str:
        """Where config and weights are: the path, or an adapter's base."""
        return self.path if self.adapter is None else self.adapter.base

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Ids that tokenizer and embedding share, as far as the config names the embedding's rows."""
        rows = getattr(self.config.get_text_config(), "vocab_size", None)
        return Vocabulary(self.tokenizer, sys.maxsize if rows is None else int(rows))

    @property
    def max_length(self) -> int:
        """Largest number of positions the architecture takes."""
        return max_length(self.config, self.tokenizer)


def read_checkpoint(
    path: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
    attn_implementation: str | None = None,
    device_map: str | None = None,
) -> Checkpoint:
    """Config and tokenizer of a directory or hub id; no weights.

    Args:
        path: of a model, or of a PEFT adapter, whose base is then read.
        revision: hub revision.
        trust_remote_code: run code that comes with the checkpoint.
        local_files_only: download nothing.
        attn_implementation: "sdpa" or "eager"; None is what config.json names of these.
        device_map: transformers' `device_map`, such as "auto".

    Raises:
        UserError: nothing there, no tokenizer, or a checkpoint that cannot be decoded.
    """
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    if local_files_only:
        options["local_files_only"] = True
    adapter = _adapter(path)
    whole = _read_whole(path if adapter is None else adapter.base, options, adapter and path)
    config = text_part(whole)
    notes = _choose_attention(config, attn_implementation)
    tokenizer = _load_tokenizer(path, options, adapter)
    if adapter is not None:
        notes = (*notes, f"the adapter is merged into {adapter.base}")
    composite = None if config is whole else whole
    if composite is not None:
        notes = (*notes, f"the language model of a {whole.model_type}, without its other parts")
    checkpoint = Checkpoint(path, config, tokenizer, options, notes, composite, adapter, device_map)
    checkpoint.vocabulary.eos_ids(config.eos_token_id)
    return checkpoint


def max_length(config: Any, tokenizer: Any) -> int:
    """Largest number of positions the architecture takes; else what the tokenizer names.

    Llama 4 as far as its attention's temperature is 1: layers without positions take it from the
    number of slots, which is that of the longest row of a batch.
    """
    text = config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length")
    found = next((int(getattr(text, n)) for n in names if getattr(text, n, None)), None)
    length = int(tokenizer.model_max_length) if found is None else found
    if getattr(text, "attn_temperature_tuning", False):
        length = min(length, (int(text.floor_scale) - 2) // SLOT_TILE * SLOT_TILE)
    return length


def check_config(config: Any, remote: bool = False) -> None:
    """Refuse what no decoding of ours can be right for, as far as the config tells.

    Args:
        config: of transformers.
        remote: its code comes with the checkpoint, so that its classes are not known here.

    Raises:
        UserError: not decoder-only, multimodal, or layers of a kind that is not decoded.
    """
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{kind} is an encoder-decoder, no decoder-only language model")
    if not remote:
        _check_class(config)
    if kind == "bloom" or getattr(config, "alibi", False):
        raise UserError(
            f"{kind} with alibi takes its positions from a padding mask, which softeval does not"
            " give; use a checkpoint with another kind of position"
        )
    check_layer_kinds(config)


def torch_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """The dtype of a name; "auto" stays."""
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    known = getattr(torch, dtype, None)
    if known not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise UserError(f"--dtype {dtype!r}: choose from auto, float32, bfloat16, float16")
    return known


def torch_device(device: str | torch.device) -> torch.device:
    """The device of a name; "auto" is CUDA where there is one, else the CPU.

    MPS is refused: sampling tokens and measuring E need double precision, which it does not have.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return torch.device("cuda" if found else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"--device {device}: {_NO_DEVICE}") from None
    if chosen.type == "mps":
        raise UserError("--device mps: MPS has no double precision; use --device auto or cpu")
    if chosen.type not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: {_NO_DEVICE}")
    if chosen.type == "cuda" and (chosen.index or 0) >= found:
        raise UserError(
            f"--device {device}: {found or 'no'} CUDA devices here; use --device auto or cpu"
        )
    return chosen


def read_config(path: str, options: dict[str, Any]) -> Any:
    """The config of a directory or hub id; `options` are revision and trust_remote_code.

    Raises:
        UserError: nothing there, or a checkpoint that cannot be decoded.
    """
    adapter = _adapter(path)
    return text_part(_read_whole(path if adapter is None else adapter.base, options))


def _read_whole(path: str, options: dict[str, Any], adapter: str | None = None) -> Any:
    """A config, checked; `adapter` is the path of the adapter that names this one as its base."""
    from transformers import AutoConfig

    base = "" if adapter is None else f", the base of the adapter {adapter}"
    _check_directory(path, path + base)
    with one_line(repr(path) + base):
        config = AutoConfig.from_pretrained(path, **options)
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    try:
        check_config(text_part(config), remote=remote and options["trust_remote_code"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    with one_line(f"the quantised weights of {path!r}"):
        _check_quantisation(config)
    return config


def text_part(config: Any) -> Any:
    """The config of the language model in a multimodal one; of a text-only one, itself.

    Raises:
        UserError: a language model that transformers has no text-only class for.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    if getattr(config, "is_encoder_decoder", False):
        return config
    text = config.get_text_config()
    if text is config:
        return config
    apart = type(text) in MODEL_FOR_CAUSAL_LM_MAPPING
    if not apart or type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        named = [*(config.architectures or ()), f"{config.model_type} checkpoint"][0]
        raise UserError(
            f"{named} is multimodal, and transformers has no text-only class for its language"
            f" model ({text.model_type}); give a text-only checkpoint (…ForCausalLM)"
        )
    return text


def _check_directory(path: str, where: str) -> None:
    local = Path(path).expanduser()
    has_config = (local / "config.json").is_file()
    if local.exists() and not has_config:
        raise UserError(f"{path} holds no config.json; give a transformers checkpoint directory")
    if not local.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise UserError(f"no checkpoint at {where}; give a directory or a hub id like org/name")


def _adapter(path: str) -> Adapter | None:
    """The adapter that a directory holds, if it does.

    Raises:
        UserError: a model beside it, or a base that is not named.
    """
    local = Path(path).expanduser()
    described = local / "adapter_config.json"
    if not described.is_file():
        return None
    if (local / "config.json").is_file():
        # transformers would apply it without a word where peft is installed, and not elsewhere.
        raise UserError(
            f"{path} holds a model and an adapter (adapter_config.json), so which of the two is"
            " meant is open; merge it first: peft's merge_and_unload(), then save_pretrained(), or"
            " move the adapter to a folder of its own"
        )
    if not any(local.glob("adapter_model.*")):
        raise UserError(f"{path} holds adapter_config.json but no adapter_model.safetensors")
    try:
        base = json.loads(described.read_text(encoding="utf-8"))["base_model_name_or_path"]
        digest = hashlib.sha256()
        for file in sorted(local.glob("adapter_*")):
            digest.update(file.read_bytes())
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    if not base:
        raise UserError(f"{path} is a PEFT adapter that names no base; merge it into its model")
    return Adapter(str(base), digest.hexdigest())


def _check_class(config: Any) -> None:
    """Refuse by the class that transformers takes for this config."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"{kind} is no decoder-only language model; give one that AutoModelForCausalLM loads"
        )
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    named = list(config.architectures or [model.__name__])
    if config.get_text_config() is not config or named[0].endswith("ForConditionalGeneration"):
        raise UserError(
            f"{named[0]} is a multimodal model; load it by its path, which takes the language model"
            " alone"
        )
    if not any(name.endswith(("CausalLM", "LMHeadModel", "Decoder")) for name in named):
        raise UserError(f"{named[0]} is no decoder-only language model: it has no causal head")
    # Encoders such as BERT are in the causal mapping too; the masked one tells them apart.
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise UserError(f"{kind} is an encoder, no decoder-only language model")
    takes = inspect.signature(model.forward).parameters
    lacking = [] if "inputs_embeds" in takes else ["inputs_embeds"]
    if memory_argument(model) is None:
        lacking.append("past_key_values")
    if lacking:
        raise UserError(
            f"{model.__name__} takes no {' and no '.join(lacking)}, without which it cannot be fed"
            " soft tokens; use another architecture"
        )


def _choose_attention(config: Any, wanted: str | None) -> tuple[str, ...]:
    """Take what is wanted, or named; transformers' own choice where neither is sdpa or eager."""
    if wanted is not None:
        if wanted not in ATTENTION:
            raise UserError(f"--attn-implementation {wanted}: choose from {', '.join(ATTENTION)}")
        config._attn_implementation = wanted
    named = config._attn_implementation
    if named is None or named in ATTENTION:
        return ()
    config._attn_implementation = None
    return (f"attention: sdpa or eager, not the {named} that config.json names",)


def _check_quantisation(config: Any) -> None:
    """Ask transformers whether it could read these weights here; only packages are looked at."""
    from transformers.quantizers.auto import get_hf_quantizer

    parts = (config, config.get_text_config())
    if any(getattr(part, "quantization_config", None) is not None for part in parts):
        get_hf_quantizer(copy.deepcopy(config), None, None, True, {})


def _load_tokenizer(path: str, options: dict[str, Any], adapter: Adapter | None) -> Any:
    from transformers import AutoTokenizer

    local = Path(path).expanduser()
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if local.is_dir() and not any((local / name).is_file() for name in names):
        if adapter is not None:
            return _load_tokenizer(adapter.base, options, None)
        raise UserError(f"{path} holds no tokenizer; save it beside the model: save_pretrained()")
    with one_line(f"the tokenizer of {path!r}"):
        return AutoTokenizer.from_pretrained(path, **options)


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Make one line of whatever a library raises while it reads a checkpoint's files.

    Everything on purpose: what a damaged or unforeseen file raises in there can be anything, and a
    panic of the tokenizers' Rust code is not even an `Exception`.
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        kind = type(error).__name__
        raise UserError(f"cannot load {what} ({kind}): {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
