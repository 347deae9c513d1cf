"""The endpoints file: a pool without Kubernetes (spec/protocol.md 3.7, with the corrections of spec/reference-observed.md).

    endpoints:
      - {name: a, namespace: default, address: 10.0.0.1, port: "8000", labels: {llm-d.ai/role: decode}}

YAML or JSON, at most 1 MiB. `parse_endpoints` is pure; `FileDiscovery` reads the file at start and follows it: in-place
rewrites, renames over it, and symlink swaps as a ConfigMap mount does them. A file is believed only after it was the
same on two looks and reads as a whole list; until then the pool keeps the endpoints it has, so that no rewrite, however
slow, empties it. Files are read and parsed in a thread (a list of 2,000 takes a second); the callback runs on the loop.
"""

import asyncio
import ipaddress
import logging
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from epp.domain import Endpoint, EndpointId
from epp.errors import ConfigError

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 1 << 20
DEFAULT_NAMESPACE = "default"
FIELDS = ("name", "namespace", "address", "port", "labels")

# How many problems one error names; the rest is counted.
PROBLEMS_SHOWN = 20

_NULL_TAG = "tag:yaml.org,2002:null"
_MERGE_TAG = "tag:yaml.org,2002:merge"


@dataclass(frozen=True, slots=True)
class EndpointsFile:
    """What a valid file says."""

    endpoints: tuple[Endpoint, ...]
    warnings: tuple[str, ...] = ()
    """Sentences with file and line about what was read but is likely not what was meant."""


def parse_endpoints(text: str, source: str) -> EndpointsFile:
    """The endpoints of one file, in its order; of equal names the last wins.

    `source` names the file in messages. Raises ConfigError (and nothing else) that names every invalid line, its value
    and the remedy. `endpoints: []` is a valid, empty pool; a file without the list is not: it may be half written.
    """
    return _Parser(source).parse(text)


