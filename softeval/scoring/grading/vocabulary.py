r"""The words of LaTeX that the reader knows, by what they do.

Tables only; `softeval.scoring.grading.normal_form` says how each kind is treated.
"""

from __future__ import annotations


def names(text: str) -> frozenset[str]:
    """The names in a text, separated by white space."""
    return frozenset(text.split())


def _aliases(text: str) -> dict[str, str]:
    """Read lines `name: other names for it`."""
    rows = (row.split(": ") for row in text.strip().splitlines())
    return {alias: name.strip() for name, others in rows for alias in others.split()}


SPACE = names(r"\, \! \; \: \> \/ \quad \qquad \enspace \thinspace \medspace \hfill ~ \\")
SPACE |= {"\\", "\\ ", "\\\n", "\\\t"}
"""Printed as space, or not at all. A lone backslash is what is left of one at the end."""
DRESSING = names(
    r"""\left \right \middle \big \Big \bigg \Bigg \bigl \bigr \Bigl \Bigr \biggl \biggr \Biggl
    \Biggr \bigm \displaystyle \textstyle \scriptstyle \limits \nolimits \large \Large \LARGE \huge
    \Huge \small \normalsize \tiny \bf \rm \it \em \sf \tt \bfseries \mathstrut \strut \noindent
    \centering \boldmath \( \) \[ \] \#"""
)
TRANSPARENT = names(
    r"""\boldsymbol \bm \mathbf \pmb \boxed \fbox \mathop \mathopen \mathclose \mathord \mathbin
    \mathrel \ensuremath \underline \cancel \mathnormal \framebox"""
)
"""Commands that only change how their argument looks."""
TEXT = names(
    r"""\text \textrm \textbf \textit \textnormal \textsf \texttt \textsc \textup \emph \mbox \hbox
    \mathrm \mathit \mathsf \mathtt \operatorname \operatorname*"""
)
"""Commands whose argument is words, a unit or the name of a function."""
HIDDEN = names(r"\phantom \hphantom \vphantom \hspace \hspace* \vspace \color \label \tag")
"""Commands whose argument is not printed."""
ACCENTS = names(
    r"""\overline \bar \hat \widehat \vec \tilde \widetilde \dot \ddot \overrightarrow
    \overleftrightarrow \mathbb \mathcal \mathfrak \mathscr"""
)
"""Commands that make another name of their argument."""
ALIASES = _aliases(
    r"""
    \frac: \dfrac \tfrac \cfrac
    \binom: \dbinom \tbinom
    \le: \leq \leqslant \leqq
    \ge: \geq \geqslant \geqq
    \ne: \neq
    <: \lt
    >: \gt
    \to: \rightarrow \longrightarrow
    \cup: \bigcup
    \emptyset: \varnothing \O
    \{: \lbrace
    \}: \rbrace
    [: \lbrack
    ]: \rbrack
    |: \lvert \rvert \vert
    \cdot: \times \ast \cdotp
    /: \div
    :: \colon
    \ldots: \dots \cdots \dotsc \dotsb
    \land: \wedge
    \lor: \vee
    \approx: \simeq \thickapprox
    ': \prime
    °: \degree \degrees
    %: \percent \%
    \bmod: \mod
    \setminus: \smallsetminus \backslash
    \epsilon: \varepsilon
    \phi: \varphi
    i: \imath
    \Leftrightarrow: \iff
    \Rightarrow: \implies
    &: \&
    """
)
MATRICES = names("matrix pmatrix bmatrix Bmatrix array smallmatrix")
LINES = names("aligned align align* gather gathered split")
FUNCTIONS = names(
    """sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp gcd lcm max min det
    sqrt pi infty"""
)
"""Words that are commands also without a backslash, or as `\\mathrm{}`."""
ORDINALS = names("th st nd rd")
