"""The hash of a checkpoint's weights from its files: that of the loaded model, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
from conftest import mostly_slow
from safetensors.torch import load_file, save_file
from tiny import tiny_tokenizer

from softeval import UserError, load_model
from softeval.model import BUNDLED_CHECKPOINT
from softeval.model.checkpoint import check_config, read_checkpoint, torch_dtype
from softeval.model.weights import stored_weights, weights_hash
from softeval.runs.config import make_config
from softeval.runs.request import Weights, examine

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def saved(folder: Path, name: str, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    model = architectures.tiny_model(architectures.tiny_config(name))
    model.to(dtype).save_pretrained(folder, **options)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def check(folder: Path | str, dtype: str = "auto") -> bool:
    """Hold the files against the loaded model; False where they do not tell."""
    stored = stored_weights(read_checkpoint(str(folder)), torch_dtype(dtype))
    if stored is None:
        return False
    lm = load_model(folder, dtype=dtype, device="cpu", self_check=False)
    assert (stored.sha256, stored.dtype) == (weights_hash(lm.model), lm.dtype)
    return True


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", mostly_slow(["llama", "gpt2", "qwen2"], ["gpt2"]))
def test_files_give_the_hash_of_the_loaded_model(tmp_path: Path, name: str, dtype: str) -> None:
    assert check(saved(tmp_path, name, torch.bfloat16), dtype)


def test_so_does_the_bundled_checkpoint() -> None:
    assert check(BUNDLED_CHECKPOINT)


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole", "llama")
    shards = saved(tmp_path / "shards", "llama", max_shard_size="20KB")
    assert len(list(shards.glob("*.safetensors"))) > 1
    both = [stored_weights(read_checkpoint(str(folder)), "auto") for folder in (whole, shards)]
    assert None not in both and both[0].sha256 == both[1].sha256


def test_one_changed_number_changes_the_hash(tmp_path: Path) -> None:
    folder = saved(tmp_path, "llama")
    before = stored_weights(read_checkpoint(str(folder)), "auto")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] += 1e-3
    save_file(tensors, file, {"format": "pt"})
    after = stored_weights(read_checkpoint(str(folder)), "auto")
    assert before is not None
    assert after is not None
    assert before.sha256 != after.sha256


def test_weights_written_while_they_are_read_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "llama")
    config = make_config({"model": str(folder), "device": "cpu", "self_check": False})
    weights = Weights(config, examine(config))
    assert weights.names["weights"] == weights_hash(weights.load().model)
    late = Weights(config, examine(config))
    assert late.names == weights.names
    saved(folder, "llama")
    with pytest.raises(UserError, match="safetensors was written while it was being read"):
        late.load()


def test_what_files_alone_do_not_tell_is_left_open(tmp_path: Path) -> None:
    merged = saved(tmp_path / "experts", "mixtral")
    assert not check(merged)
    both = saved(tmp_path / "tied-twice", "gpt2")
    tensors = load_file(both / "model.safetensors")
    other = tensors["transformer.wte.weight"] + 1
    save_file({**tensors, "lm_head.weight": other}, both / "model.safetensors", {"format": "pt"})
    assert not check(both)


def test_damaged_or_absent_files_are_left_to_loading(tmp_path: Path) -> None:
    folder = saved(tmp_path, "llama")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert not check(folder)
    file.unlink()
    assert not check(folder)
    with pytest.raises(UserError, match="cannot load the weights"):
        load_model(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", architectures.names())
def test_no_architecture_gives_another_hash(tmp_path: Path, name: str) -> None:
    """As it is stored, and in one other precision: the rest depends on no architecture (above)."""
    try:
        config = architectures.tiny_config(name)
        check_config(config)
        saved(tmp_path, name, torch.bfloat16 if len(name) % 2 else torch.float32)
        read_checkpoint(str(tmp_path))
    except Exception as error:  # noqa: BLE001 - whatever an architecture raises
        pytest.skip(f"not built or refused: {type(error).__name__}")
    check(tmp_path)
    check(tmp_path, "float16" if len(name) % 3 else PRECISIONS[2 - len(name) % 2])
