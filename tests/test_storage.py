"""A run folder at a URL: what is sent, what is fetched, and what a failing server costs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import run_command
from fsspec.implementations.memory import MemoryFileSystem

from autolora_eval._errors import AutoLoRAEvalError, UsageError
from autolora_eval._files import write_text
from autolora_eval.runs import storage
from autolora_eval.runs.storage import Storage, working_copy

URL, ROOT = "memory://bucket/mine", "/bucket/mine"


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """The files of an empty server."""
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.001)
    MemoryFileSystem.store.clear()
    yield MemoryFileSystem.store
    MemoryFileSystem.store.clear()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that changes the machine: each has its own cache and working copies."""

    def change(name: str) -> None:
        monkeypatch.setenv("AUTOLORA_EVAL_CACHE", str(tmp_path / name))

    change("first")
    return change


def write(folder: Path, **files: str) -> None:
    """Write files of `NAMES`, as a stage does."""
    for name, text in files.items():
        write_text(folder / NAMES[name], text)


IMAGE, LIST, MANIFEST = "images/cell/prompt/3.png", "images/cell/metadata.jsonl", "manifest.json"
NAMES = {"image": IMAGE, "rows": LIST, "manifest": MANIFEST}


def there() -> dict[str, bytes]:
    return {
        path.removeprefix(f"{ROOT}/"): file.getvalue()
        for path, file in MemoryFileSystem.store.items()
        if not path.endswith("/.lock")
    }


def on_put(
    monkeypatch: pytest.MonkeyPatch,
    before: Callable[[str], object] = lambda name: None,
    after: Callable[[str], object] = lambda name: None,
) -> None:
    """Call functions before and after the server stores a file, with its name in the folder."""
    put = MemoryFileSystem.put_file

    def put_file(self, local, remote, **options):
        name = remote.removeprefix(f"{ROOT}/")
        before(name)
        put(self, local, remote, **options)
        after(name)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)


def fails(monkeypatch: pytest.MonkeyPatch, times: int) -> list[str]:
    """Let the server refuse files, so many times; return what it was asked to store."""
    asked: list[str] = []

    def refuse(name: str) -> None:
        asked.append(name)
        if len(asked) <= times:
            raise ConnectionError("the server is away")

    on_put(monkeypatch, before=refuse)
    return asked


def test_a_path_stays_a_path(tmp_path) -> None:
    before = threading.active_count()
    with working_copy(tmp_path / "run") as folder:
        assert folder == tmp_path / "run"
        assert threading.active_count() == before
    assert not folder.exists()


def test_images_go_before_the_list_that_names_them_and_the_manifest_last(
    machine, monkeypatch
) -> None:
    asked = fails(monkeypatch, 0)
    with working_copy(URL) as copy:
        write(copy, manifest="{}", rows="3.png\n", image="pixels")
        (copy / ".partial-1").touch()
    assert asked == [".lock", IMAGE, LIST, MANIFEST]
    machine("second")
    with working_copy(URL, finished=True) as elsewhere:
        assert elsewhere != copy
        assert elsewhere.name == "mine"
        assert {n: (elsewhere / n).read_bytes() for n in there()} == there()
    assert len(asked) == 4  # what is only read is not sent


def test_a_list_is_sent_as_it_was_before_the_images_were_looked_for(machine, monkeypatch) -> None:
    def make_the_next_image(name: str) -> None:
        if name.endswith(".png"):
            write(store.copy, rows="3.png\n4.png\n")

    on_put(monkeypatch, before=make_the_next_image)
    store = Storage(URL)
    write(store.copy, rows="3.png\n", image="pixels")
    store.fetch()
    store.send()
    assert there()[LIST] == b"3.png\n"


def test_changes_are_sent_while_the_command_runs(machine, monkeypatch) -> None:
    monkeypatch.setattr(storage, "SECONDS_BETWEEN", 0.01)
    sent = threading.Event()
    on_put(monkeypatch, after=lambda name: name == MANIFEST and sent.set())
    with working_copy(URL) as copy:
        write(copy, manifest="{}")
        assert sent.wait(5)


def test_failures_of_the_server_cost_nothing(machine, monkeypatch) -> None:
    fails(monkeypatch, storage.TRIES - 1)
    with working_copy(URL) as copy:
        write(copy, manifest="{}", image="pixels")
    assert there() == {MANIFEST: b"{}", IMAGE: b"pixels"}


def test_a_server_that_lost_its_files_gets_them_again(machine, memory) -> None:
    store = Storage(URL)
    store.fetch()
    write(store.copy, manifest="{}", image="pixels")
    store.finish()
    memory.clear()
    store.send()  # nothing changed here
    assert set(there()) == {MANIFEST, IMAGE}
    memory.pop(f"{ROOT}/{IMAGE}")  # a part of them
    store.finish()
    assert set(there()) == {MANIFEST, IMAGE}


