"""Remove passwords, keys, tokens and signatures from texts that are shown or stored.

Errors are redacted when they are made, rows when they are written, and messages, logs and pages when they are shown.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from batchnst import chains

HIDDEN = "***"
"""The text in place of a secret."""

SHORTEST = 8
"""Shortest value of an environment variable that counts as a secret, in characters."""

_SECRET = (
    r"(?:signature|token|password|passwd|passphrase|secret|credentials?|google[_.-]?access[_.-]?id"
    r"|(?:api|access|account|secret|shared|private|subscription|auth|session|signing)[_.-]?key(?:[_.-]?id)?)"
)
"""The end of a name of a secret."""

_SHORT_SECRET = r"(?:sig|pwd|sas|jwt)"
"""Short names of secrets, which stand alone or after punctuation."""

_NAME = re.compile(rf".*{_SECRET}|(?:.*[_.-])?{_SHORT_SECRET}", re.I | re.S)

_PARAMETERS = {"key", "sign", "auth", "pass", "pw", "hmac", "authorization"}
"""Names that are secret as parameters of a URL only: elsewhere they are words."""

_SIGNERS = ("x-amz-", "x-goog-", "x-oss-", "x-cos-", "q-sign-")
"""Beginnings of the parameters that object stores sign with."""

_WITH_SIGNATURE = {
    *("expires", "expiry", "exp", "policy", "key-pair-id"),
    *("se", "sp", "sv", "sr", "st", "spr", "sip", "ss", "srt", "skoid", "sktid", "skt", "ske", "sks", "skv"),
}
"""Parameters of a signature, beside itself: its dates and rights."""

# Each separator may be percent-encoded, also repeatedly. Repetitions are limited, so that no text takes long.
_AT, _COLON = r"(?:@|%(?:25){0,3}40)", r"(?::|%(?:25){0,3}3A)"
_SLASHES = rf"{_COLON}(?:/|%(?:25){{0,3}}2F){{2}}"
_SEPARATOR = r"(?:[?&;#]|%(?:25){0,3}(?:3F|26|3B|23))"

_PARAMETER = re.compile(
    rf"(?P<mark>{_SEPARATOR})(?=(?P<name>(?:(?!{_SEPARATOR})[\w.~%-]){{1,100}}?)(?P<equals>=|%(?:25){{0,3}}3D))", re.I
)
"""The beginning of a parameter of a URL."""

_VALUE = re.compile(r"[^\s&#;\"'<>]*")
_ENCODED_VALUE = re.compile(r"(?:(?!%(?:25){0,3}(?:26|23|3B))[^\s&#;\"'<>])*", re.I)
_URL = re.compile(rf"\b[a-z][a-z0-9+.-]{{0,30}}{_SLASHES}[^\s\"'<>]+", re.I)
_USER = re.compile(
    rf"\b(?P<scheme>[a-z][a-z0-9+.-]{{0,30}})(?P<slashes>{_SLASHES})"
    rf"(?:[^\s/?#@:\[]{{0,200}}?{_COLON}(?!\d{{1,5}}(?:[/?#\s:;,.)\]\"'<>]|$))(?:(?!{_SLASHES})\S){{0,1000}}?"
    rf"|(?P<only>[^\s/?#@:\[]{{1,1000}}?))"
    rf"{_AT}(?:[^\s/?#@]{{0,200}}{_AT})*",
    re.I,
)
"""The part of a URL in front of its host, with a user's name and password, or with `only` a name."""

_BY_NAME = re.compile(
    rf"(?<![\w.-])(?P<name>[\w.-]{{0,60}}?{_SECRET}|(?:[\w.-]{{0,60}}[_.-])?{_SHORT_SECRET})"
    r"(?P<equals>\s?=\s?|[\"']\s*[:,=]\s*|:\s*)(?P<quote>b?[\"'])?"
    r"(?P<value>(?(quote)[^\"']+|[^\s;&,\"'<>]+))",
    re.I,
)
"""A secret after its name: `name=value`, `'name': 'value'` or `name: value`."""

_WORDS = {"token", "signature", "credential", "credentials", "sas", "sig"}
"""Names that are usual words before a colon."""

_ELEMENT = re.compile(rf"(?P<tag><[\w:]{{0,60}}{_SECRET}(?:Provided)?>)[^<>]+(?=</)", re.I)
"""A secret in XML, as S3's errors are."""

