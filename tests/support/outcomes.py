"""What a command printed, and how it refused."""


def refused(outcome, *fragments):
    code, _, complaint = outcome
    assert code == 2
    assert complaint.count("\n") == 1
    for fragment in ("lntune-jax: error: ", *fragments):
        assert fragment in complaint
