"""The text of an endpoints file: what is read, what is refused and how the operator learns of it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.domain import Endpoint
from epp.errors import ConfigError
from epp.sources.file import parse_endpoints

FULL = """
endpoints:
  - name: a
    namespace: team
    address: 10.0.0.1
    port: "8000"
    labels: {llm-d.ai/role: decode, epp.internal/kv-events-port: 5557}
  - {address: 10.0.0.2, port: 8001}
  - {name: six, address: "2001:DB8::0001", port: "8002", labels: }
"""


def error_of(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_endpoints(text, "pool.yaml")
    return str(caught.value)


def test_a_full_file() -> None:
    """Names, defaults, unnamed endpoints, IPv6 in its canonical form, numbers where text is meant."""
    file = parse_endpoints(FULL, "pool.yaml")
    assert file.warnings == ()
    a, unnamed, six = file.endpoints
    assert (a.id, a.host_port) == ("team/a", "10.0.0.1:8000")
    assert a.labels == {"llm-d.ai/role": "decode", "epp.internal/kv-events-port": "5557"}
    assert (unnamed.id, unnamed.host_port, unnamed.labels) == ("default/10.0.0.2:8001", "10.0.0.2:8001", {})
    assert (six.id, six.host_port) == ("default/six", "[2001:db8::1]:8002")


def test_json_is_read_too() -> None:
    """With tabs, as editors write it."""
    file = parse_endpoints('{\n\t"endpoints": [\n\t\t{"name": "a", "address": "10.0.0.1", "port": "8000"}\n\t]\n}\n', "pool.json")
    assert [e.id for e in file.endpoints] == ["default/a"]


def test_an_empty_list_is_an_empty_pool() -> None:
    """Scaling to zero is said on purpose."""
    assert parse_endpoints("endpoints: []", "pool.yaml").endpoints == ()


ENTRY = "endpoints:\n- {{name: a, address: 10.0.0.9, port: 1}}\n- {}\n"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        pytest.param(ENTRY.format("{address: localhost, port: 1}"), 3, "address `localhost` is not an IP address", id="host name"),
        pytest.param(ENTRY.format("{address: 10.0.0.256, port: 1}"), 3, "address `10.0.0.256`", id="bad IPv4"),
        pytest.param(ENTRY.format("{address: 'fe80::1%eth0', port: 1}"), 3, "address `fe80::1%eth0`", id="zone"),
        pytest.param(ENTRY.format("{address: '[::1]', port: 1}"), 3, "address `[::1]`", id="brackets"),
        pytest.param(ENTRY.format("{port: 1}"), 3, "no address", id="no address"),
        pytest.param(ENTRY.format("{address: , port: 1}"), 3, "no address", id="null address"),
        pytest.param(ENTRY.format("{address: [10.0.0.1], port: 1}"), 3, "`address` is not a single value", id="list as address"),
        pytest.param(ENTRY.format("{address: 10.0.0.1}"), 3, "no port", id="no port"),
        pytest.param(ENTRY.format("{address: 10.0.0.1, port: 0}"), 3, "port `0` is not a port; give a number from 1 to 65535", id="port 0"),
        pytest.param(ENTRY.format("{address: 10.0.0.1, port: 65536}"), 3, "port `65536`", id="port too large"),
        pytest.param(ENTRY.format("{address: 10.0.0.1, port: http}"), 3, "port `http`", id="port name"),
        pytest.param(ENTRY.format("{address: 10.0.0.1, port: ٣}"), 3, "port `٣`", id="other digits"),
        pytest.param(ENTRY.format("{address: 10.0.0.1, port: -1}"), 3, "port `-1`", id="negative port"),
        pytest.param(ENTRY.format("{address: 10.0.0.1, port: 1, labels: [x]}"), 3, "`labels` is not a mapping", id="labels"),
        pytest.param(ENTRY.format("{address: 10.0.0.1, port: 1, labels: {x: {}}}"), 3, "`labels.x` is not a single value", id="label"),
        pytest.param(ENTRY.format("10.0.0.1:8000"), 3, "an endpoint is not a mapping", id="text as endpoint"),
        pytest.param(ENTRY.format("{<<: *x}"), 3, "undefined alias", id="alias"),
        pytest.param("a: &a {}\nendpoints:\n- {<<: *a, address: 10.0.0.1, port: 1}", 3, "merge keys", id="merge key"),
        pytest.param("endpoints:\n- {address: 10.0.0.1, port: 1", 2, "not valid YAML or JSON", id="cut off"),
        pytest.param("endpoints:\n- address: @x", 2, "not valid YAML or JSON", id="reserved character"),
        pytest.param("endpoints:\n- address: \x00", 2, "character #x0000", id="NUL"),
        pytest.param("endpoints:\n", 1, "`endpoints` is not a list", id="null list"),
        pytest.param("endpoints: {}\n", 1, "`endpoints` is not a list", id="mapping for a list"),
        pytest.param("- address: 10.0.0.1\n", 1, "expected a mapping with the key `endpoints`", id="bare list"),
        pytest.param("endpoints: []\n---\nendpoints: []\n", 2, "another document", id="two documents"),
    ],
)
def test_a_mistake_is_named_with_file_and_line(text: str, line: int, says: str) -> None:
    """Nobody has to guess which of the entries is meant."""
    message = error_of(text)
    assert message.startswith(f"pool.yaml: line {line}: ")
    assert says in message


@pytest.mark.parametrize("text", ["", "# nothing\n", "endpoint: []\n"])
def test_a_file_without_the_list_is_refused(text: str) -> None:
    """It may be half written; an empty pool is `endpoints: []`."""
    assert "write `endpoints: []`" in error_of(text)


def test_deep_nesting_is_refused() -> None:
    """No input reaches the interpreter's limits unreported."""
    assert "nested too deeply" in error_of("[" * 5000)


