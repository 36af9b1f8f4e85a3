"""Which checkpoints stay, and saves that training does not wait for."""

import re
from pathlib import Path

import jax
import pytest

from lntune_jax.errors import CheckpointError
from lntune_jax.training import checkpoints as _checkpoints
from lntune_jax.training.checkpoints import (
    finish_saves,
    open_checkpoints,
    restore_state,
    save_state,
)
from tests.support.paths import ROOT
from tests.support.states import advance, assert_same_state, make_state


def save_all(directory: Path, losses: list[float], **options: object) -> list[int]:
    state = make_state()
    with open_checkpoints(directory, **options) as manager:  # type: ignore[arg-type]
        for loss in losses:
            state = advance(state)
            save_state(manager, state, metrics={"loss": loss, "accuracy": -loss})
        return sorted(manager.all_steps())


def test_the_best_stay_besides_the_latest(tmp_path: Path) -> None:
    losses = [3.0, 1.0, 2.0, 5.0, 4.0, 6.0]
    assert save_all(tmp_path / "latest", losses, keep=1) == [6]
    assert save_all(tmp_path / "best", losses, keep=1, keep_best=2) == [2, 3, 6]
    highest = {"best_metric": "accuracy", "highest_is_best": True}
    assert save_all(tmp_path / "highest", losses, keep=2, keep_best=1, **highest) == [2, 5, 6]
    state = advance(advance(make_state()))
    with open_checkpoints(tmp_path / "best", keep=1, keep_best=2) as manager:
        assert manager.best_step() == 2
        restored = restore_state(manager, make_state(), step=manager.best_step())
        assert restored is not None
        assert_same_state(restored[0], state)
        with pytest.raises(CheckpointError, match=r"no checkpoint of step 5; it has \[2, 3, 6\]"):
            restore_state(manager, make_state(), step=5)


def test_one_stays_each_time_that_so_much_time_has_passed(tmp_path: Path) -> None:
    assert save_all(tmp_path / "a", [1.0] * 4, keep=1, keep_every_seconds=10**6) == [1, 4]


def test_refusals(tmp_path: Path) -> None:
    for wrong in ({"keep_best": -1}, {"keep_every_seconds": 0}):
        with pytest.raises(CheckpointError, match="expected 0 or more, and None or 1 or more"):
            open_checkpoints(tmp_path, **wrong)
    with (
        open_checkpoints(tmp_path) as manager,
        pytest.raises(CheckpointError, match="metrics must be names and numbers"),
    ):
        save_state(manager, make_state(), metrics={"loss": "low"})  # type: ignore[dict-item]


def test_a_save_that_is_not_waited_for_has_the_values_of_its_time(tmp_path: Path) -> None:
    step = jax.jit(advance, donate_argnums=0)
    state, expected = step(make_state()), jax.jit(advance)(make_state())
    with open_checkpoints(tmp_path) as manager:
        for count in range(3):
            save_state(manager, state, {"count": count}, wait=False)
            # The memory that was just saved from is the next step's.
            state = step(state)
        finish_saves(manager)
        assert sorted(manager.all_steps()) == [2, 3]
    for _ in range(2):
        expected = jax.jit(advance)(expected)
    with open_checkpoints(tmp_path) as manager:
        restored = restore_state(manager, make_state())
    assert restored is not None
    assert restored[1] == {"count": 2}
    assert_same_state(restored[0], expected)


def test_an_error_in_the_background_reaches_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_state()
    with open_checkpoints(tmp_path) as manager:
        save_state(manager, state, wait=False)

        def fail() -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(manager, "wait_until_finished", fail)
            with pytest.raises(CheckpointError, match=r"cannot save in .*No space left"):
                save_state(manager, advance(state))


def test_dying_before_the_record_is_in_place_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of the files is moved in whole; without one the leaves' checksums count."""
    state = advance(make_state())

    class DiedError(BaseException):
        pass

    def die(directory: Path) -> None:
        raise DiedError

    for place in ("sync", "sync_tree"):
        directory = tmp_path / place
        with open_checkpoints(directory) as manager, monkeypatch.context() as patch:
            patch.setattr(_checkpoints, place, die)
            with pytest.raises(DiedError):
                save_state(manager, state)
        with open_checkpoints(directory) as manager:
            restored = restore_state(manager, make_state())
            assert restored is not None
            assert_same_state(restored[0], state)
            save_state(manager, advance(state))
            assert sorted(manager.all_steps()) == [1, 2]


def test_a_branch_goes_on_from_the_best_step_and_nothing_is_lost(tmp_path: Path) -> None:
    """The recipe of docs/resuming.md."""
    losses = [3.0, 1.0, 2.0, 5.0]
    assert save_all(tmp_path / "run", losses, keep=1, keep_best=1) == [2, 4]
    like, ends = make_state(), []
    for _ in range(2):  # the second time the branch goes on where it was stopped
        with (
            open_checkpoints(tmp_path / "run", keep=1, keep_best=1) as before,
            open_checkpoints(tmp_path / "branch", keep=1) as manager,
        ):
            found = restore_state(manager, like)
            if found is None:
                found = restore_state(before, like, step=before.best_step())
            assert found is not None
            state, _ = found
            ends.append(int(state.step))
            with pytest.raises(CheckpointError, match="save into another directory"):
                save_state(before, state)
            save_state(manager, advance(state))
            assert sorted(before.all_steps()) == [2, 4]
    assert ends == [2, 3]
    with open_checkpoints(tmp_path / "branch") as manager:
        found = restore_state(manager, like)
    assert found is not None
    assert_same_state(found[0], advance(advance(advance(advance(make_state())))))


def test_the_page_on_resuming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "resuming.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for block, shown in re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", page, re.DOTALL):
        with jax.numpy_dtype_promotion("standard"):  # as people have it
            exec(block, names)
        assert capsys.readouterr().out == shown
    assert "before" in names
