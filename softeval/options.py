"""Options: how a field is declared and read, and those that several front doors have.

A field is declared once, with its meaning, default and limits: the command line takes its flags and
help from it, a YAML file its keys, lm-eval its model arguments. `softeval.runs.config` and
`softeval.trainers.config` add what is theirs alone. Knows nothing of what the options do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from softeval.errors import UserError, suggest
from softeval.modes import Mode, joined_options, load_mode_file
from softeval.protocol import PROTOCOLS, Protocol, read_template
from softeval.scoring.judge import Rules

if TYPE_CHECKING:
    from softeval.model.stopping import Limits

DEFAULT_MAX_COT_TOKENS = 512
Config = TypeVar("Config", bound=BaseModel)


def option(
    default: Any, help: str, *, panel: str, flags: tuple[str, ...] = (), **limits: Any
) -> Any:
    """A field that is also a command-line option.

    Args:
        default: value where nobody sets one.
        help: the field's documentation, shown by --help.
        panel: heading of the help under which it stands.
        flags: further spellings, such as "-n".
        **limits: pydantic's limits (gt, ge, le).
    """
    extra = {"panel": panel, "flags": list(flags)}
    return Field(default, description=help, json_schema_extra=extra, **limits)


_PANELS = ("Model", "Protocol", "Modes", "Sampling", "Tasks", "Output")
model_option, protocol_option, mode_option, sampling_option, task_option, output_option = (
    partial(option, panel=title) for title in _PANELS
)


def split_list(value: Any) -> Any:
    """("a", "b") of "a,b", also in parts and with repeats; None as it is."""
    if value is None:
        return None
    parts = value if isinstance(value, list | tuple) else [value]
    single = [s for part in parts for s in (part.split(",") if isinstance(part, str) else [part])]
    cleaned = [s.strip() if isinstance(s, str) else s for s in single]
    return tuple(dict.fromkeys(s for s in cleaned if s != ""))


def read_pairs(value: Any) -> Any:
    """{"a": "1", "b": "2"} of "a=1,b=2", also in parts; a mapping's values as texts."""
    if isinstance(value, Mapping):
        return {str(name): str(part) for name, part in value.items()}
    parts = [value] if isinstance(value, str) else value
    pairs = [p.strip().partition("=") for part in parts for p in part.split(",") if p.strip()]
    wrong = [name for name, equals, _ in pairs if not equals]
    if wrong:
        raise ValueError(f"{wrong[0]!r} must be name=value")
    names = [name.replace("-", "_") for name, _, _ in pairs]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is given more than once")
    return {name: text for name, (_, _, text) in zip(names, pairs, strict=True)}


def _usable_batch(value: Any) -> Any:
    try:
        number = None if value == "auto" else int(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} must be auto or a whole number") from None
    if number is not None and number < 1:
        raise ValueError(f"{value} must be auto or at least 1")
    return value


LISTED = BeforeValidator(split_list)
Pairs = Annotated[dict[str, str], BeforeValidator(read_pairs)]
BatchSize = Annotated[int | Literal["auto"], BeforeValidator(_usable_batch)]


def fixed_size(size: int | Literal["auto"]) -> int | None:
    """A batch size; None where memory is to decide."""
    return None if size == "auto" else size


