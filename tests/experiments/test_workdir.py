"""A workdir is one process's, its files are whole, and errors name them."""

import builtins
import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import toys

import jaxsparse as js
from experiments import data, lock, run, train, workdir
from experiments.metrics import MetricWriter, read
from jaxsparse import checksums, files

CONFIG = {"seed": 0}


def test_one_process_at_a_time(tmp_path):
    folder = tmp_path / "run"
    with lock.held(folder):
        owner = json.loads((folder / lock.NAME).read_text())
        assert owner["pid"] == os.getpid()
        who = f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
        message = rf"{folder} is in use by {who}"
        with pytest.raises(ValueError, match=message), lock.held(folder):
            pass
        assert workdir.open_workdir(folder, CONFIG, overwrite=True) == folder
        with pytest.raises(ValueError, match="is in use"), lock.held(folder):
            pass  # deleting the run did not let go of it
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    with lock.held(folder):
        pass


def test_a_lock_ends_with_its_process(tmp_path):
    code = textwrap.dedent("""
        import fcntl, os, sys, time
        file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
        fcntl.flock(file, fcntl.LOCK_EX)
        print("held", flush=True)
        time.sleep(600)
    """)
    path = tmp_path / lock.NAME
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="is in use by another process"), lock.held(tmp_path):
            pass
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert path.exists(), "a killed process leaves its file"
    with lock.held(tmp_path):
        pass
    assert not path.exists()


def test_a_second_run_in_the_folder_is_told_who_has_it(tmp_path):
    with lock.held(tmp_path), pytest.raises(ValueError, match=f"use by process {os.getpid()} on"):
        train.run(toys.config(), str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["/proc/nope", "file", "file/below"])
def test_a_folder_that_cannot_be_made_is_told_the_cure(folder, tmp_path):
    (tmp_path / "file").write_text("notes")
    message = rf"{folder} cannot be made a folder \(.+\); choose a workdir where you may write"
    with pytest.raises(ValueError, match=message):
        train.run(toys.config(), str(tmp_path / folder))


@pytest.mark.parametrize("text", ["", '{"seed": 0, "ste', "\0" * 40, "[1]"])
def test_torn_files_are_errors_that_name_them(text, tmp_path):
    workdir.open_workdir(tmp_path, CONFIG, overwrite=False)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{tmp_path / 'config.json'} is torn.*--overwrite"):
        workdir.open_workdir(tmp_path, CONFIG, overwrite=False)
    workdir.open_workdir(tmp_path, CONFIG, overwrite=True)
    workdir.open_workdir(tmp_path, CONFIG, overwrite=False)
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{tmp_path / 'report.json'} is torn.*delete it"):
        workdir.read_report(tmp_path)


def test_what_a_kill_leaves_half_written_is_removed(tmp_path):
    (tmp_path / "config.json.77.part").write_text("{")
    workdir.open_workdir(tmp_path, CONFIG, overwrite=False)
    (tmp_path / "weights.npz.77.part").write_text("PK")
    workdir.open_workdir(tmp_path, CONFIG, overwrite=False)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_a_torn_last_line_of_metrics_is_cut_and_said(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    with caplog.at_level("WARNING", logger="experiments"):
        MetricWriter(tmp_path, 2).close()
    assert f"{path}: the last line is half-written" in caplog.text
    assert path.read_text() == '{"step": 1, "loss": 0.5}\n'


@pytest.mark.parametrize(
    "line", ['{"step": 1, "lo', "[]", '{"loss": 1}', "\0\0\0", '{"step": "a"}']
)
def test_another_torn_line_of_metrics_is_an_error_that_names_it(line, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is no record of a step"):
        read(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="line 2"):
        MetricWriter(tmp_path, 3)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3, "nothing is lost"


def failing(number, suffix):
    """`open` for a disk that takes nothing more into files of this suffix."""

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            raise OSError(number, os.strerror(number))

        writelines = write

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

    def opened(self, mode="r", *options, **named):
        file = builtins.open(self, mode, *options, **named)  # noqa: SIM115
        writes = set(mode) & set("wax+")
        return Full(file) if writes and suffix in self.name else file

    return opened


WRITTEN = ["metrics.jsonl", "weights.npz", "report.json"]


@pytest.fixture(scope="module")
def config():
    return toys.config(recipe__name="magnitude", recipe__begin=6, recipe__end=16)


@pytest.fixture(scope="module")
def reference(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    train.run(config, str(folder), html=False)
    return folder


def assert_same_weights(folder, reference):
    for name in ("weights.npz", "masks.npz"):
        with np.load(reference / name) as expected, np.load(folder / name) as found:
            assert set(found) == set(expected)
            for path in expected:
                np.testing.assert_array_equal(found[path], expected[path], strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN)
def test_a_full_disk_names_the_file_and_the_run_goes_on(
    name, config, reference, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "open", failing(errno.ENOSPC, name))
        with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path / name}'"):
            train.run(config, str(tmp_path), html=False)
    assert not [file for file in tmp_path.iterdir() if file.suffix == files.PART]
    train.run(config, str(tmp_path), html=False)
    assert_same_weights(tmp_path, reference)


@pytest.mark.slow
def test_a_full_disk_while_checkpointing_names_the_step(config, reference, tmp_path, monkeypatch):
    written = checksums.write

    def full(folder):
        if folder.name.startswith("10."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(folder)

    with monkeypatch.context() as patch:
        patch.setattr(checksums, "write", full)
        with pytest.raises(OSError, match=rf"No space left .*'{tmp_path / 'checkpoints' / '10'}'"):
            train.run(config, str(tmp_path), html=False)
    with js.checkpoint.Checkpointer(tmp_path / "checkpoints") as checkpointer:
        assert checkpointer._manager.latest_step() == 5
    train.run(config, str(tmp_path), html=False)
    assert_same_weights(tmp_path, reference)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_workdir_for_reading_only_is_an_error_that_names_it(
    number, config, tmp_path, monkeypatch
):
    opened = os.open

    def refuse(path, flags, *options, **named):
        if str(path).startswith(str(tmp_path)) and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, flags, *options, **named)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match=rf"{os.strerror(number)}: '{tmp_path}") as caught:
        train.run(config, str(tmp_path))
    assert caught.value.errno == number and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_finished_run_is_read_where_nothing_can_be_written(config, reference, monkeypatch):
    def refuse(folder):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))

    monkeypatch.setattr(lock, "held", refuse)
    assert train.run(config, str(reference))["steps"] == 24


def test_interrupted_it_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(data.Batches, "__call__", interrupt)
    folder = tmp_path / "my run"
    arguments = ["--config=experiments/configs/demo.py", "--workdir", str(folder), "--overwrite"]
    with pytest.raises(SystemExit) as caught:
        run.main(arguments)
    assert caught.value.code == 130
    command = f"{sys.executable} -m experiments.run --config=experiments/configs/demo.py"
    assert f"to go on from the last checkpoint:\n  {command} --workdir '{folder}'\n" in (
        capsys.readouterr().err
    )
    assert (folder / "config.json").exists() and not (folder / lock.NAME).exists()
