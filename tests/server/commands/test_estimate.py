"""`multiflora estimate`, as typed in a shell."""

import pytest

from multiflora.server import cli


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["estimate", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_serving_training_and_the_rules_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--rank", "8") == 0
    serving, training, rules = capsys.readouterr().out.split("\n\n")
    assert "KV cache" in serving
    assert training.startswith("training at rank 8, 4096 tokens")
    for part in ("base", "adapter", "gradients", "optimizer", "activations", "total"):
        assert any(line.startswith(part) for line in training.splitlines())
    assert "by rule of thumb" in rules


def test_parts_of_the_training_plan_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    run("--device", "cuda", "--memory", "16GiB")
    shown = capsys.readouterr().out
    training = shown.split("\n\n")[1].splitlines()[1:]
    sizes = {line.split()[0]: float(line.split()[1]) for line in training}
    parts = ("adapter", "gradients", "optimizer", "activations")
    assert sizes["beside"] == pytest.approx(sum(sizes[part] for part in parts), abs=0.3)
    assert sizes["total"] == pytest.approx(sizes["base"] + sizes["beside"], abs=0.2)


def test_a_number_of_parameters_is_answered_by_the_rules(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("13B") == 0
    shown = capsys.readouterr().out
    for size in ("26.0 GB", "31.2 GB", "78.0 GB"):
        assert size in shown


@pytest.mark.parametrize("arguments", [("--device", "cuda"), ("--memory", "8GiB")])
def test_an_accelerator_and_its_memory_go_together(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    assert "go together" in capsys.readouterr().err


def test_a_base_that_does_not_fit_is_refused_with_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("--device", "cuda", "--memory", "1MiB") != 0
    assert "MiB" in capsys.readouterr().err
