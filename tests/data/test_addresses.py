"""Rows at an address: a real web server on this machine, and fsspec's file system in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from launcher.data.addresses import fetch
from launcher.data.sources import SplitSet, load_splits
from launcher.errors import DataError, DataUnreachable, InstallationError
from launcher.recipe.data_section import DataSection
from launcher.recipe.examine import examine

ROWS = b"text,label\n" + b"".join(b"text %d,%s\n" % (n, b"ab"[n % 2 : n % 2 + 1]) for n in range(20))


@dataclass
class Site:
    """What a web server answers: path -> (status, headers, body); and what it was asked for."""

    url: str = ""
    pages: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(self.path)
            status, headers, body = site.pages.get(self.path, (404, {}, b"none"))
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site()) as found:
        yield found


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def load(folder: Path, **data: object) -> SplitSet:
    return load_splits(DataSection(cache_dir=str(folder / "cache"), **data), base_folder=folder)


def fault(folder: Path, kind: type[Exception] = DataError, **data: object) -> str:
    with pytest.raises(kind) as caught:
        load(folder, **data)
    return str(caught.value)


# --- the web -------------------------------------------------------------------------------------------------------


def test_a_file_on_the_web(tmp_path: Path, site: Site) -> None:
    site.pages["/set/rows.csv?raw=1"] = (200, {"ETag": '"v1"'}, ROWS)
    splits = load(tmp_path, train=f"{site.url}/set/rows.csv?raw=1")
    assert len(splits.train) == 18 and splits.origin("train")(0).startswith(f"{site.url}/set/rows.csv?raw=1:")
    facts = splits.provenance["train"][0]
    assert facts["bytes"] == len(ROWS) and facts["etag"] == '"v1"' and facts["format"] == "csv"
    again = load(tmp_path, train=f"{site.url}/set/rows.csv?raw=1")
    assert again.fingerprint == splits.fingerprint and len(site.asked) == 2


def test_a_file_that_has_changed_is_fetched_anew(tmp_path: Path, site: Site) -> None:
    address = f"{site.url}/rows.csv"
    for version, body in (("v1", ROWS), ("v2", ROWS.replace(b"text 3", b"text X"))):
        site.pages["/rows.csv"] = (200, {"ETag": version}, body)
        assert fetch(address, cache_dir=tmp_path).path.read_bytes() == body
    # A server that says no version may have changed what it holds.
    site.pages["/rows.csv"] = (200, {}, ROWS)
    assert fetch(address, cache_dir=tmp_path).path.read_bytes() == ROWS


def test_the_same_version_is_not_transferred_twice(tmp_path: Path, site: Site) -> None:
    site.pages["/rows.csv"] = (200, {"ETag": "v1"}, ROWS)
    first = fetch(f"{site.url}/rows.csv", cache_dir=tmp_path)
    first.path.write_bytes(ROWS.swapcase())
    assert fetch(f"{site.url}/rows.csv", cache_dir=tmp_path).path.read_bytes() == ROWS.swapcase()
    first.path.write_bytes(b"half")
    assert fetch(f"{site.url}/rows.csv", cache_dir=tmp_path).path.read_bytes() == ROWS


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (404, DataError, "there is no such file (HTTP 404 Not Found); check the address"),
        (403, DataError, "the server refuses it (HTTP 403 Forbidden); fetch it by hand"),
        (418, DataError, "does not give it (HTTP 418"),
        (503, DataUnreachable, "cannot give it now (HTTP 503 Service Unavailable); try again later"),
    ],
)
def test_answers_that_are_no_file_are_named(tmp_path: Path, site: Site, status: int, kind: type, said: str) -> None:
    site.pages["/rows.csv"] = (status, {}, b"no")
    assert said in fault(tmp_path, kind, train=f"{site.url}/rows.csv")


def test_a_transfer_that_breaks_off_is_no_file(tmp_path: Path, site: Site) -> None:
    site.pages["/rows.csv"] = (200, {"Content-Length": str(len(ROWS)), "Connection": "close"}, ROWS[:100])
    message = fault(tmp_path, train=f"{site.url}/rows.csv")
    assert "broke off after 100 of" in message and message.startswith(f"data source '{site.url}/rows.csv'")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    # Parts of a length each, of which the last one is cut.
    site.pages["/rows.csv"] = (200, {"Transfer-Encoding": "chunked", "Connection": "close"}, b"5\r\ntext,\r\n9\r\nlab")
    assert "broke off" in fault(tmp_path, train=f"{site.url}/rows.csv")


def test_a_page_in_place_of_the_file(tmp_path: Path, site: Site) -> None:
    site.pages["/rows.csv"] = (200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>log in</html>")
    assert "sends a web page, not the file" in fault(tmp_path, train=f"{site.url}/rows.csv")
    site.pages["/rows.csv"] = (200, {"Content-Encoding": "br"}, b"x")
    assert "packed (br)" in fault(tmp_path, train=f"{site.url}/rows.csv")


def test_without_a_network_the_copy_of_before_is_used(tmp_path: Path) -> None:
    with serving(Site()) as site:
        site.pages["/rows.csv"] = (200, {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, ROWS)
        first = load(tmp_path, train=f"{site.url}/rows.csv")
        (never := f"{site.url}/never.csv")
    later = load(tmp_path, train=f"{site.url}/rows.csv")
    assert later.fingerprint == first.fingerprint
    assert any("cannot be reached" in note and "the copy that was fetched on" in note for note in later.warnings)
    assert "cannot be reached (" in fault(tmp_path, DataUnreachable, train=never)


def test_an_address_without_an_ending_needs_a_format(tmp_path: Path, site: Site) -> None:
    site.pages["/download"] = (200, {}, ROWS)
    assert "its ending tells no format" in fault(tmp_path, train=f"{site.url}/download")
    assert len(load(tmp_path, train={"source": f"{site.url}/download", "format": "csv"}).train) == 18
    assert "has no splits" in fault(tmp_path, train={"source": f"{site.url}/rows.csv", "split": "train"})


# --- others --------------------------------------------------------------------------------------------------------


def test_a_file_and_a_folder_of_fsspecs(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/set/train-00000-of-00002.csv", ROWS)
    memory.pipe_file("/set/train-00001-of-00002.csv", ROWS.replace(b"text ", b"more "))
    memory.pipe_file("/set/dev.jsonl", b'{"text": "v", "label": "a"}\n')
    memory.pipe_file("/set/notes.md", b"of no concern")
    splits = load(tmp_path, source="memory://set")
    assert len(splits.train) == 40 and splits.validation["text"][:] == ["v"]
    assert splits.origin("train")(20) == "memory:///set/train-00001-of-00002.csv:2 (row 1)"
    assert len(load(tmp_path, train="memory://set/train-00000-of-00002.csv").train) == 18
    memory.rm_file("/set/train-00001-of-00002.csv")
    assert "1 of 2 shards" in fault(tmp_path, source="memory://set")


def test_what_is_not_there_names_its_neighbour(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/set/rows.csv", ROWS)
    assert "no such file or folder (did you mean 'rows.csv'?)" in fault(tmp_path, train="memory://set/row.csv")
    memory.pipe_file("/other/a.csv", ROWS)
    assert "memory://other: holds no file named train" in fault(tmp_path, source="memory://other")


def test_a_copy_that_is_shorter_than_the_file_is_refused(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/rows.csv", ROWS)
    address = "memory://rows.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(memory), "get_file", lambda self, _, local: Path(local).write_bytes(ROWS[:50]))
        with pytest.raises(DataError, match="broke off after 50 of"):
            fetch(address, cache_dir=tmp_path)
    assert fetch(address, cache_dir=tmp_path).path.read_bytes() == ROWS


@pytest.mark.parametrize(
    ("address", "kind", "said"),
    [
        ("s3://bucket/rows.csv", InstallationError, "s3:// needs the package s3fs, which is not installed; pip install s3fs"),
        ("gs://bucket/rows.csv", InstallationError, "pip install gcsfs"),
        ("s4://bucket/rows.csv", DataError, "there is no kind of address s4://; there are s3, gs, az, hf, http"),
        ("htps://host/rows.csv", DataError, "did you mean https://?"),
        ("file:///data/rows.csv", DataError, "write its path: /data/rows.csv"),
        ("https://me:secret@host/rows.csv", DataError, "a password in an address would be written down"),
    ],
)  # fmt: skip
def test_addresses_are_judged_before_any_network(tmp_path: Path, address: str, kind: type, said: str) -> None:
    if address.startswith(("s3", "gs")) and not said_of(address):
        pytest.skip("the file system's package is installed")
    assert said in fault(tmp_path, kind, train=address)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"version: 1\nname: r\ntask: text-classification\nmodel: {{name_or_path: m}}\ndata: {{train: '{address}'}}\n"
    )
    (problem,) = examine(recipe)[1]
    assert problem.place == f"{recipe}:5:8" and problem.key == "data.train"
    assert said.partition(";")[0] in f"{problem.message}; {problem.remedy}"


def said_of(address: str) -> object:
    from launcher.recipe.addresses import lacking

    return lacking(address)


def test_check_asks_no_network(tmp_path: Path, site: Site) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"version: 1\nname: r\ntask: text-classification\nmodel: {{name_or_path: m}}\ndata: {{train: {site.url}/none.csv}}\n"
    )
    assert examine(recipe)[1] == [] and site.asked == []
