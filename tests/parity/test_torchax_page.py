"""The code of the page on torchax runs as written."""

from tests.support.parity.small_models import make, make_batch
from tests.support.source_checks import run_page


def test_the_code_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_page("torchax", {"torch_module": make("llama"), "batches": [make_batch("llama")]})
    assert names["metrics"]["loss"] > 0
    assert (tmp_path / "adapter" / "lntune.json").exists()
