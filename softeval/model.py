"""Loads a checkpoint and answers what the decoder must know about it.

Knows nothing of modes, batches or tasks. Any decoder-only transformers checkpoint will do; what
cannot work is refused here with its remedy.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softeval.embedding import InputEmbedding
from softeval.errors import UserError
from softeval.stopping import Stopper

BUNDLED_CHECKPOINT = str(files("softeval") / "checkpoints" / "base")


class LogitsDtype(StrEnum):
    """Precision of the logits before the float32 softmax (method section 3, precision).

    MODEL: what the checkpoint's head gives. BFLOAT16: that, rounded. FLOAT32: the head itself
    computed in float32 from the last hidden state.
    """

    MODEL = "model"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


@dataclass(eq=False)
class LanguageModel:
    """A checkpoint ready to decode.

    Attributes:
        model: the transformers model, in evaluation mode.
        tokenizer: its tokenizer.
        path: directory or hub id it came from.
        embedding: input embedding E over the ids that the tokenizer knows.
        max_length: largest number of positions the architecture takes.
        eos_ids: every id that ends a sequence.
        logits_dtype: precision of the logits.
    """

    model: Any
    tokenizer: Any
    path: str
    embedding: InputEmbedding
    max_length: int
    eos_ids: frozenset[int]
    logits_dtype: LogitsDtype = LogitsDtype.MODEL

    @property
    def vocab(self) -> int:
        """Number of ids that both the tokenizer and the embedding know; others are masked."""
        return self.embedding.vocab

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @cached_property
    def stopper(self) -> Stopper:
        """Stop rules of this tokenizer; made once, as it reads the whole vocabulary."""
        return Stopper(self.tokenizer)

    def logits(self, hidden_or_logits: Tensor) -> Tensor:
        """(…, V) logits in the chosen precision, cut to the tokenizer's ids."""
        logits = hidden_or_logits[..., : self.vocab]
        if self.logits_dtype is LogitsDtype.BFLOAT16:
            return logits.to(torch.bfloat16)
        return logits


def load_model(
    path: str | Path = BUNDLED_CHECKPOINT,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    logits_dtype: str = "model",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a checkpoint directory or hub id.

    Args:
        path: local directory or hub id of a decoder-only transformers checkpoint.
        dtype: "auto" (the checkpoint's own), "float32", "bfloat16" or "float16".
        device: "auto" (CUDA or MPS where there is one) or any torch device.
        logits_dtype: "model", "bfloat16" or "float32".
        revision: hub revision.
        trust_remote_code: run code that comes with the checkpoint.

    Raises:
        UserError: nothing there, no tokenizer, not decoder-only, or an unusable option.
    """
    path = str(path)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = _load_config(path, options)
    tokenizer = _load_tokenizer(path, options)
    model = _load_weights(path, config, _torch_dtype(dtype), options)
    model.to(_torch_device(device)).eval()
    return wrap_model(model, tokenizer, path, logits_dtype=logits_dtype)


def wrap_model(
    model: Any, tokenizer: Any, path: str = "", *, logits_dtype: str = "model"
) -> LanguageModel:
    """A `LanguageModel` around objects that are already loaded.

    Raises:
        UserError: an option or an architecture that cannot be used.
    """
    if logits_dtype not in list(LogitsDtype):
        raise UserError(f"--logits-dtype {logits_dtype!r}: choose from model, bfloat16, float32")
    table = model.get_input_embeddings()
    rows = getattr(getattr(table, "weight", None), "shape", (0,))[0]
    lm = LanguageModel(
        model=model,
        tokenizer=tokenizer,
        path=path,
        embedding=InputEmbedding(table, min(len(tokenizer), rows)),
        max_length=_max_length(model, tokenizer),
        eos_ids=_eos_ids(model, tokenizer),
        logits_dtype=LogitsDtype(logits_dtype),
    )
    if lm.logits_dtype is LogitsDtype.FLOAT32 and lm.dtype != torch.float32:
        _float32_head(model)
    return lm


def weights_hash(model: nn.Module) -> str:
    """sha256 over names, shapes, dtypes and bytes of all parameters and persistent buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


def _load_config(path: str, options: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    local = Path(path).expanduser()
    if local.exists() and not (local / "config.json").is_file():
        raise UserError(f"{path} holds no config.json; give a transformers checkpoint directory")
    if not local.exists() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise UserError(f"no checkpoint at {path}; give a directory or a hub id like org/name")
    try:
        config = AutoConfig.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load {path!r}: {_first_line(error)}") from error
    if getattr(config, "is_encoder_decoder", False) or not _is_causal(config, options):
        raise UserError(
            f"{path} ({config.model_type}) is no decoder-only language model; "
            "give one that AutoModelForCausalLM loads"
        )
    return config


def _is_causal(config: Any, options: dict[str, Any]) -> bool:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if options["trust_remote_code"] and "AutoModelForCausalLM" in (config.auto_map or {}):
        return True
    # Encoders such as BERT are in the causal mapping too; their own flag or head tells them apart.
    named = config.architectures or []
    headed = not named or any(n.endswith(("CausalLM", "LMHeadModel")) for n in named)
    encoder = config.model_type in ("bert", "roberta", "electra", "xlm-roberta", "camembert")
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return known and not (encoder and not getattr(config, "is_decoder", False)) and headed


def _load_tokenizer(path: str, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    local = Path(path).expanduser()
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if local.is_dir() and not any((local / name).is_file() for name in names):
        raise UserError(f"{path} holds no tokenizer; save it beside the model: save_pretrained()")
    try:
        return AutoTokenizer.from_pretrained(path, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"cannot load the tokenizer of {path!r}: {_first_line(error)}") from error


def _load_weights(path: str, config: Any, dtype: Any, options: dict[str, Any]) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(  # type: ignore[misc]
            path,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot load the weights of {path!r}: {_first_line(error)}") from error
    if info["missing_keys"]:  # transformers would fill them with random numbers
        some = ", ".join(sorted(info["missing_keys"])[:3])
        raise UserError(f"{path} lacks weights ({some}); give a complete checkpoint")
    return model


def _torch_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    known = getattr(torch, dtype, None)
    if known not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise UserError(f"--dtype {dtype!r}: choose from auto, float32, bfloat16, float16")
    return known


def _torch_device(device: str | torch.device) -> torch.device:
    if device != "auto":
        try:
            chosen = torch.device(device)
        except RuntimeError as error:
            raise UserError(f"--device {device!r}: {_first_line(error)}") from error
        if chosen.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"--device {device}: no CUDA device here; use --device cpu")
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _max_length(model: Any, tokenizer: Any) -> int:
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    return int(tokenizer.model_max_length)


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """All ids named by tokenizer, config and generation config; nothing else of the latter."""
    named: set[int] = set()
    for value in (
        tokenizer.eos_token_id,
        model.config.get_text_config().eos_token_id,
        getattr(getattr(model, "generation_config", None), "eos_token_id", None),
    ):
        ids = value if isinstance(value, list | tuple) else [value]
        named.update(id for id in ids if id is not None and id >= 0)
    return frozenset(named)


def _float32_head(model: Any) -> None:
    """Compute the output projection in float32 (what follows it, a softcap say, then is too)."""
    head = model.get_output_embeddings()
    weight = head.weight.detach().float()
    bias = None if head.bias is None else head.bias.detach().float()

    def project(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return nn.functional.linear(args[0].float(), weight, bias)

    head.register_forward_hook(project)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