@dataclass(slots=True)
class _Parser:
    """Walks the YAML nodes of one file: unlike loaded values they know their lines, and `08000` is still text."""

    source: str
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    # id -> endpoint, and where each id and each ip:port was said last
    endpoints: dict[EndpointId, Endpoint] = field(default_factory=dict)
    lines: dict[EndpointId, int] = field(default_factory=dict)

    def parse(self, text: str) -> EndpointsFile:
        root = self._compose(text)
        listed = self._list_of_endpoints(root)
        for node in listed:
            self._entry(node)
        if self.problems:
            more = len(self.problems) - PROBLEMS_SHOWN
            shown = "; ".join(self.problems[:PROBLEMS_SHOWN])
            raise ConfigError(f"{self.source}: {shown}" + (f"; and {more} more" if more > 0 else ""))
        self._warn_shared_addresses()
        return EndpointsFile(tuple(self.endpoints.values()), tuple(self.warnings))

    def _compose(self, text: str) -> Node | None:
        try:
            node: Node | None = YAML(typ="safe", pure=True).compose(text)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f"line {mark.line + 1}: " if mark else ""
            raise ConfigError(f"{self.source}: {line}not valid YAML or JSON: {error.problem or error.context}") from None
        except ReaderError as error:
            line = f"line {text.count(chr(10), 0, error.position) + 1}: "
            raise ConfigError(f"{self.source}: {line}character #x{error.character:04x} is not allowed in YAML or JSON") from None
        except RecursionError:
            raise ConfigError(f"{self.source}: nested too deeply; expected a list of endpoints") from None
        except (YAMLError, ValueError) as error:  # ValueError: a malformed %YAML directive, an impossible \U escape
            raise ConfigError(f"{self.source}: not valid YAML or JSON: {str(error).splitlines()[0]}") from None
        return node

    def _list_of_endpoints(self, root: Node | None) -> Sequence[Node]:
        if root is None:
            raise ConfigError(f"{self.source}: the file is empty; write `endpoints: []` for a pool without endpoints")
        if not isinstance(root, MappingNode):
            raise ConfigError(f"{self.source}: line {_line(root)}: expected a mapping with the key `endpoints`")
        listed: Node | None = None
        listed_line = 0
        for key, line, value in self._pairs(root):
            if key == "endpoints":
                listed, listed_line = value, line
            else:
                self._warn(line, f"unknown field `{key}` is ignored")
        if listed is None:
            raise ConfigError(f"{self.source}: the list `endpoints` is missing; write `endpoints: []` for a pool without endpoints")
        if not isinstance(listed, SequenceNode):
            raise ConfigError(f"{self.source}: line {listed_line}: `endpoints` is not a list; write `endpoints: []` for none")
        items: Sequence[Node] = listed.value
        return items

    def _entry(self, node: Node) -> None:
        """Reads one endpoint; what is wrong with it is collected, not raised."""
        if not isinstance(node, MappingNode):
            self._problem(_line(node), "an endpoint is not a mapping; write `- {name: ..., address: ..., port: ...}`")
            return
        found = len(self.problems)
        values: dict[str, Node] = {}
        for key, line, value in self._pairs(node):
            if key not in FIELDS:
                self._warn(line, f"unknown field `{key}` is ignored; an endpoint has {', '.join(FIELDS)}")
            elif not _is_null(value):
                values[key] = value
        line = _line(node)
        address, port = self._address(values.get("address"), line), self._port(values.get("port"), line)
        namespace = self._text(values.get("namespace"), "namespace") or DEFAULT_NAMESPACE
        name = self._text(values.get("name"), "name")
        labels = self._labels(values.get("labels"))
        if len(self.problems) > found:
            return
        unnamed = Endpoint(EndpointId(""), address, port, labels)
        self._add(Endpoint(EndpointId(f"{namespace}/{name or unnamed.host_port}"), address, port, labels), line)

    def _add(self, endpoint: Endpoint, line: int) -> None:
        if endpoint.id in self.lines:
            self._warn(line, f"endpoint `{endpoint.id}` was already defined on line {self.lines[endpoint.id]}; this one counts")
        self.endpoints[endpoint.id] = endpoint
        self.lines[endpoint.id] = line

    def _warn_shared_addresses(self) -> None:
        first: dict[str, EndpointId] = {}
        for endpoint in self.endpoints.values():
            other = first.setdefault(endpoint.host_port, endpoint.id)
            if other != endpoint.id:
                self._warn(self.lines[endpoint.id], f"`{endpoint.id}` has the same address {endpoint.host_port} as `{other}`")

    def _address(self, node: Node | None, line: int) -> str:
        if node is None:
            self._problem(line, "an endpoint has no address; give an IPv4 or IPv6 address")
            return ""
        text = self._text(node, "address")
        try:
            # A zone ("fe80::1%eth0") means something on one machine only; Envoy would not accept it.
            if text and "%" not in text:
                return str(ipaddress.ip_address(text))
        except ValueError:
            pass
        if text is not None:
            self._problem(
                _line(node), f"address `{_shown(text)}` is not an IP address; give an IPv4 or IPv6 address (names are not resolved)"
            )
        return ""

    def _port(self, node: Node | None, line: int) -> int:
        if node is None:
            self._problem(line, 'an endpoint has no port; give one, such as port: "8000"')
            return 0
        text = self._text(node, "port")
        if text is not None:
            if len(text) <= 5 and text.isascii() and text.isdigit() and 1 <= int(text) <= 65535:
                return int(text)
            self._problem(_line(node), f"port `{_shown(text)}` is not a port; give a number from 1 to 65535")
        return 0

    def _labels(self, node: Node | None) -> dict[str, str]:
        if node is None:
            return {}
        if not isinstance(node, MappingNode):
            self._problem(_line(node), "`labels` is not a mapping; write `labels: {key: value}`")
            return {}
        return {key: "" if _is_null(value) else self._text(value, f"labels.{key}") or "" for key, _, value in self._pairs(node)}

    def _text(self, node: Node | None, what: str) -> str | None:
        """The scalar as it is written (a number or a boolean is text here, as in llm-d); None, and a problem, for anything else."""
        if node is None:
            return None
        if not isinstance(node, ScalarNode):
            self._problem(_line(node), f"`{what}` is not a single value")
            return None
        text: str = node.value
        return text

    def _pairs(self, node: MappingNode) -> Iterator[tuple[str, int, Node]]:
        """(key, line, value) of a mapping; a key said twice counts once, the last time."""
        pairs: dict[str, tuple[int, Node]] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                self._problem(_line(key), "a key is not a single word")
            elif key.tag == _MERGE_TAG:
                self._problem(_line(key), "merge keys (<<) are not supported; write the fields out")
            else:
                if key.value in pairs:
                    self._warn(_line(key), f"`{key.value}` is given twice; this one counts")
                pairs[key.value] = (_line(key), value)
        return ((key, line, value) for key, (line, value) in pairs.items())

    def _problem(self, line: int, what: str) -> None:
        self.problems.append(f"line {line}: {what}")

    def _warn(self, line: int, what: str) -> None:
        self.warnings.append(f"{self.source}: line {line}: {what}")


