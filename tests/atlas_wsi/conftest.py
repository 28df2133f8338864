"""An S3 server on loopback, for whatever reads or lists archives there."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import fsspec
import pytest
import s3fs

from atlas_wsi.batch.archive import write_archive
from atlas_wsi.batch.journal import Journal
from atlas_wsi.batch.options import BatchOptions, RunOptions
from atlas_wsi.batch.start_run import begin
from atlas_wsi.batch.task import do_slide
from atlas_wsi.batch.worker import BatchWorker

SERVER = Path(__file__).with_name("s3_server.py")


class S3:
    """A bucket, and what its server sent."""

    def __init__(self, port):
        self.endpoint = f"http://127.0.0.1:{port}"
        self.files = s3fs.S3FileSystem(endpoint_url=self.endpoint, key="a", secret="b")
        self.files.mkdir("bucket")

    def put(self, path, name=None):
        """Copy a file or folder to the bucket; return its address."""
        name = name or Path(path).name
        self.files.put(str(path), f"bucket/{name}", recursive=True, ACL="public-read")
        return f"s3://bucket/{name}"

    def web(self, url):
        """The same object as a web server gives it."""
        return url.replace("s3://", f"{self.endpoint}/")

    def sent(self):
        """Bytes sent since the last call, by object."""
        return self._post("sent")

    def fail(self, times):
        """Refuse the next requests for objects, as a busy server does."""
        self._post(f"break?times={times}")

    def _post(self, path):
        request = urllib.request.Request(f"{self.endpoint}/{path}", method="POST")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


@pytest.fixture(scope="session")
def s3_server():
    with subprocess.Popen([sys.executable, SERVER], stdout=subprocess.PIPE, text=True) as process:
        yield S3(int(process.stdout.readline()))
        process.terminate()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """The server, known to every client through the environment."""
    nowhere = {"AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_CONFIG_FILE": "/dev/null"}
    access = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    facts = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in {**nowhere, **access, **facts}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    fsspec.filesystem("s3").clear_instance_cache()
    return s3_server


@pytest.fixture(scope="session")
def make_archive():
    """Do an archive in this process, as a worker does, for each worker takes seconds to start."""

    def make(source, out):
        journal, options = Journal(out), BatchOptions(model="atlas_test", precision="float32")
        begin(journal, source, options)
        worker = BatchWorker(str(journal.out), "run", options, RunOptions())
        worker.setup(None)
        for slide in worker.slides:
            do_slide(worker, slide)
        write_archive(journal)
        return journal.out

    return make


@pytest.fixture
def outside_stem(tmp_path, monkeypatch):
    """The name of a stem of stride 14 that an installed package provides."""
    info = tmp_path / "outside_stem-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-stem\nVersion: 1.0\n")
    target = "patch14 = atlas_wsi.testing.stems:make_patch_stem"
    (info / "entry_points.txt").write_text(f"[atlas_wsi.stems]\n{target}\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "patch14"
