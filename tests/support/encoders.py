"""The encoders' reference checkpoints, made by tests/support/make_reference.py."""

import numpy as np

from tests.support.paths import REFERENCE

# Folder: the task it was saved for.
TASKS = {
    "bert": None,
    "bert_bfloat16": None,
    "bert_float16": None,
    "bert_seq_cls": "SEQ_CLS",
    "bert_seq_cls_sharded": "SEQ_CLS",
    "bert_token_cls": "TOKEN_CLS",
    "bert_masked_lm": "MASKED_LM",
    "bert_masked_lm_untied": "MASKED_LM",
    "roberta": None,
    "roberta_seq_cls": "SEQ_CLS",
    "roberta_token_cls": "TOKEN_CLS",
    "roberta_masked_lm": "MASKED_LM",
    "roberta_masked_lm_untied": "MASKED_LM",
    "distilbert": None,
    "distilbert_seq_cls": "SEQ_CLS",
    "distilbert_token_cls": "TOKEN_CLS",
    "distilbert_masked_lm": "MASKED_LM",
    "distilbert_masked_lm_untied": "MASKED_LM",
    "modernbert": None,
    "modernbert_seq_cls": "SEQ_CLS",
    "modernbert_first_token": "SEQ_CLS",
    "modernbert_token_cls": "TOKEN_CLS",
    "modernbert_masked_lm": "MASKED_LM",
    "modernbert_masked_lm_untied": "MASKED_LM",
}


TOLERANCE = 1e-5


def assert_close(found: np.ndarray, expected: np.ndarray, name: str = "") -> None:
    """Compare with what PyTorch computed, both in float32.

    What rounding adds to a sum follows the terms, not the sum: a value near 0 beside others of 4 is
    as far off as these. XLA's fusions, and with them the last bits, differ by machine.
    """
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=TOLERANCE * max(1, np.abs(expected).max()), err_msg=name
    )


def reference(name: str) -> dict[str, np.ndarray]:
    """Inputs, and what PyTorch computes from them."""
    with np.load(REFERENCE / name / "reference.npz") as arrays:
        return dict(arrays)
