from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from hwnas.cli._workspace import Workspace, workspace_option


@click.command
@workspace_option
def show(workspace: Workspace) -> None:
    click.echo(workspace.root)


@pytest.mark.parametrize(
    ("args", "env", "expected"),
    [
        ([], {}, "hwnas-runs"),
        ([], {"HWNAS_WORKSPACE": "from-env"}, "from-env"),
        ([], {"HWNAS_WORKSPACE": ""}, "hwnas-runs"),
        (["--workspace", "given"], {"HWNAS_WORKSPACE": "from-env"}, "given"),
    ],
)
def test_where_the_workspace_is(args: list[str], env: dict[str, str], expected: str) -> None:
    result = CliRunner().invoke(show, args, env={"HWNAS_WORKSPACE": None, **env})
    assert result.stdout == f"{expected}\n"


def test_a_file_is_no_workspace(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    result = CliRunner().invoke(show, ["--workspace", str(file)])
    assert result.exit_code == 2
    assert "is a file" in result.stderr


def test_paths(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.supernet_dir("autovit-xxs", "digits", 48) == (
        tmp_path / "supernets" / "autovit-xxs-digits-48px"
    )
    assert workspace.table_path("cpu", "onnxruntime", "autovit-xxs", 48, 10) == (
        tmp_path / "luts" / "cpu-onnxruntime-autovit-xxs-48px-10classes.json"
    )
    assert workspace.search_dir("autovit-xxs", 10.0) == tmp_path / "searches" / "autovit-xxs-10ms"
    assert list(tmp_path.iterdir()) == []


def test_folders_of_one_name_have_supernets_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(Path("w"))
    first = workspace.supernet_dir("s", "a/photos", 64)
    assert first != workspace.supernet_dir("s", "b/photos", 64)
    assert first == workspace.supernet_dir("s", str(tmp_path / "a" / "photos"), 64)
    assert first.name.startswith("s-photos-")


@given(st.text(), st.text())
def test_any_space_id_names_a_folder_inside(first: str, second: str) -> None:
    searches = Path("root") / "searches"
    one, two = (Workspace(Path("root")).search_dir(text, 2.5) for text in (first, second))
    assert one.parent == two.parent == searches
    assert one.name.isascii()
    assert len(one.name) < 100
    assert (one == two) == (first == second)


def test_finds_what_is_there(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    assert workspace.supernets() == workspace.tables() == []
    begun = [workspace.supernet_dir(space, "digits", 64) for space in ("b", "a")]
    for folder in begun:
        folder.mkdir(parents=True)
        (folder / "run.json").touch()
    workspace.supernet_dir("empty", "digits", 64).mkdir()
    table = workspace.table_path("cpu", "onnxruntime", "a", 64, 10)
    table.parent.mkdir()
    table.touch()
    (table.parent / f".{table.name}.123.tmp").touch()
    (table.parent / f".{table.name}").touch()
    assert workspace.supernets() == sorted(begun)
    assert workspace.tables() == [table]
