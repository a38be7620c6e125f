r"""The words that the reader knows, by what they do: commands of LaTeX, units, numerals.

`softeval.scoring.grading.normal_form` says how each kind of command is treated. Units end three
kinds of mistake: a variable taken for a unit (single letters count only in `\text{}`), a word that
is no unit dropped (`3 or more`), and different units taken for equal (`5 cm`, `5 m`).
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple


def names(text: str) -> frozenset[str]:
    """The names in a text, separated by white space."""
    return frozenset(text.split())


def _pairs(text: str) -> dict[str, str]:
    """Read signs, each with its name after it."""
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


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
BRACKETS = {"(": ")", "[": "]", r"\{": r"\}", r"\langle": r"\rangle"}
ROUNDING = {r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
OF_TWO = names(r"\frac \binom \stackrel \overset")
"""Commands of two arguments."""
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
SIGNS = _pairs(
    r"""
    × \times  ✕ \times  · \cdot  ⋅ \cdot  ∙ \cdot  • \cdot  ° ^\circ  º ^\circ  ˚ ^\circ
    √ \surd  ± \pm  ∓ \mp  ∞ \infty  ≤ \le  ⩽ \le  ≥ \ge  ⩾ \ge  ≠ \ne  ≈ \approx  ≡ \equiv
    ∣ \mid  → \to  ⇒ \Rightarrow  ∈ \in  ∉ \notin  ∪ \cup  ⋃ \cup  ∩ \cap  ∖ \setminus
    ∅ \emptyset  ⌀ \emptyset  Ø \emptyset  ℝ \mathbb{R}  ℤ \mathbb{Z}  ℕ \mathbb{N}
    ℚ \mathbb{Q}  ℂ \mathbb{C}  ⌊ \lfloor  ⌋ \rfloor  ⌈ \lceil  ⌉ \rceil  ⟨ \langle
    〈 \langle  ⟩ \rangle  〉 \rangle  ∠ \angle  △ \triangle  ∑ \sum  ∏ \prod  ∫ \int
    … \ldots
    """
)
"""The signs that Unicode has for commands."""
GREEK = _pairs(
    r"""
    α \alpha  β \beta  γ \gamma  δ \delta  ε \epsilon  ζ \zeta  η \eta  θ \theta  ι \iota
    κ \kappa  λ \lambda  μ \mu  ν \nu  ξ \xi  π \pi  ρ \rho  σ \sigma  τ \tau  υ \upsilon
    φ \phi  χ \chi  ψ \psi  ω \omega  Γ \Gamma  Δ \Delta  Θ \Theta  Λ \Lambda  Ξ \Xi  Π \Pi
    Σ \Sigma  Φ \Phi  Ψ \Psi  Ω \Omega
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


class Unit(NamedTuple):
    """What a word measures and how many of the base unit it is."""

    measures: str
    factor: Fraction


def _table(rows: str) -> dict[str, Unit]:
    """Read rows `what they measure: factor name name ...`; names get their plurals."""
    units: dict[str, Unit] = {}
    for row in rows.strip().splitlines():
        measures, _, rest = row.strip().partition(": ")
        factor, *words = rest.split()
        for name in words:
            units[name] = Unit(measures, Fraction(factor))
            if len(name) > 2:
                units[name + "s"] = units[name]
    return units


_MEASURED = _table(
    """
    length: 1 m meter metre
    length: 1000 km kilometer kilometre
    length: 1/10 dm decimeter
    length: 1/100 cm centimeter centimetre
    length: 1/1000 mm millimeter millimetre
    length: 0.0254 in inch inche
    length: 0.3048 ft foot feet
    length: 0.9144 yd yard
    length: 1609.344 mi mile
    time: 1 s sec second
    time: 60 min minute
    time: 3600 h hr hour
    time: 86400 day
    time: 604800 week
    months: 1 month
    months: 12 year yr
    mass: 1 g gram gm
    mass: 1000 kg kilogram kilo
    mass: 1/1000 mg milligram
    mass: 1000000 ton tonne
    mass: 453.59237 lb pound
    mass: 28.349523125 oz ounce
    volume: 1 l L liter litre
    volume: 1/1000 ml mL milliliter millilitre cc
    volume: 3.785411784 gal gallon
    volume: 0.946352946 quart
    dollars: 1 dollar usd USD buck
    dollars: 1/100 cent ¢
    euros: 1 euro eur EUR €
    pounds sterling: 1 £ gbp GBP
    yen: 1 yen ¥
    yuan: 1 yuan 元
    rupees: 1 rupee ₹ rs
    radians: 1 radian rad
    angle: 1 ° deg degree
    angle: 1/60 arcminute
    angle: 1/3600 arcsecond
    area of land: 0.40468564224 acre
    area of land: 1 hectare ha
    force: 1 N newton
    energy: 1 J joule
    energy: 1000 kJ
    power: 1 W watt
    power: 1000 kW kilowatt
    tension: 1 V volt
    resistance: 1 ohm
    frequency: 1 Hz
    """
)
_COUNTED = names("""unit way apple student people person child children digit point coin marble book page card
    ball ticket egg orange cookie candy pencil pen toy box boxe tile edge face vertex vertice
    side square circle triangle integer number value solution term pair game trip bag cup
    bottle piece slice pie cake mark rupee vote member player team boy girl man men woman
    women worker employee customer passenger car truck bus buse bike bicycle train seat row
    column table chair house home room floor step stair lap race dog cat cow horse sheep
    chicken bird fish fishe monkey rabbit animal flower tree plant seed fruit banana peach
    peache pear lemon grape vegetable carrot tomato tomatoe potato potatoe shirt shoe sock
    dress dresse hat glove ring bead sticker stamp photo picture letter word sentence question
    problem answer test quiz quizze exam class classe lesson school friend guest soldier meal
    lunch lunche dinner breakfast sandwich sandwiche pizza donut doughnut muffin pound round
    turn time shot goal run hit strike crayon marker brush brushe sheet block brick stone rock
    jar can pack packet package carton crate basket bucket barrel tank gallon serving bite
    item product gift present prize dollar subset element permutation combination arrangement
    path route line segment diagonal region section part root zero factor divisor multiple
    prime outcome possibility sequence function polynomial matrix matrice dap bit byte star
    moon planet 个 人 只 本""")
_MODIFIERS = names(
    """old square sq cubic cu of per each total the in a an different distinct right"""
)
MULTIPLIERS = {
    "k": 1000,
    "dozen": 12,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
NUMBER_WORDS = _pairs(
    """zero 0  one 1  two 2  three 3  four 4  five 5  six 6  seven 7  eight 8  nine 9  ten 10
    eleven 11  twelve 12  thirteen 13  fourteen 14  fifteen 15  sixteen 16  seventeen 17
    eighteen 18  nineteen 19  twenty 20"""
)


def unit(word: str) -> Unit | None:
    """What a word measures; a noun that is counted measures itself. None if it is no unit."""
    known = _MEASURED.get(word) or _MEASURED.get(word.lower() if len(word) > 1 else word)
    if known is not None:
        return known
    lower = word.lower()
    for noun in (lower, lower.removesuffix("s")):
        if noun in _COUNTED:
            return Unit("unit" if noun == "unit" else f"number of {noun}", Fraction(1))
    return None


def modifies_unit(word: str) -> bool:
    """Whether a word may stand in the name of a unit without being one (`square`, `per`)."""
    return word.lower() in _MODIFIERS
