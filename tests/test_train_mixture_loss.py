"""The chunked functions against plain autograd, which holds everything at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from train_cases import tiny_lm
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from softeval.errors import UserError
from softeval.model.embedding import InputEmbedding
from softeval.model.language_model import LogitsDtype, wrap_model
from softeval.model.output_head import (
    HeadRule,
    OutputHead,
    keep_float32_head_live,
    output_head,
)
from softeval.trainers.chunked import mixtures, reference_kl, token_log_probs

N, D, V, PADDED = 23, 8, 40, 48


class Case:
    """A head, an embedding and hidden states; `PADDED - V` rows are unknown to the tokenizer."""

    def __init__(
        self, dtype: torch.dtype = torch.float64, scale: float | None = None, **rule: object
    ) -> None:
        torch.manual_seed(0)
        table = nn.Embedding(PADDED, D).to(dtype)
        if scale is not None:
            table = ScaledTable(table, scale)
        self.embedding = InputEmbedding(table, V)
        self.hidden = torch.randn(N, D, dtype=dtype, requires_grad=True)
        self.weight = torch.randn(PADDED, D, dtype=dtype, requires_grad=True)
        self.bias = torch.randn(PADDED, dtype=dtype, requires_grad=True)
        self.head = OutputHead(self.weight, self.bias, HeadRule(V, **rule))  # type: ignore[arg-type]

    @property
    def parameters(self) -> list[Tensor]:
        return [self.hidden, self.weight, self.bias, self.embedding.module.weight]  # type: ignore[list-item]

    def logits(self, bfloat16: bool = False) -> Tensor:
        logits = self.hidden @ self.weight[:V].T + self.bias[:V]
        if self.head.rule.softcap:
            logits = torch.tanh(logits / self.head.rule.softcap) * self.head.rule.softcap
        return logits.bfloat16().to(self.hidden.dtype) if bfloat16 else logits

    def naive(self, temperature: float, bfloat16: bool = False) -> Tensor:
        probs = (self.logits(bfloat16) / temperature).softmax(-1)
        mixed = probs @ self.embedding.weight
        return mixed if self.embedding.scale is None else mixed * self.embedding.scale


class ScaledTable(nn.Module):
    def __init__(self, table: nn.Embedding, scale: float) -> None:
        super().__init__()
        self.weight = table.weight
        self.embed_scale = torch.tensor(scale)

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids] * self.embed_scale.to(self.weight.dtype)


def gradients(output: Tensor, parameters: list[Tensor], seed: int = 1) -> list[Tensor | None]:
    torch.manual_seed(seed)
    push = torch.randn(output.shape, dtype=torch.float64).to(output.dtype)
    return list(torch.autograd.grad(output, parameters, push, allow_unused=True))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("scale", [None, 2.0])
def test_mixtures_equal_plain_autograd(
    temperature: float, chunk: int, softcap: float | None, scale: float | None
) -> None:
    case = Case(scale=scale, softcap=softcap, chunk=chunk)
    found = mixtures(case.hidden, case.head, case.embedding, temperature).mixed_ND
    expected = case.naive(temperature)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    for got, want in zip(
        gradients(found, case.parameters), gradients(expected, case.parameters), strict=True
    ):
        assert got is not None and want is not None
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-9)
        assert want.abs().max() > 0


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [5, 64])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_token_log_probs_equal_plain_autograd(
    temperature: float, chunk: int, softcap: float | None
) -> None:
    case = Case(softcap=softcap, chunk=chunk)
    ids = torch.arange(N) % V
    found = token_log_probs(case.hidden, ids, case.head, temperature)
    plain = (case.logits() / temperature).log_softmax(-1)
    expected = plain.gather(-1, ids[:, None]).squeeze(-1)
    assert torch.allclose(found, expected, rtol=1e-12)
    wanted = gradients(expected, case.parameters)
    for got, want in zip(gradients(found, case.parameters), wanted, strict=True):
        assert (got is None) == (want is None)
        assert got is None or want is None or torch.allclose(got, want, atol=1e-10)


@pytest.mark.parametrize("chunk", [5, 64])
def test_divergences_equal_plain_autograd(chunk: int) -> None:
    case, other = Case(chunk=chunk), Case(chunk=chunk)
    other.hidden = torch.randn(N, D, dtype=torch.float64)
    found = reference_kl(case.hidden, case.head, other.hidden, other.head)
    own, reference = case.logits().log_softmax(-1), other.logits().log_softmax(-1).detach()
    expected = (own.exp() * (own - reference)).sum(-1)
    assert torch.allclose(found, expected)
    assert (found > 0).all()
    wanted = gradients(expected, case.parameters[:3])
    for got, want in zip(gradients(found, case.parameters[:3]), wanted, strict=True):
        assert got is not None and want is not None and torch.allclose(got, want)
    itself = reference_kl(case.hidden, case.head, case.hidden.detach(), case.head)
    assert itself.abs().max() < 1e-12


def test_detached_embedding_gets_no_gradient_and_the_rest_is_unchanged() -> None:
    case = Case(chunk=7)
    attached = mixtures(case.hidden, case.head, case.embedding, 0.5).mixed_ND
    detached = mixtures(case.hidden, case.head, case.embedding, 0.5, True).mixed_ND
    with_e, without_e = (gradients(x, case.parameters) for x in (attached, detached))
    assert with_e[3] is not None and without_e[3] is None
    for got, want in zip(without_e[:3], with_e[:3], strict=True):
        assert got is not None and want is not None and torch.equal(got, want)


def test_rows_beyond_the_vocabulary_are_untouched() -> None:
    case = Case(chunk=7)
    found = gradients(
        mixtures(case.hidden, case.head, case.embedding, 0.5).mixed_ND, case.parameters
    )
    for gradient in found[1:]:
        assert gradient is not None and (gradient[V:] == 0).all() and (gradient[:V] != 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_one_hot_mixture_has_a_gradient_of_exactly_zero(dtype: torch.dtype) -> None:
    case = Case(dtype, chunk=7)
    mixed = mixtures(case.hidden, case.head, case.embedding, 1e-4, True)
    lone = ~mixed.tied_N
    gradient = torch.autograd.grad((mixed.mixed_ND[lone] * 1e6).sum(), case.hidden)[0]
    near = case.logits().detach().float().topk(2).values.diff().abs().squeeze(-1) < 2e-2
    assert (lone & ~near).sum() > N // 2
    assert (gradient[lone & ~near] == 0).all()


def test_an_exact_tie_is_seen_and_carries_gradient() -> None:
    case = Case(torch.float32, logits_dtype=LogitsDtype.BFLOAT16)
    with torch.no_grad():
        case.weight[0], case.bias[0] = case.weight[1], 40.0
        case.bias[1] = 40.0
    mixed = mixtures(case.hidden, case.head, case.embedding, 1e-4)
    assert mixed.tied_N.all()
    halfway = case.embedding.weight[:2].mean(0)
    assert torch.allclose(mixed.mixed_ND, halfway.expand(N, D))
    gradient = torch.autograd.grad(mixed.mixed_ND.sum(), case.weight)[0]
    assert gradient[:2].abs().min() > 0 and (gradient[2:] == 0).all()


def test_rounded_logits_change_the_mixture() -> None:
    plain, rounded = (
        Case(torch.float32, logits_dtype=kind) for kind in (LogitsDtype.MODEL, LogitsDtype.BFLOAT16)
    )
    found = [mixtures(c.hidden, c.head, c.embedding, 0.1).mixed_ND for c in (plain, rounded)]
    assert not torch.equal(found[0], found[1])
    assert torch.allclose(found[1], rounded.naive(0.1, bfloat16=True), atol=1e-6)


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return found


@pytest.mark.parametrize("kind", ["mixture", "token", "divergence"])
def test_no_tensor_of_positions_times_vocabulary_is_ever_made(kind: str) -> None:
    n, v, chunk = 300, 500, 10
    hidden = torch.randn(n, D, requires_grad=True)
    weight = torch.randn(v, D, requires_grad=True)
    head = OutputHead(weight, None, HeadRule(v, chunk=chunk))
    embedding = InputEmbedding(nn.Embedding(v, D), v)
    with LargestTensor() as largest:
        if kind == "mixture":
            mixtures(hidden, head, embedding, 0.5).mixed_ND.sum().backward()
        elif kind == "token":
            token_log_probs(hidden, torch.arange(n), head).sum().backward()
        else:
            reference_kl(hidden, head, hidden.detach() + 1, head).sum().backward()
    assert largest.elements <= max(chunk * v, v * D)


def gemma2(softcap: float | None = 5.0) -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    config = Gemma2Config(
        **shape, **heads, final_logit_softcapping=softcap, initializer_range=0.3, pad_token_id=0
    )
    return Gemma2ForCausalLM(config).eval()


def gemma3() -> Gemma3ForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    return Gemma3ForCausalLM(Gemma3TextConfig(**shape, **heads, pad_token_id=0)).eval()


def test_the_head_of_softcapped_and_scaled_architectures_is_known() -> None:
    tokenizer = tiny_lm().tokenizer
    assert output_head(wrap_model(gemma2(), tokenizer)).rule.softcap == 5.0
    assert output_head(wrap_model(gemma3(), tokenizer)).rule.softcap is None


def test_an_unknown_step_after_the_head_is_refused() -> None:
    lm = tiny_lm()
    lm.model.get_output_embeddings().register_forward_hook(lambda m, args, out: out * 2)
    with pytest.raises(UserError, match="after the output head"):
        output_head(lm)


def test_a_live_float32_head_follows_its_weights() -> None:
    lm = tiny_lm(torch.bfloat16)
    lm.logits_dtype = LogitsDtype.FLOAT32
    keep_float32_head_live(lm.model.get_output_embeddings())
    ids = torch.arange(6)[None]
    before = lm.model(input_ids=ids).logits
    assert before.dtype == torch.float32
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.mul_(2)
    assert torch.allclose(lm.model(input_ids=ids).logits, 2 * before)
    assert output_head(lm).rule.logits_dtype is LogitsDtype.FLOAT32
