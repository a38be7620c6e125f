"""How samples are shared out, keyed and grouped; and the pass's answer to a full memory."""

from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from train_cases import made_generation, relative_distance, tiny_config, tiny_lm

from softeval.decoding.decoder import Decoder
from softeval.model.output_head import output_head
from softeval.model.stopping import Limits
from softeval.modes import get_mode
from softeval.processes import Processes
from softeval.tasks.data import DatasetSource, Origin
from softeval.tasks.problems import Problem
from softeval.trainers import training_pass
from softeval.trainers.losses import Policy, Reference, collate, log_probs, policy_losses
from softeval.trainers.metrics import rollout_metrics, rollout_sums
from softeval.trainers.optimization import MasterWeights, gradient_norm
from softeval.trainers.questions import DataOrder, QuestionSet, TrainingQuestion
from softeval.trainers.rollout import RolloutCollector, StepRollouts
from softeval.trainers.setup import recompute_activations
from softeval.trainers.training_pass import PassPlan, TrainingPass, split_norms

SOURCE = DatasetSource("made", Origin.LOCAL, "", "train", 2, "")


class OneOf(Processes):
    """A process among several, whose peers' rewards are taken to be zero."""

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def collect(
    rank: int = 0, count: int = 1, cursor: int = 0, questions: int = 2, **changes: Any
) -> StepRollouts:
    lm = tiny_lm()
    asked = tuple(
        TrainingQuestion(n, Problem(f"q{n}", "1"), (7 + n, 8, 9)) for n in range(questions)
    )
    decoder = Decoder(lm, get_mode("soft_sample"), Limits(4, 3), answer_temperature=1.0)
    config = tiny_config(prompts_per_step=3, num_generations=4, **changes)
    order = DataOrder(questions, 0)
    processes = OneOf(rank, count, torch.device("cpu"))
    collector = RolloutCollector(decoder, QuestionSet(asked, (), SOURCE), order, config, processes)
    return collector.collect(cursor)


def texts(found: StepRollouts) -> dict[tuple[int, int], tuple[int, ...]]:
    return {(r.group, r.member): tuple(r.generation.shadow_ids) for r in found.local}


@pytest.mark.slow
def test_processes_share_the_samples_of_one() -> None:
    alone = texts(collect())
    assert list(alone) == [(g, m) for g in range(3) for m in range(4)]
    for count in (2, 3, 5):
        together: dict[tuple[int, int], tuple[int, ...]] = {}
        for rank in range(count):
            mine = texts(collect(rank, count))
            assert not mine.keys() & together.keys()
            together |= mine
        assert together == alone


def test_every_process_has_its_part_of_every_group() -> None:
    """So that one informative group among others keeps them all busy; alone a process has all."""
    samples = [(group, member) for group in range(3) for member in range(32)]
    for count in (2, 3, 8):
        shares: list[Any] = [Processes(rank, count).share(samples) for rank in range(count)]
        assert sorted(chain.from_iterable(shares)) == samples
        for group in range(3):
            sizes = [sum(g == group for g, _ in share) for share in shares]
            assert max(sizes) - min(sizes) <= 1
    assert Processes().share(samples) == samples


def test_a_question_drawn_twice_is_sampled_anew() -> None:
    """Three groups of one question; and the same question in a later epoch."""
    found = texts(collect(questions=1))
    groups = [tuple(found[g, m] for m in range(4)) for g in range(3)]
    assert len(set(groups)) == 3
    later = texts(collect(questions=1, cursor=3))
    assert {tuple(later[g, m] for m in range(4)) for g in range(3)}.isdisjoint(groups)
    again = texts(collect(questions=1, cursor=1))
    assert [again[0, m] for m in range(4)] == list(groups[1])


def test_rewards_stand_where_their_samples_do() -> None:
    found = collect()
    for rollout in found.local:
        assert float(found.rewards_PG[rollout.group, rollout.member]) == rollout.reward
    assert found.cursor == 3 and found.drawn == 3


def test_replaced_groups_count_among_what_was_drawn() -> None:
    """A random model is never right: every group is equal and replaced."""
    options = {"dynamic_sampling": True, "max_refills": 2, "reward_boxed": 0.0}
    found = collect(**options)
    sums = found.drawn_sums
    assert found.drawn == 9 and len(found.local) == 12
    assert sums["drawn_rollouts"] == 36 and sums["drawn_success"] == 0
    lengths = [len(r.generation.shadow_ids) + len(r.generation.answer_ids) for r in found.local]
    assert sums["drawn_tokens"] > 2 * sum(lengths)
    shared = [collect(rank, 2, **options).drawn_sums for rank in (0, 1)]
    assert {name: shared[0][name] + shared[1][name] for name in sums} == sums
    right = collect()
    metrics = rollout_metrics({**rollout_sums(right.local), **right.drawn_sums}, right)
    assert metrics["rollout/tokens_drawn"] == right.drawn_sums["drawn_tokens"]
    made = {"drawn_rollouts": 8.0, "drawn_success": 2.0, "drawn_tokens": 9.0}
    metrics = rollout_metrics({**rollout_sums(right.local), **made}, right)
    assert metrics["reward/success_drawn"] == 0.25 and metrics["reward/success"] == 0


