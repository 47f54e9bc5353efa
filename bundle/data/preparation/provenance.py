"""Where every prepared file comes from, without saying who the patient is: sources are named by digests alone."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle import __version__
from bundle.data.preparation.sources import Scan, Study

VERSION = "1"  # of what is made of the sources; a greater one prepares every patient again
_CHUNK = 1 << 20


def generated_by() -> list[dict[str, str]]:
    """BIDS's GeneratedBy."""
    return [{"Name": "scripts.prepare", "Version": VERSION, "Description": f"ms-net2-forecast {__version__}"}]


def scan_digest(scan: Scan) -> str:
    """SHA-256 of a scan's files, in order."""
    digest = hashlib.sha256(b"" if scan.segment is None else f"segment {scan.segment}".encode())
    for path in scan.files:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def digests(visits: Mapping[str, Study]) -> dict[str, dict[str, str]]:
    """Digest of each scan, by visit and kind."""
    return {
        visit: {kind: scan_digest(scan) for kind, scan in sorted(study.scans.items())}
        for visit, study in visits.items()
    }


def key_of(sources: Mapping[str, Mapping[str, str]], months: Mapping[str, float | None]) -> str:
    """What a prepared patient depends on."""
    content = json.dumps([VERSION, sources, months], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def sidecar(description: str, sources: Sequence[str], **more: Any) -> bytes:
    """The JSON file beside a derived file."""
    content = {
        "Description": description,
        "GeneratedBy": generated_by(),
        "Sources": [f"sha256:{digest}" for digest in sources],
        **more,
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def read_record(path: Path) -> dict[str, Any]:
    """A patient's record, as `bundle.data.preparation.cohort` wrote it; {} if there is none that can be read."""
    try:
        content = json.loads(path.read_text())
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}