def _line(node: Node) -> int:
    """Line of a node, counted from one."""
    line: int = node.start_mark.line
    return line + 1


def _is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.tag == _NULL_TAG


def _shown(text: str) -> str:
    return text if len(text) <= 80 else text[:80] + "..."


Identity = tuple[int, int, int, int]
"""Device, inode, size and modification time in nanoseconds of the file behind all links."""


class FileDiscovery:
    """Reads the endpoints file and, where asked to, follows it.

    `on_endpoints` gets each valid list that differs from the one before: in `load` at once, later on the event loop.
    """

    def __init__(
        self, path: Path, *, watch: bool, on_endpoints: Callable[[Sequence[Endpoint]], None], poll_interval_s: float = 0.5
    ) -> None:
        self._path = path
        self._watch = watch
        self._on_endpoints = on_endpoints
        self._poll_interval_s = poll_interval_s
        self._endpoints: tuple[Endpoint, ...] | None = None
        self._settled: Identity | None = None
        """The file whose content was taken or refused."""
        self._complaint: str | None = None

    def load(self) -> None:
        """Read the file, once, before serving. Blocks. Raises ConfigError where it is missing or invalid."""
        try:
            self._settled, data = _read(self._path)
        except OSError as error:
            raise ConfigError(f"{self._path}: {_reason(error)}; give the path of a readable endpoints file") from None
        self._take(self._parse(data))

    async def run(self) -> None:
        """Follow the file until cancelled; returns at once where that was not asked for."""
        seen = self._settled
        while self._watch:
            await asyncio.sleep(self._poll_interval_s)
            before = seen
            try:
                seen = _identity(await asyncio.to_thread(self._path.stat))
                if seen == before and seen != self._settled:
                    await self._reload(seen)
            except OSError as error:
                seen = self._settled = None
                self._complain(f"{self._path}: {_reason(error)}")

    async def _reload(self, seen: Identity) -> None:
        identity, data = await asyncio.to_thread(_read, self._path)
        if identity != seen:  # it changed again: the next two looks decide
            return
        self._settled = seen
        try:
            self._take(await asyncio.to_thread(self._parse, data))
        except ConfigError as error:
            self._complain(str(error))

    def _parse(self, data: bytes) -> EndpointsFile:
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"{self._path}: larger than {MAX_FILE_BYTES >> 20} MiB; split the pool or drop labels")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise ConfigError(f"{self._path}: line {line}: not UTF-8; save the file as UTF-8") from None
        return parse_endpoints(text, str(self._path))

    def _take(self, file: EndpointsFile) -> None:
        self._complaint = None
        for warning in file.warnings:
            logger.warning("%s", warning)
        if file.endpoints != self._endpoints:
            self._endpoints = file.endpoints
            logger.info("%s: %d endpoints", self._path, len(file.endpoints))
            self._on_endpoints(file.endpoints)

    def _complain(self, what: str) -> None:
        """One log line for each new problem."""
        if what != self._complaint:
            self._complaint = what
            logger.error("%s. The pool keeps its %d endpoints.", what, len(self._endpoints or ()))


def _read(path: Path) -> tuple[Identity, bytes]:
    """The content and which file that was; reads one byte more than is allowed. Raises OSError."""
    # Opening a pipe would wait for its writer.
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a regular file")
    with path.open("rb") as file:
        # Before reading: a change while we read makes another file of it, which the next look takes.
        identity = _identity(os.fstat(file.fileno()))
        return identity, file.read(MAX_FILE_BYTES + 1)


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
