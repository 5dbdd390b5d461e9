r"""Formulas: a small part of TeX as MathML, which browsers draw without a script.

Letters are variables, digits numbers, everything else operators; `_` and `^` take what follows, `{..}` groups. Commands:
`\frac{a}{b}`, `\hat{x}`, `\sqrt{x}`, `\norm{x}`, `\fn{exp}` (a function's name), `\text{words}`, `\sum`.
"""

import re
from functools import cache

from markupsafe import Markup, escape

_TOKEN = re.compile(r"\\[a-z]+|\d+(?:[.,]\d+)*|\s+|.", re.DOTALL)
_TEXT = re.compile(r"\{([^{}]*)\}")


@cache
def mathml(formula: str) -> Markup:
    """A formula as a `<math>` element; raises ValueError for a command that is not known or a brace that is not closed."""
    return Markup(f"<math>{_Parser(formula).whole()}</math>")


class _Parser:
    def __init__(self, formula: str) -> None:
        self.formula, self.at = formula, 0

    def whole(self) -> str:
        parts = self._until_end()
        if self.at < len(self.formula):
            raise ValueError(f"{self.formula}: a brace too many")
        return f"<mrow>{parts}</mrow>"

    def _next(self) -> str:
        match = _TOKEN.match(self.formula, self.at)
        if match is None:
            raise ValueError(f"{self.formula}: it ends too early")
        self.at = match.end()
        return match[0]

    def _peek(self) -> str:
        match = _TOKEN.match(self.formula, self.at)
        return match[0] if match else ""

    def _until_end(self) -> str:
        parts = []
        while (token := self._peek()) not in ("", "}"):
            if token.isspace():
                self._next()
            else:
                parts.append(self._scripted())
        return "".join(parts)

    def _scripted(self) -> str:
        """One piece with what stands below and above it."""
        base = self._piece()
        scripts = {}
        while (sign := self._peek()) in ("_", "^") and sign:
            self._next()
            scripts[sign] = self._piece()
        below, above = scripts.get("_"), scripts.get("^")
        under = base == "<mo>∑</mo>"
        if below and above:
            tag = "munderover" if under else "msubsup"
            return f"<{tag}>{base}{below}{above}</{tag}>"
        if below:
            tag = "munder" if under else "msub"
            return f"<{tag}>{base}{below}</{tag}>"
        return f"<msup>{base}{above}</msup>" if above else base

    def _piece(self) -> str:
        token = self._next()
        if token.isspace():
            return self._piece()
        if token == "{":
            return f"<mrow>{self._group()}</mrow>"
        if token.startswith("\\"):
            return self._command(token)
        if token[0].isdigit():
            return f"<mn>{token}</mn>"
        return f"<mi>{token}</mi>" if token.isalpha() else f"<mo>{escape(token)}</mo>"

    def _group(self) -> str:
        """What stands up to the closing brace, which is read."""
        parts = self._until_end()
        if self.at >= len(self.formula):
            raise ValueError(f"{self.formula}: a brace is not closed")
        self._next()
        return parts

    def _command(self, name: str) -> str:
        if name == "\\sum":
            return "<mo>∑</mo>"
        if name in ("\\text", "\\fn"):
            match = _TEXT.match(self.formula, self.at)
            if match is None:
                raise ValueError(f"{self.formula}: {name} takes {{words}}")
            self.at = match.end()
            return f"<mtext>{escape(match[1])}</mtext>" if name == "\\text" else f"<mi>{escape(match[1])}</mi>"
        if name == "\\frac":
            return f"<mfrac>{self._piece()}{self._piece()}</mfrac>"
        if name == "\\sqrt":
            return f"<msqrt>{self._piece()}</msqrt>"
        if name == "\\hat":
            return f'<mover accent="true">{self._piece()}<mo stretchy="false">^</mo></mover>'
        if name == "\\norm":
            return f'<mrow><mo stretchy="false">‖</mo>{self._piece()}<mo stretchy="false">‖</mo></mrow>'
        raise ValueError(f"{self.formula}: {name} is no command")
