"""The doctor says what would run, and its exit code says whether an engine would start."""

import pytest
import torch

from multiflora.engine import doctor
from multiflora.engine.doctor import Finding, examine
from multiflora.kernels.choose import KernelsUnavailable
from multiflora.server.cli import main


def subjects(findings: list[Finding]) -> list[str]:
    return [finding.subject for finding in findings]


def test_a_cpu_machine_gets_versions_device_and_choice() -> None:
    findings = list(examine(device="cpu"))
    assert subjects(findings)[:2] == ["python", "multiflora"]
    assert {"torch", "triton", "device", "kernels"} <= set(subjects(findings))
    assert not any(finding.is_problem for finding in findings)
    assert findings[-1].text.startswith("cpu (")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_a_problem() -> None:
    *_, last = examine(device="cuda")
    assert last.is_problem
    assert "no CUDA device" in last.text


def test_kernels_that_cannot_run_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise KernelsUnavailable("kernels 'triton' cannot run: no GPU; or use --kernels torch")

    monkeypatch.setattr(doctor, "choose_ops", refuse)
    *_, last = examine(device="cpu", kernels="triton")
    assert last.is_problem
    assert last.render().startswith("! kernels")


def test_the_command_exits_with_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as fine:
        main(["doctor", "--device", "cpu", "--build"])
    assert fine.value.code == 0
    assert "core" in capsys.readouterr().out
    with pytest.raises(SystemExit) as wrong:
        main(["doctor", "--device", "cpu", "--kernels", "nonsense"])
    assert wrong.value.code == 2