_PATTERNS = (
    (
        re.compile(r"\b((?:proxy-)?authorization|(?:set-)?cookie)([\"']?\s*[:=,]\s*(?:b?[\"'])?)[^\"'\r\n]+", re.I),
        rf"\1\2{HIDDEN}",
    ),
    (re.compile(r"\b(Bearer|SharedKey(?:Lite)?)\s+[^\s\"'<>,;]{6,}", re.I), rf"\1 {HIDDEN}"),
    (re.compile(r"\b(Basic)\s+(?=[a-z+/]*[A-Z0-9=])[A-Za-z0-9+/]{6,}={0,2}"), rf"\1 {HIDDEN}"),
    # Keys by their looks: those of Amazon, with the secret that follows, Google, GitHub, Hugging Face; JSON Web Tokens.
    (re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}\b(?:\W{1,3}[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+]))?"), HIDDEN),
    (
        re.compile(r"\b(?:AIza[\w-]{30,}|ya29\.[\w.-]{20,}|gh[opsur]_\w{20,}|github_pat_\w{20,}|hf_[A-Za-z0-9]{20,})"),
        HIDDEN,
    ),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), HIDDEN),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", re.S), HIDDEN),
)

_SECRET_VARIABLE = re.compile(
    r"KEY(?:S|ID)?(?:_|$)|SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|CONNECTION_STRING"
    r"|(?:^|_)(?:SAS|PASS)(?:_|$)|_PWD$",
    re.I,
)
_PATH_VARIABLE = re.compile(r"_(?:FILE|PATH|DIR)$|^GOOGLE_APPLICATION_CREDENTIALS$", re.I)

_ADDRESS_VARIABLE = re.compile(r"PROXY|URL|URI|DSN|ENDPOINT", re.I)
"""Names of environment variables whose values may have a password in them."""

_NO_PASSWORD = {"github", "git", "hf", "libarchive", "memory", "file", *chains.SCHEMES}
"""Schemes whose addresses have a repository, a branch or a path where others have a user's name and password."""


def redact(text: str) -> str:
    """`text` without secrets.

    They are: values of environment variables with a name like a secret's; user names and passwords in URLs; signatures
    and tokens among their parameters; authorization headers; keys by their names or looks.
    """
    if pattern := _environment(_secrets()):
        text = pattern.sub(HIDDEN, text)
    text = _URL.sub(lambda url: _shown(url[0]), text)
    text = _USER.sub(lambda user: _user(user, HIDDEN), text)
    for pattern, shown in _PATTERNS:
        text = pattern.sub(shown, text)
    text = _replace_parameters(text)
    text = _BY_NAME.sub(_hide_named, text)
    return _ELEMENT.sub(rf"\g<tag>{HIDDEN}", text)


def public(address: str) -> str:
    """`address` without the parameters that sign it, and without a user's name and password; paths stay as they are.

    It identifies a file: a signature may change every day.
    """
    if chain := chains.Chain.of(address):
        return str(replace(chain, outer=public(chain.outer)))
    if "://" not in address or address.startswith("file://") or not re.search(r"[?@#]|%40", address):
        return address
    return "::".join(_unsigned(_USER.sub(lambda user: _user(user, ""), part)) for part in address.split("::"))


def stored(address: str) -> str:
    """`address` as the ledger has it: in its public form, and without secrets of the environment."""
    if "://" not in address:
        return address
    pattern = _environment(_secrets())
    return pattern.sub(HIDDEN, public(address)) if pattern else public(address)


def hide(secret: str) -> None:
    """Treat `secret` as one in all texts of this process from now on."""
    global _hidden
    _hidden |= {secret}


_hidden = frozenset[str]()


def has_credentials(address: str) -> bool:
    """True if `address` is a URI with a password or key before its host."""
    return any(_user(user, "") != user[0] for user in _USER.finditer(address))


def redact_json(text: str) -> str:
    """The JSON `text` with all texts in it redacted; it stays as it is if there is nothing to redact."""
    value = json.loads(text)
    clean = _redact_all(value)
    return text if clean == value else json.dumps(clean)


