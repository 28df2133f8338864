"""Clusters that are started for the work."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path

import pytest
import yaml
from dask_kubernetes.operator import KubeCluster

from atlas_wsi.batch.clusters import connect, read_cluster_options
from atlas_wsi.errors import ArchiveError

SBATCH = """#!/bin/sh
# what SLURM would do with the only node it has
for script; do :; done
cp "$script" {log}/job-$$.sh
setsid bash {log}/job-$$.sh > {log}/job-$$.log 2>&1 &
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
echo "$@" >> {log}/cancelled
kill -- -"$1" 2> /dev/null || true
"""
DOCS = Path(__file__).parents[3] / "docs" / "cluster"


@pytest.mark.slow
def test_slurm_gets_jobs_with_the_options_of_the_file_and_they_do_the_slides(
    few_slides, tmp_path, monkeypatch, command
):
    log, programs = tmp_path / "log", tmp_path / "bin"
    log.mkdir()
    programs.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (programs / name).write_text(text.format(log=log))
        (programs / name).chmod(0o755)
    asked = tmp_path / "slurm.yaml"
    options = read_cluster_options(DOCS / "slurm.yaml")
    options |= {"interface": "lo", "workers": 2, "job_script_prologue": []}
    asked.write_text(yaml.safe_dump(options))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    done = command.here(
        *("batch", few_slides, "-o", tmp_path / "out", *command.plain),
        *("--cluster", "slurm", "--cluster-options", asked),
    )
    assert done.exit_code == 0, done.stderr
    assert "3 done" in done.stdout
    scripts = [path.read_text() for path in log.glob("job-*.sh")]
    assert len(scripts) == 2
    for line in ("-p gpu", "-A pathology", "-t 08:00:00", "--cpus-per-task=8", "--gres=gpu:1"):
        assert f"#SBATCH {line}" in scripts[0]
    assert "--nthreads 1" in scripts[0]
    assert (log / "cancelled").is_file()


@pytest.mark.parametrize(
    ("kind", "package"),
    [("cuda", "dask_cuda"), ("slurm", "dask_jobqueue"), ("kubernetes", "dask_kubernetes")],
)
def test_a_missing_package_is_named_with_how_to_install_it(kind, package, monkeypatch):
    for name in (package, f"{package}.operator"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ArchiveError, match=package) as raised, connect(kind):
        pass
    assert "pip install" in raised.value.hint


def test_kubernetes_without_a_cluster_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ArchiveError, match="'kubernetes' cannot be opened"), connect("kubernetes"):
        pass


@pytest.mark.parametrize("text", ["[1, 2]", "queue: [", "1: 2"])
def test_options_that_are_none_are_told(tmp_path, text):
    path = tmp_path / "options.yaml"
    path.write_text(text)
    with pytest.raises(ArchiveError, match=str(path)):
        read_cluster_options(path)


def test_the_file_for_kubernetes_has_what_the_operator_reads():
    options = read_cluster_options(DOCS / "kubernetes.yaml")
    del options["workers"]
    assert options.keys() <= inspect.signature(KubeCluster.__init__).parameters.keys()
    spec = options["custom_cluster_spec"]["spec"]
    (worker,) = spec["worker"]["spec"]["containers"]
    assert worker["args"][:3] == ["dask-worker", "--nthreads", "1"]
    assert {mount["name"] for mount in worker["volumeMounts"]} == {
        volume["name"] for volume in spec["worker"]["spec"]["volumes"]
    }