def test_all_mistakes_are_listed_up_to_a_limit() -> None:
    """One round of mending is enough; a file of nonsense does not fill the log."""
    message = error_of("endpoints:\n" + "- {address: x, port: 1}\n" * 25)
    assert [f"line {line}:" in message for line in range(1, 27)] == [False] + [True] * 20 + [False] * 5
    assert message.endswith("and 5 more")


@pytest.mark.parametrize(
    ("entries", "warning", "ids"),
    [
        (["{name: a, address: 10.0.0.1, port: 1}"] * 2, "line 3: endpoint `default/a` was already defined on line 2", ["default/a"]),
        (["{address: 10.0.0.1, port: 1, weight: 3}"], "line 2: unknown field `weight`", ["default/10.0.0.1:1"]),
        (["{address: 10.0.0.1, port: 2, port: 1}"], "line 2: `port` is given twice", ["default/10.0.0.1:1"]),
        (
            ["{name: a, address: 10.0.0.1, port: 1}", "{name: b, address: 10.0.0.1, port: 1}"],
            "line 3: `default/b` has the same address 10.0.0.1:1 as `default/a`",
            ["default/a", "default/b"],
        ),
    ],
)
def test_what_is_likely_a_slip_is_a_warning_with_its_line(entries: list[str], warning: str, ids: list[str]) -> None:
    """The file still counts."""
    file = parse_endpoints("endpoints:\n" + "".join(f"- {entry}\n" for entry in entries), "pool.yaml")
    (only,) = file.warnings
    assert only.startswith(f"pool.yaml: {warning}")
    assert [e.id for e in file.endpoints] == ids


def test_of_duplicates_the_last_wins() -> None:
    """As the file's reader would expect of an appended correction."""
    file = parse_endpoints("endpoints:\n- {name: a, address: 10.0.0.1, port: 1}\n- {name: a, address: 10.0.0.2, port: 2}\n", "pool.yaml")
    assert [e.host_port for e in file.endpoints] == ["10.0.0.2:2"]


_entry = st.fixed_dictionaries(
    {"address": st.ip_addresses().map(str), "port": st.one_of(st.integers(1, 65535), st.integers(1, 65535).map(str))},
    optional={"labels": st.dictionaries(st.text("abc./-", min_size=1), st.text(st.characters(codec="ascii")))},
)


@given(st.lists(_entry, max_size=6))
def test_a_valid_file_is_read_entry_by_entry(entries: list[dict[str, object]]) -> None:
    """Any JSON another program writes gives its endpoints, in order."""
    named = [{"name": f"n{i}", **entry} for i, entry in enumerate(entries)]
    file = parse_endpoints(json.dumps({"endpoints": named}, indent=1), "pool.json")

    def seen(e: Endpoint) -> tuple[object, ...]:
        return e.id, e.address, e.port, dict(e.labels)

    assert [seen(e) for e in file.endpoints] == [
        (f"default/{e['name']}", e["address"], int(str(e["port"])), e.get("labels", {})) for e in named
    ]


_value = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(
        st.lists(inner), st.dictionaries(st.sampled_from(["name", "address", "port", "labels", "namespace", "x"]), inner)
    ),
)


@given(st.one_of(st.text(), _value.map(lambda value: json.dumps({"endpoints": value})), st.text("{}[]:,-&*!|>'\"%@` \n\t\\?#ab1")))
def test_nothing_but_a_configuration_error(text: str) -> None:
    """Whatever is in the file, it is either read or refused with a sentence that names it."""
    try:
        parse_endpoints(text, "pool.yaml")
    except ConfigError as error:
        assert str(error).startswith("pool.yaml: ")  # noqa: PT017  # both outcomes are right


@given(st.lists(st.booleans(), min_size=1, max_size=19), st.integers(0, 3))
def test_lines_are_right(good: list[bool], comments: int) -> None:
    """Exactly the invalid entries are named, wherever they stand."""
    head = "# comment\n" * comments + "endpoints:\n"
    entries = [f"- {{name: n{i}, address: {'10.0.0.1' if ok else 'nowhere'}, port: {i + 1}}}\n" for i, ok in enumerate(good)]
    if all(good):
        assert len(parse_endpoints(head + "".join(entries), "pool.yaml").endpoints) == len(good)
    else:
        message = error_of(head + "".join(entries))
        named = [f"line {comments + 2 + i}: " in message for i in range(len(good))]
        assert named == [not ok for ok in good]