def read_options(path: Path, what: str) -> dict[str, Any]:
    """The ``name: value`` lines of a YAML file, with ``_`` for ``-`` in names.

    Args:
        path: the file.
        what: what it is called in messages: "recipe".

    Raises:
        UserError: unreadable, no YAML, or something else in it.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content or {}, dict):
        raise UserError(f"{what} {path} must hold `name: value` lines")
    return {str(name).replace("-", "_"): value for name, value in (content or {}).items()}


def validated(config: type[Config], values: Mapping[str, Any]) -> Config:
    """A configuration.

    Raises:
        UserError: an unknown option (with a suggestion), or an unusable value.
    """
    try:
        return config(**values)
    except ValidationError as error:
        raise UserError(_explained(error, config.model_fields)) from None


def _explained(error: ValidationError, fields: Iterable[str]) -> str:
    """The first problem on one line, under the name of its flag; `fields` are the known ones."""
    problem = error.errors()[0]
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    name = str(problem["loc"][0])
    flag = "--" + name.replace("_", "-")
    if problem["type"] == "extra_forbidden":
        return f"unknown option {name!r}{suggest(name, fields)}"
    if problem["type"] == "value_error":
        return f"{flag}: {message}" if flag not in message else message
    return f"{flag} {problem['input']!r}: {message[0].lower()}{message[1:]}"


class ModelOptions(BaseModel):
    """Which checkpoint, how it is loaded, and how its CoT modes are set."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str | None = model_option(
        None,
        "Checkpoint directory or hub id. Default: the small one inside the package.",
        flags=("-m",),
    )
    revision: str | None = model_option(None, "Hub revision of the checkpoint.")
    trust_remote_code: bool = model_option(False, "Run Python code that comes with the checkpoint.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = model_option(
        "auto", "Precision of the weights; auto is the checkpoint's own."
    )
    device: str = model_option("auto", "auto (CUDA if present), cpu, cuda or cuda:N.")
    attn_implementation: Literal["sdpa", "eager"] | None = model_option(
        None, "Attention. Default: the checkpoint's own, if it is one of these."
    )
    logits_dtype: Literal["model", "bfloat16", "float32"] = model_option(
        "model",
        "Precision of the logits before the float32 softmax; fuzzy training lasts with bfloat16"
        " only (docs/log.md; the paper trains bfloat16 models).",
    )
    self_check: bool = model_option(
        True, "Try at load that the model decodes rightly; what passed once is not tried again."
    )
    graphs: bool = model_option(
        True, "On a GPU, capture decode steps as CUDA graphs; it never changes a sample."
    )
    compile: bool = model_option(
        False,
        "On a GPU, fuse the model's decode steps by torch.compile: faster, after a minute for each"
        " number of rows; samples can differ by rounding.",
    )
    mode_args: Pairs = mode_option(
        {}, "Options of the chosen modes, as name=value,…; `softeval ls modes` lists them."
    )
    mode_file: str | None = mode_option(None, "Python file that registers a mode of your own.")
    temperature: float | None = mode_option(
        None,
        "CoT temperature τ, for modes of one kind. Default: the mode's own (sampled: hard 1, soft"
        " 0.5, fuzzy 0.0001).",
    )
    noise_scale: float | None = mode_option(
        None, "Noise scale γ of soft and fuzzy modes. Default: 0.33."
    )
    noise_norm: Literal["element", "vector"] | None = mode_option(
        None, "What γ multiplies to give σ: element (default) or vector."
    )

    def mode_options(self) -> dict[str, Any]:
        """Every option of a mode that was given; modes of a file are known from here on.

        Raises:
            UserError: an option given twice, or a file that is none.
        """
        if self.mode_file is not None:
            load_mode_file(self.mode_file)
        shorthands = ("temperature", "noise_scale", "noise_norm")
        return joined_options({name: getattr(self, name) for name in shorthands}, self.mode_args)


