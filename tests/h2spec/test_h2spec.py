"""h2spec, an independent HTTP/2 conformance suite (RFC 9113, RFC 7541), against the fast transport.

`make h2spec` builds it from the Go module proxy and runs this. What fails is listed in expected.toml with its reason, some
cases only when a frame of ours overtakes one of h2spec's: an unlisted failure fails the test.
"""

import asyncio
import tomllib
from pathlib import Path
from xml.etree import ElementTree as ET

from epp.testing.picker import PickerProcess

ROOT = Path(__file__).parents[2]
H2SPEC = ROOT / ".tools" / "h2spec"
CONFIG = "kind: EndpointPickerConfig\napiVersion: llm-d.ai/v1alpha1\nplugins: [{type: file-discovery, parameters: {path: %s}}]\ndataLayer: {discovery: {pluginRef: file-discovery}}\n"


async def failures(port: int, report: Path) -> dict[str, str]:
    """Section and description of each failed case, with what h2spec saw."""
    process = await asyncio.create_subprocess_exec(
        *(str(H2SPEC), "-h", "127.0.0.1", "-p", str(port), "-o", "2", "-P", "/grpc.health.v1.Health/Check", "-j", str(report)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert report.exists(), output.decode(errors="replace")
    suites = ET.parse(report).getroot()  # written by the tool we started
    cases = [case for suite in suites.iter("testsuite") for case in suite.iter("testcase")]
    assert len(cases) > 100, "h2spec ran hardly any case"
    return {
        f"{case.get('package')}: {case.get('classname')}": "".join(failure.itertext()).strip()
        for case in cases
        for failure in (*case.iter("failure"), *case.iter("error"))
    }


async def test_the_fast_transport_speaks_http2(tmp_path: Path) -> None:
    """Every case of h2spec passes but those listed with a reason, and a second time too; nothing of it shakes the picker."""
    endpoints = tmp_path / "endpoints.yaml"
    endpoints.write_text("endpoints: []\n")
    expected: dict[str, str] = tomllib.loads((Path(__file__).parent / "expected.toml").read_text())
    async with PickerProcess([f"--config-text={CONFIG % endpoints}", "--transport=fast"]) as picker:
        failed = await failures(picker.grpc_port, tmp_path / "report.xml")
        again = await failures(picker.grpc_port, tmp_path / "again.xml")
        log = picker.log()
    assert {case: seen for case, seen in (failed | again).items() if case not in expected} == {}
    assert "Traceback" not in log
