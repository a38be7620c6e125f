r"""`\pm` written out: one form becomes the two that it stands for."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from softeval.scoring.grading.forms import Form, Listing
from softeval.scoring.grading.tokens import Node

MAX_VARIANTS = 64


def variants(form: Form) -> list[Form]:
    r"""Write out a form with `\pm`: upper signs, then lower signs; without it, the form alone."""
    if not _has_sign(form):
        return [form]
    if isinstance(form, Listing) and form.brackets in ("", "{"):
        return [variant for item in form.items for variant in variants(item)][:MAX_VARIANTS]
    return [_with_signs(form, upper="+", lower="-"), _with_signs(form, upper="-", lower="+")]


def _has_sign(part: Any) -> bool:
    if isinstance(part, Node):
        return part.text in (r"\pm", r"\mp") or _has_sign(part.children)
    if isinstance(part, tuple):
        return any(map(_has_sign, part))
    return is_dataclass(part) and any(_has_sign(getattr(part, one.name)) for one in fields(part))


def _with_signs(part: Any, upper: str, lower: str) -> Any:
    if isinstance(part, Node):
        if part.text in (r"\pm", r"\mp"):
            return Node("symbol", upper if part.text == r"\pm" else lower)
        return replace(part, children=_with_signs(part.children, upper, lower))
    if isinstance(part, tuple):
        return tuple(_with_signs(one, upper, lower) for one in part)
    if is_dataclass(part) and not isinstance(part, type):
        changed = {
            one.name: _with_signs(getattr(part, one.name), upper, lower) for one in fields(part)
        }
        return replace(part, **changed)
    return part
