"""The committed generated code is what the proto file generates."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_regenerating_the_protos_gives_the_committed_files(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools generates the code")
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *out, "protos/federation.proto"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    generated = sorted(path.name for path in (tmp_path / "protos").iterdir())
    assert generated == ["federation_pb2.py", "federation_pb2.pyi", "federation_pb2_grpc.py"]
    for name in generated:
        assert (tmp_path / "protos" / name).read_bytes() == (ROOT / "protos" / name).read_bytes(), name