def test_the_same_command_sends_what_a_lost_server_did_not_get(machine, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        fails(patch, 1000)
        with pytest.raises(AutoLoRAEvalError) as failed, working_copy(URL) as copy:
            write(copy, manifest="{}", rows="3.png\n")
    assert str(failed.value) == (
        f"'{URL}' does not answer as it should (ConnectionError: the server is away). Not "
        f"everything was sent. Nothing is lost: the working copy '{copy}' has all files. Run the "
        "same command again when it does."
    )
    with working_copy(URL):
        pass
    assert there() == {MANIFEST: b"{}", LIST: b"3.png\n"}


def fail_with(message: str) -> Path:
    """Change the manifest in a command that fails; return the working copy."""
    with working_copy(URL) as copy:
        write(copy, manifest=message)
        raise UsageError(message.format(copy))


def test_a_failing_command_sends_too_and_names_both_failures(machine, monkeypatch) -> None:
    with pytest.raises(UsageError) as failed:
        fail_with("'{}/x' is bad.")
    assert str(failed.value) == f"'{URL}/x' is bad."
    assert there() == {MANIFEST: b"'{}/x' is bad."}
    fails(monkeypatch, 1000)
    with pytest.raises(UsageError) as failed:
        fail_with("It is worse.")
    assert str(failed.value).startswith(f"It is worse.\n'{URL}' does not answer as it should")


def test_the_last_machine_that_wrote_has_the_newer_files(machine) -> None:
    with working_copy(URL) as copy:
        write(copy, manifest="1", image="pixels", rows="1")
    write(copy, rows="1 and unsent")
    with working_copy(URL) as copy:
        assert (copy / LIST).read_text() == "1 and unsent"
    machine("second")
    with working_copy(URL) as elsewhere:
        write(elsewhere, manifest="2", rows="12")
        (elsewhere / IMAGE).unlink()
    assert there() == {MANIFEST: b"2", LIST: b"12"}
    machine("first")
    write(copy, rows="1 and lost")
    os.utime(copy / MANIFEST, ns=(0, 0))
    with working_copy(URL) as again:
        assert again == copy
        assert (copy / LIST).read_text() == "12"
        assert (copy / MANIFEST).read_text() == "2"
        assert not (copy / IMAGE).exists()


def test_two_machines_do_not_write_at_once(machine) -> None:
    first = Storage(URL)
    first.fetch()
    write(first.copy, manifest="1")
    first.send()
    machine("second")
    with working_copy(URL) as copy:
        write(copy, manifest="2")
    write(first.copy, manifest="3")
    with pytest.raises(AutoLoRAEvalError, match="another command writes at 'memory://bucket/mine'"):
        first.finish()
    assert there() == {MANIFEST: b"2"}


@pytest.mark.parametrize("name", ["../mine.txt", "a/../../b", "a//b", "a\\b", "C:x", "a\nb"])
def test_a_file_with_the_name_of_another_place_is_refused(machine, tmp_path, memory, name) -> None:
    memory[f"{ROOT}/{MANIFEST}"] = memory[f"{ROOT}/{name}"] = MemoryFileSystem().open("/x", "wb")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="not a file of a run: it is a link, or points outside"):
        Storage(URL).fetch()
    made = set(tmp_path.rglob("*")) - set(before)
    assert {path.name for path in made if path.is_file()} <= {"sent.json"}


@pytest.mark.parametrize("target", ["secret", "secrets", "nothing", "mine"])
def test_a_link_is_not_followed(machine, tmp_path, target) -> None:
    (tmp_path / "secret").touch()
    (tmp_path / "secrets").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "link").symlink_to(tmp_path / target)
    with pytest.raises(UsageError, match="it is a link"):
        Storage(f"file://{tmp_path}/mine").fetch()


def test_a_folder_of_this_machine_is_a_place_too(machine, tmp_path) -> None:
    with working_copy(f"file://{tmp_path}/shared/mine") as copy:
        write(copy, manifest="{}", image="pixels")
    found = {p.name for p in (tmp_path / "shared" / "mine").rglob("*") if p.is_file()}
    assert found == {"manifest.json", "3.png", ".lock"}


def test_files_of_something_else_are_not_changed(machine, memory) -> None:
    memory[f"{ROOT}/thesis.txt"] = MemoryFileSystem().open("/x", "wb")
    failed = run_command("run", "quickstart", "--output", URL)
    assert failed.code == 2
    assert failed.stderr == (
        f"error: '{URL}' has files, but no manifest.json: it is not a run folder. Use the "
        "URL of an empty folder.\n"
    )


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "s3://me:secret@bucket/mine",
            "the URL 's3://bucket/mine' has a password, '?' or '#' in it. Leave it out: "
            "credentials are taken from the environment, as the library of the protocol reads "
            "them.",
        ),
        (
            "https://example.com/mine",
            "'https://example.com/mine' cannot hold a run folder. Expected "
            "PROTOCOL://PLACE/FOLDER, such as s3://bucket/runs/mine, of a protocol that can be "
            "written.",
        ),
        (
            "gs://bucket/mine",
            "'gs://bucket/mine' cannot be used: Please install gcsfs to access Google Storage",
        ),
        ("nowhere://mine", "'nowhere://mine' cannot be used: Protocol not known: nowhere"),
        (URL, f"'{URL}' is not a run folder: it has no manifest.json."),
    ],
)
def test_a_url_that_cannot_be_used_is_one_message(url, message) -> None:
    failed = run_command("verify", url)
    assert (failed.code, failed.stderr) == (2, f"error: {message}\n")