class _LogFilter(logging.Filter):
    """Redacts every record of a log, with its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        record.exc_text = redact(record.exc_text) if record.exc_text else None
        return True


_LOG_FILTER = _LogFilter()


def get_logger(name: str) -> logging.Logger:
    """The logger `name`, which redacts what is logged."""
    logger = logging.getLogger(name)
    logger.addFilter(_LOG_FILTER)
    return logger


def redact_logs() -> None:
    """Redact what any library logs in this process; call it once the handlers are there."""
    for handler in (*logging.getLogger().handlers, logging.lastResort):
        if handler:
            handler.addFilter(_LOG_FILTER)


def _redact_all(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list):
        return [_redact_all(item) for item in value]
    return {key: _redact_all(item) for key, item in value.items()} if isinstance(value, dict) else value


# URLs --------------------------------------------------------------------------------------------------------------


def _shown(url: str) -> str:
    """A URL in a text, in its public form; punctuation that follows it stays."""
    end = len(url.rstrip(":;,.)]}"))
    return _unsigned(url[:end]) + url[end:]


def _unsigned(url: str) -> str:
    """`url` without its secret parameters, and without those that belong to a signature."""
    if next(_secret_parameters(url), None) is None:
        return url
    url = _replace_parameters(url, signed=True, shown="")
    return re.sub(r"[?&;#]+(?=#|$)", "", re.sub(r"([?&;])[&;]+", r"\1", url))


def _replace_parameters(text: str, *, signed: bool = False, shown: str = HIDDEN) -> str:
    """`text` with `shown` as the value of each secret parameter; without the parameter if `shown` is empty."""
    parts, position = list[str](), 0
    for start, value in _secret_parameters(text, signed=signed):
        parts += [text[position : value.start() if shown else start.end()], shown]
        position = value.end()
    return "".join(parts) + text[position:]


def _secret_parameters(text: str, *, signed: bool = False) -> Iterator[tuple[re.Match[str], re.Match[str]]]:
    """The beginning and value of each secret parameter in `text`; if it is `signed`, those of _WITH_SIGNATURE too."""
    position = 0
    for start in _PARAMETER.finditer(text):
        name = unquote(unquote(start["name"])).lower()
        if start.start() < position or not (_is_secret_parameter(name) or (signed and name in _WITH_SIGNATURE)):
            continue
        value = (_VALUE if start["equals"] == "=" else _ENCODED_VALUE).match(text, start.end("equals"))
        if value and not (name == "key" and re.search(r"[/.]", unquote(value[0]))):  # a file's name is no key
            yield start, value
            position = value.end()


def _is_secret_parameter(name: str) -> bool:
    return name in _PARAMETERS or name.startswith(_SIGNERS) or bool(_NAME.fullmatch(name))


def _user(found: re.Match[str], shown: str) -> str:
    """The beginning of a URL without its password; `shown` stands for the user."""
    scheme = found["scheme"].lower()
    name_only = found["only"] is not None
    if scheme in _NO_PASSWORD or (name_only and scheme not in ("http", "https", "s3", "s3a", "gs", "gcs")):
        return found[0]
    if name_only and scheme in ("gs", "gcs", "s3") and found["only"] == "anonymous":
        return found[0]
    return f"{found['scheme']}{found['slashes']}{shown and f'{shown}@'}"


# Names and environment ---------------------------------------------------------------------------------------------


def _hide_named(found: re.Match[str]) -> str:
    if found["equals"].startswith(":") and found["name"].lower() in _WORDS:
        return found[0]
    return f"{found['name']}{found['equals']}{found['quote'] or ''}{HIDDEN}"


def _secrets() -> frozenset[str]:
    """The secrets in the environment, and those that were given to `hide`."""
    return _hidden.union(secret for name, value in os.environ.items() for secret in _secrets_in(name, value))


@lru_cache(maxsize=1024)
def _secrets_in(name: str, value: str) -> tuple[str, ...]:
    """The secrets in an environment variable: its value, and parts of it; without percent-encoding."""
    is_secret = _SECRET_VARIABLE.search(name) and not _PATH_VARIABLE.search(name) and not os.path.exists(value)
    if not is_secret and not _ADDRESS_VARIABLE.search(name):
        return ()
    parts = [part["value"] for part in _BY_NAME.finditer(value)]
    parts += [part[0] for _, part in _secret_parameters(value)]
    parts += re.findall(r"://[^\s/?#@:]*:([^\s@]+)@", value)
    parts += [value.strip().lstrip("?")] if is_secret else []
    return tuple(unquote(part) for part in parts if len(part) >= SHORTEST)


@lru_cache(maxsize=8)
def _environment(secrets: frozenset[str]) -> re.Pattern[str] | None:
    """A pattern for any of `secrets`, also percent-encoded; None if there are none."""
    longest_first = sorted(secrets, key=lambda secret: (-len(secret), secret))
    return re.compile("|".join("".join(map(_any_encoding, secret)) for secret in longest_first)) if secrets else None


def _any_encoding(character: str) -> str:
    """A pattern for `character`, as it is or percent-encoded, also repeatedly."""
    if character.isascii() and character.isalnum():
        return character
    encoded = "".join(f"%(?:25){{0,3}}(?i:{byte:02x})" for byte in character.encode("utf-8", "surrogateescape"))
    return rf"(?:{re.escape(character)}|{encoded}{'|[+]' if character == ' ' else ''})"
