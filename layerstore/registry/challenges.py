"""What a WWW-Authenticate header asks for. Pure functions.

Source: RFC 9110, section 11; Docker's "Token Authentication Specification" for the parameters of
`Bearer`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"({_TOKEN})(?:[ \t]+|(?=,)|$)")
_PARAMETER = re.compile(rf'({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))', re.DOTALL)
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|$))")
_SEPARATOR = re.compile(r"[ \t]*(?:,[ \t]*)*")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate. `scheme` and the names of the parameters in small letters."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)


def parse_challenges(values: Iterable[str]) -> list[Challenge]:
    """The challenges of all WWW-Authenticate headers of an answer; what follows something that is
    no challenge is left out."""
    return [challenge for value in values for challenge in _parse(value)]


def _parse(value: str) -> list[Challenge]:
    found: list[Challenge] = []
    at = _skip(value, 0)
    while at < len(value):
        parameter = _PARAMETER.match(value, at)
        if parameter and found:
            name, quoted, plain = parameter.groups()
            text = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)
            found[-1].parameters.setdefault(name.lower(), text)
            at = _skip(value, parameter.end())
            continue
        scheme = _SCHEME.match(value, at)
        if scheme is None:
            break
        found.append(Challenge(scheme[1].lower()))
        at = scheme.end()
        if not _PARAMETER.match(value, at) and (token68 := _TOKEN68.match(value, at)):
            # `Negotiate abc==`, but `Basic, Bearer ...` has another scheme here.
            rest = value[at - 1 : at]
            at = token68.end() if rest in (" ", "\t") else at
        at = _skip(value, at)
    return found


def _skip(value: str, at: int) -> int:
    match = _SEPARATOR.match(value, at)
    assert match is not None
    return match.end()
