"""`train` into a directory in which another process trains."""

from lntune_jax.trainer.run import RunFiles, locked


def test_a_second_train_is_refused_before_the_model_is_read(run, model_directory, table, tmp_path):
    words = ["train", "--model", model_directory, "--data", table, "--output", tmp_path / "run"]
    words += ["--max-steps", 2, "--buckets", 1]
    with locked(RunFiles.at(tmp_path / "run")):
        for flags in ([], ["--resume"], ["--overwrite"]):
            code, _, complaint = run(*words, *flags)
            assert code == 2
            assert "another process is training in" in complaint
            assert "(pid " in complaint
            assert "reading" not in run.notes
    assert run(*words)[0] == 0
    assert not (tmp_path / "run" / "run.lock").exists()