class ProtocolOptions(ModelOptions):
    """How a question becomes a prompt, and when its CoT ends; see docs/protocols.md."""

    protocol: Literal["paper", "think", "chat"] | None = protocol_option(
        None,
        "Preset of the options below: paper; think, for models that write <think> … </think>; chat."
        " Default: paper, or chat with --apply-chat-template.",
    )
    prompt: str | None = protocol_option(
        None,
        "paper, plain (the bare question), or a file in which the word QUESTION stands for the"
        " question. Default: the preset's.",
    )
    system_instruction: str | None = protocol_option(None, "System text.")
    num_fewshot: int = protocol_option(
        0, "Examples before the question, the same ones of the training split for all.", ge=0
    )
    apply_chat_template: bool | None = protocol_option(
        None, "Wrap the prompt in the tokenizer's chat template. Default: the preset's."
    )
    chat_date: date | None = protocol_option(
        None, "What a chat template is told of the date. Default: the day when the run began."
    )
    cot_stop: str | None = protocol_option(
        None,
        "Text or token that ends the CoT. Default: the preset's (The final answer is:, </think>).",
    )
    answer_prefix: str | None = protocol_option(
        None,
        "Text between the stop and the answer. One that ends in \\boxed{ opens the answer's box; else"
        " the answer is decoded to its end and its last box counts. Default: the preset's.",
    )

    @field_validator("cot_stop")
    @classmethod
    def _stop_at_something(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("white space ends no CoT; give a text or token, or leave it out")
        return None if value is None else value.strip()

    @model_validator(mode="after")
    def _dated_template(self) -> ProtocolOptions:
        if self.chat_date is not None and not self.uses_chat:
            raise ValueError("--chat-date has no effect without --apply-chat-template")
        return self

    @property
    def uses_chat(self) -> bool:
        """Whether prompts go through the chat template."""
        return self._preset.chat if self.apply_chat_template is None else self.apply_chat_template

    @property
    def _preset(self) -> Protocol:
        return PROTOCOLS[self.protocol or ("chat" if self.apply_chat_template else "paper")]

    def selected_protocol(self) -> Protocol:
        """The preset with what was set beside it; a template is read from its file.

        Raises:
            UserError: a template that cannot be used.
        """
        given: dict[str, Any] = {
            "prompt": None if self.prompt is None else read_template(self.prompt),
            "system": self.system_instruction or None,
            "num_fewshot": self.num_fewshot,
            "chat": self.uses_chat,
            "cot_stop": self.cot_stop,
            "answer_prefix": self.answer_prefix,
        }
        return replace(self._preset, **{n: v for n, v in given.items() if v is not None})


class GenerationOptions(ProtocolOptions):
    """How samples are drawn and judged, in `softeval run` and among lm-eval's model arguments."""

    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = model_option(
        None, "Spread the layers over this machine's GPUs, in place of --device."
    )
    num_samples: int | None = sampling_option(
        None, "Samples a question in the sampled modes.", flags=("-n",), ge=1
    )
    pass_at: Annotated[tuple[Annotated[int, Field(ge=1)], ...] | None, LISTED] = sampling_option(
        None, "The k of pass@k, separated by commas. Default: powers of two up to --num-samples."
    )
    seed: int = sampling_option(0, "Seed of every random number of the samples.", ge=0)
    max_cot_tokens: int | None = sampling_option(
        None,
        "Cap on the CoT. Default: 512 (think: 8192), or what the context leaves beside the longest"
        " prompt.",
        ge=1,
    )
    max_answer_tokens: int | None = sampling_option(
        None, "Cap on the answer. Default: 32 (think: 1024).", ge=1
    )
    batch_size: BatchSize = sampling_option(
        "auto", "Samples decoded at a time; it never changes a sample.", flags=("-b",)
    )
    scorer: Rules = task_option(
        Rules.SOFTEVAL,
        "Rules that judge mathematical answers; math-verify's verdicts are the paper's.",
    )
    data_dir: str | None = task_option(
        None, "Directory with JSONL files to read instead of the hub."
    )

    @model_validator(mode="after")
    def _reachable_k(self) -> GenerationOptions:
        k, n = max(self.pass_at or (1,)), self.num_samples or 1
        if k > n:
            raise ValueError(
                f"--pass-at {k} needs at least {k} samples a question;"
                f" raise --num-samples (now {n}) or lower --pass-at"
            )
        return self

    @property
    def limits(self) -> Limits:
        """Caps on CoT and answer, and the protocol."""
        from softeval.model.stopping import Limits

        protocol = self.selected_protocol()
        return Limits(
            self.max_cot_tokens or protocol.max_cot_tokens or DEFAULT_MAX_COT_TOKENS,
            self.max_answer_tokens or protocol.max_answer_tokens,
            protocol,
        )

    def samples_under(self, mode: Mode | None) -> int:
        """Samples a question under a mode: one where all are the same."""
        return 1 if mode is not None and mode.is_greedy else self.num_samples or 1

    def ks(self, samples: int) -> tuple[int, ...]:
        """The k of pass@k of so many samples, rising: as given, else the powers of two up to it."""
        powers = tuple(1 << i for i in range(samples.bit_length()))
        asked = powers if self.pass_at is None else sorted(self.pass_at)
        return tuple(k for k in asked if k <= samples) or (1,)
