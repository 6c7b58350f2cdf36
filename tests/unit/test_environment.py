"""The environment of a run's processes, whatever the shell holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.environment import DETERMINISM, INHERITED, OTHERS, THREADS, process_environment
from steelyard.process import LAUNCHER

HOSTILE = {
    "OMP_NUM_THREADS": "7",
    "OMP_SCHEDULE": "dynamic",
    "GOMP_CPU_AFFINITY": "0",
    "KMP_AFFINITY": "compact",
    "MKL_NUM_THREADS": "7",
    "MKL_DYNAMIC": "TRUE",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "OPENBLAS_CORETYPE": "Prescott",
    "OPENBLAS_NUM_THREADS": "7",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "ATEN_CPU_CAPABILITY": "default",
    "TORCH_LOGS": "all",
    "PYTHONHASHSEED": "5",
    "PYTHONPATH": "/elsewhere",
    "PYTHONSTARTUP": "/elsewhere.py",
    "LD_PRELOAD": "",
    "http_proxy": "http://127.0.0.1:1",
    "https_proxy": "http://127.0.0.1:1",
    "GRPC_VERBOSITY": "DEBUG",
    "GRPC_TRACE": "all",
}


@pytest.fixture
def hostile_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LANG", "C.UTF-8")


@pytest.mark.usefixtures("hostile_shell")
def test_nothing_of_a_shell_is_inherited_but_what_the_list_names() -> None:
    environment = process_environment()
    assert set(environment) <= {*INHERITED, *THREADS, *DETERMINISM, *OTHERS, LAUNCHER}
    assert {name: environment[name] for name in set(environment) - set(INHERITED)} == {
        **THREADS,
        **DETERMINISM,
        **OTHERS,
        LAUNCHER: str(os.getpid()),
    }
    assert environment["LANG"] == "C.UTF-8"
    for name, value in HOSTILE.items():
        assert environment.get(name) != value


def test_no_inherited_variable_is_one_that_could_change_a_bit() -> None:
    for name in INHERITED:
        assert not name.startswith(
            ("OMP", "MKL", "OPENBLAS", "ONEDNN", "DNNL", "KMP", "GOMP", "ATEN", "TORCH", "PYTHON")
        )
    assert not set(INHERITED) & {*THREADS, *DETERMINISM, *OTHERS}


def test_every_library_is_told_to_use_one_thread() -> None:
    for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR"):
        assert process_environment()[f"{library}_NUM_THREADS"] == "1"


@pytest.mark.usefixtures("hostile_shell")
def test_a_process_that_is_started_with_it_computes_with_one_thread() -> None:
    """Torch reads the variables when it is loaded, so a real process is what counts."""
    code = "import os, torch; print(torch.get_num_threads(), os.environ.get('OPENBLAS_CORETYPE'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=process_environment(),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["1", "None"]


def test_what_a_shell_lacks_is_not_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LANG", raising=False)
    assert "LANG" not in process_environment()


@pytest.mark.usefixtures("hostile_shell")
@pytest.mark.parametrize("launched", [True, False])
def test_a_process_knows_whether_its_environment_is_a_runs_own(*, launched: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from steelyard.process import is_launched; print(is_launched())"],
        env=process_environment() if launched else dict(os.environ),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == f"{launched}\n"


@pytest.mark.slow  # scipy and torch are loaded, by parent and child
@pytest.mark.usefixtures("hostile_shell")
def test_the_child_of_robust_scores_tells_a_mistake_once(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.robust_scores", str(tmp_path), "none"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"steelyard: two finished runs of none at least expected in {tmp_path}, found 0\n"