def pass_over(
    micro_batch: int | None = None, dtype: torch.dtype = torch.float32
) -> tuple[TrainingPass, MasterWeights]:
    lm = tiny_lm(dtype)
    mode = get_mode("soft_sample")
    weights = MasterWeights(lm.model)
    policy = Policy(mode)
    return TrainingPass(lm, output_head(lm), weights, policy, micro_batch=micro_batch), weights


def test_a_full_memory_halves_the_pass_and_changes_no_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = tiny_lm()
    made = [made_generation(lm, (3, n % 4 + 1, 1, 2), sample=n) for n in range(11)]
    advantages = torch.linspace(-1, 1, 11)
    plain, expected = pass_over(micro_batch=2)
    plain.run(made, advantages, PassPlan(11))
    passes, weights = pass_over()
    monkeypatch.setattr(passes, "_add", picky(passes._add, 3))
    passes.run(made, advantages, PassPlan(11))
    assert passes.fitted == 2
    for found, wanted in zip(weights.masters, expected.masters, strict=True):
        assert found.grad is not None and wanted.grad is not None
        assert torch.equal(found.grad, wanted.grad)
    fixed, _ = pass_over(micro_batch=8)
    monkeypatch.setattr(fixed, "_add", picky(fixed._add, 3))
    with pytest.raises(torch.OutOfMemoryError):
        fixed.run(made, advantages, PassPlan(11))


