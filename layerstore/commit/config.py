"""The config of a committed image: that of its base, with one more layer and its history.

Source: OCI image spec, config.md; the instructions of `--change` are those of podman-commit(1).
"""

from __future__ import annotations

import copy
import datetime
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from layerstore.errors import StoreError, show
from layerstore.oci.image import host_architecture

Change = Callable[[dict[str, Any]], None]
"""Applies one instruction to the `config` part of a config."""


@dataclass(slots=True, frozen=True)
class Description:
    """What a commit says of itself. `created_ns` in nanoseconds since 1970; `changes`: see `parse_change`."""

    created_ns: int
    created_by: str
    author: str = ""
    message: str = ""
    changes: list[Change] = field(default_factory=list)


def committed(
    base: dict[str, Any] | None, layers: int, diff_ids: Sequence[str], description: Description
) -> bytes:
    """The config of an image.

    Args:
        base: the config of the image below, None if there is none.
        layers: how many that image has.
        diff_ids: of all layers of the new image.
        description: of the new layer.
    """
    config = copy.deepcopy(base) if base is not None else _empty()
    created = _rfc3339(description.created_ns)
    history = config.get("history")
    history = list(history) if isinstance(history, list) else []
    # Who reads a history counts its entries against the layers.
    told = sum(1 for entry in history if not _is_empty_layer(entry))
    history += [{"created": created, "comment": "not told"} for _ in range(layers - told)]
    entry = {"created": created, "created_by": description.created_by}
    if description.author:
        config["author"] = entry["author"] = description.author
    if description.message:
        entry["comment"] = description.message
    config["created"] = created
    config["history"] = [*history, entry]
    config["rootfs"] = {"type": "layers", "diff_ids": list(diff_ids)}
    inner = config.get("config")
    config["config"] = inner = dict(inner) if isinstance(inner, dict) else {}
    for change in description.changes:
        change(inner)
    return json.dumps(config, separators=(",", ":")).encode()


def _empty() -> dict[str, Any]:
    return {"architecture": host_architecture(), "os": "linux"}


def _is_empty_layer(entry: object) -> bool:
    return isinstance(entry, dict) and entry.get("empty_layer") is True


def _rfc3339(time_ns: int) -> str:
    seconds, fraction = divmod(time_ns, 1_000_000_000)
    time = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{time:%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


# --- --change


def parse_change(text: str) -> Change:
    """An instruction as a Dockerfile has it, `CMD ["sh"]`, or with `=` after its name, `CMD=sh`.

    Raises:
        StoreError: it is not known, or its value cannot be one.
    """
    name = next((word for word in _INSTRUCTIONS if _starts(text, word)), None)
    value = text[len(name) + 1 :].strip() if name is not None else ""
    if name is None or not value:
        raise StoreError(
            f"--change {show(text)!r}: is no instruction with a value; known are"
            f" {', '.join(_INSTRUCTIONS)}"
        )
    try:
        return _INSTRUCTIONS[name](value)
    except ValueError as error:
        raise StoreError(f"--change {show(text)!r}: {error}") from None


def _starts(text: str, word: str) -> bool:
    return text[: len(word)].upper() == word and text[len(word) : len(word) + 1] in (" ", "=", "\t")


def _set(key: str, value: Any) -> Change:
    def change(config: dict[str, Any]) -> None:
        config[key] = value

    return change


def _update(key: str, values: dict[str, Any]) -> Change:
    def change(config: dict[str, Any]) -> None:
        known = config.get(key)
        config[key] = {**(known if isinstance(known, dict) else {}), **values}

    return change


def _list_or_shell(text: str) -> list[str]:
    return _json_list(text) or ["/bin/sh", "-c", text]


def _json_list(text: str) -> list[str]:
    """The words of `["a", "b"]`; none if the text is not that."""
    try:
        words = json.loads(text)
    except ValueError:
        return []
    if isinstance(words, list) and all(isinstance(word, str) for word in words):
        return words
    return []


def _pairs(text: str) -> dict[str, str]:
    """`A=1 B="two words"`, or `A the rest`."""
    words = shlex.split(text)
    if "=" not in words[0] and len(words) > 1:
        return {words[0]: text.split(None, 1)[1]}
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ValueError(f"{word!r} is not NAME=VALUE")
        pairs[key] = value
    return pairs


def _cmd(text: str) -> Change:
    return _set("Cmd", _list_or_shell(text))


def _entrypoint(text: str) -> Change:
    return _set("Entrypoint", _list_or_shell(text))


def _env(text: str) -> Change:
    pairs = _pairs(text)

    def change(config: dict[str, Any]) -> None:
        known = config.get("Env")
        kept = [
            line
            for line in (known if isinstance(known, list) else [])
            if str(line).partition("=")[0] not in pairs
        ]
        config["Env"] = kept + [f"{key}={value}" for key, value in pairs.items()]

    return change


def _expose(text: str) -> Change:
    ports = {}
    for word in text.split():
        port, _, protocol = word.partition("/")
        if not port.replace("-", "", 1).isdigit() or protocol not in ("", "tcp", "udp", "sctp"):
            raise ValueError(f"{word!r} is not PORT[/tcp|udp|sctp]")
        ports[f"{port}/{protocol or 'tcp'}"] = dict[str, Any]()
    return _update("ExposedPorts", ports)


def _label(text: str) -> Change:
    return _update("Labels", _pairs(text))


def _volume(text: str) -> Change:
    return _update("Volumes", {path: {} for path in _json_list(text) or text.split()})


def _workdir(text: str) -> Change:
    return _set("WorkingDir", text)


def _user(text: str) -> Change:
    return _set("User", text)


def _stop_signal(text: str) -> Change:
    return _set("StopSignal", text)


_INSTRUCTIONS: dict[str, Callable[[str], Change]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "LABEL": _label,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