@pytest.mark.parametrize("fault", ["CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_EXECUTION_FAILED"])
def test_memory_that_a_library_asks_for_itself_halves_the_pass_too(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """torch's own cache is given back first: such a library cannot take from it."""
    made = [made_generation(tiny_lm(), sample=n) for n in range(6)]
    passes, _ = pass_over()
    emptied: list[int | None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(passes.fitted))
    error = RuntimeError(f"CUDA error: {fault} when calling `cublasCreate(handle)`")
    monkeypatch.setattr(passes, "_add", picky(passes._add, 3, error))
    if "ALLOC" in fault:
        passes.run(made, torch.linspace(-1, 1, 6), PassPlan(6))
        assert passes.fitted == 2 and emptied == [16, 8, 4]
    else:
        with pytest.raises(RuntimeError, match=fault):
            passes.run(made, torch.linspace(-1, 1, 6), PassPlan(6))
        assert passes.fitted == 16 and not emptied


def test_a_pass_that_a_gpu_began_goes_on_with_what_a_cpu_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = [made_generation(tiny_lm(), sample=n) for n in range(20)]
    sizes: list[list[int]] = []
    for kept in (64, 5):
        passes, _ = pass_over()
        passes.fitted = kept  # as a state says
        monkeypatch.setattr(
            passes, "_run", lambda _a, _b, _c, parts: sizes.append([*map(len, parts)])
        )
        passes.run(made, torch.ones(20), PassPlan(20))
    assert sizes == [[16, 4], [5] * 4]


def picky(add: Any, most: int, error: RuntimeError = torch.OutOfMemoryError()) -> Any:  # noqa: B008
    """`add` on a device that holds at most so many sequences, and fails after doing the work."""

    def wrapped(batch: Any, *rest: Any) -> None:
        add(batch, *rest)
        if batch.rows > most:
            raise error

    return wrapped


def test_sequences_of_advantage_zero_are_left_out_unless_wanted() -> None:
    lm = tiny_lm()
    made = [made_generation(lm, sample=n) for n in range(4)]
    passes, weights = pass_over(micro_batch=4)
    advantages = torch.tensor([0.0, 1.0, 0.0, -1.0])
    assert passes.run(made, advantages, PassPlan(4)).sums["sequences"] == 2
    passes.skip_zero = False
    assert passes.run(made, advantages, PassPlan(4)).sums["sequences"] == 4
    weights.clear()
    passes.skip_zero = True
    nothing = torch.zeros(4)
    assert passes.run(made, nothing, PassPlan(4)).sums["sequences"] == 0
    assert passes.run(made, nothing, PassPlan(4, keep_first=True)).sums["sequences"] == 1
    assert all(m.grad is None or not m.grad.any() for m in weights.masters)
    assert passes.run([], nothing, PassPlan(4, keep_first=False)).sums["sequences"] == 0


def test_prompts_of_several_sequences_are_passed_once_a_part_with_the_same_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In parts of four; one sequence that is left is passed as it is."""
    lm, prompts = tiny_lm(torch.float64), [0] * 6 + [1] * 5 + [2] * 2
    asked = [made_generation(lm, (9, 1, 1, 1), sample=n).prompt_ids for n in range(3)]
    made = [made_generation(lm, (9, n % 4 + 1, 1, 2), sample=n) for n in range(13)]
    made = [replace(g, prompt_ids=asked[p]) for g, p in zip(made, prompts, strict=True)]
    plain, parts = training_pass.collate, []

    def watched(rollouts: Any, *rest: Any, **options: Any) -> Any:
        batch = plain(rollouts, *rest, **options)
        parts.append((len({g.prompt_ids.tobytes() for g in rollouts}), batch.rows, batch.shared))
        return batch

    monkeypatch.setattr(training_pass, "collate", watched)
    gradients = []
    for share in (False, True):
        passes, weights = pass_over(4, torch.float64)
        passes.share = share
        passes.run(made, torch.linspace(-1, 1, 13), PassPlan(13))
        gradients.append([m.grad for m in weights.masters if m.grad is not None])
    assert [shared for _, _, shared in parts[:4]] == [0] * 4 and parts[0][0] > 1
    assert sorted(parts[4:]) == [(1, 1, 0), (1, 2, 8), (1, 2, 8), (1, 4, 8), (1, 4, 8)]
    assert relative_distance(*reversed(gradients)) < 1e-6  # norms are float32 all the same


@pytest.mark.parametrize(("device", "size"), [("cuda", 10), ("cpu", 16)])
def test_a_pass_begins_with_all_sequences_even_if_the_first_update_uses_few(
    monkeypatch: pytest.MonkeyPatch, device: str, size: int
) -> None:
    lm = tiny_lm()
    passes, _ = pass_over()
    sizes: list[list[int]] = []
    monkeypatch.setattr(passes, "lm", SimpleNamespace(device=torch.device(device)))
    monkeypatch.setattr(passes, "_run", lambda _a, _b, _c, parts: sizes.append([*map(len, parts)]))
    made = [made_generation(lm, sample=n) for n in range(10)]
    for used in (0, 3, 10):
        passes.run(made, (torch.arange(10) < used).double(), PassPlan(10))
    assert sizes == [[], [3], [10]] and passes.fitted == size


def split_pass(beta: float, answer: bool, kl: bool) -> tuple[dict[str, float], list[Any]]:
    """Norms of the parts and the whole gradient of two sequences, without terms left out."""
    lm = tiny_lm()
    mode = get_mode("soft_sample")
    weights = MasterWeights(lm.model)
    policy = Policy(mode)
    other = tiny_lm(seed=1)
    reference = Reference(other, output_head(other))
    passes = TrainingPass(
        lm, output_head(lm), weights, policy, micro_batch=1, reference=reference, beta=beta
    )
    made = [made_generation(lm, sample=n) for n in range(2)]
    advantages = torch.tensor([1.0, -0.5]) * (1.0 if answer else 0.0)
    found = passes.run(made, advantages, PassPlan(2, measure_kl=kl, split=True))
    return split_norms(weights, found.parts), [m.grad.clone() for m in weights.masters]


def test_the_answers_norm_is_its_own_beside_a_penalty() -> None:
    plain, policy_gradient = split_pass(0.0, answer=True, kl=False)
    both, gradient = split_pass(0.5, answer=True, kl=True)
    alone, kl_gradient = split_pass(0.5, answer=False, kl=True)
    assert plain.keys() == {"cot", "answer"} and both.keys() == {"cot", "answer", "kl"}
    for name in plain:
        assert both[name] == pytest.approx(plain[name], rel=1e-3)
    assert both["kl"] == pytest.approx(gradient_norm(kl_gradient), rel=1e-3)
    assert both["kl"] > 1e-3 and alone["cot"] == 0
    # Sums of some hundred positions and three additions, each rounded by 2^-24.
    summed = [one + other for one, other in zip(policy_gradient, kl_gradient, strict=True)]
    assert relative_distance(gradient, summed) < 1e-5


def test_the_answers_norm_is_no_rounding_of_the_cots() -> None:
    """A tiny σ makes the CoT's gradient more than 2^24 times the answer's."""
    lm, mode = tiny_lm(), get_mode("soft_sample")
    policy = Policy(get_mode("soft_sample", noise_scale=1e-9 * mode.options["noise_scale"]))
    weights = MasterWeights(lm.model)
    passes = TrainingPass(lm, output_head(lm), weights, policy, micro_batch=1)
    made, advantages = [made_generation(lm, sample=n) for n in range(2)], torch.tensor([1.0, -0.5])
    norms = split_norms(weights, passes.run(made, advantages, PassPlan(2, split=True)).parts)
    assert norms["cot"] > 2**24 * norms["answer"] > 0
    batch = collate(made, lm.device, lm.dtype, mode, mode.draws(lm.embedding))
    alone = policy_losses(log_probs(lm, output_head(lm), batch, policy), batch, advantages, 2)[1]
    gradients = torch.autograd.grad(alone, list(lm.model.parameters()), allow_unused=True)
    assert norms["answer"] == pytest.approx(gradient_norm(gradients), rel=1e-4)


def test_a_kl_that_is_only_looked_at_is_not_differentiated(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    plain = training_pass.policy_kl

    def watched(*args: Any) -> Any:
        found = plain(*args)
        seen.append(found.tokens.requires_grad)
        return found

    monkeypatch.setattr(training_pass, "policy_kl", watched)
    for beta in (0.0, 0.5):
        split_pass(beta, answer=True, kl=True)
    assert seen == [False, False, True, True]


def test_recomputed_activations_bring_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = tiny_lm().model
        recompute_activations(model)
    assert not any(module.training for module in model.modules())
