"""The files of ``deploy/`` fit each other and the rest of the project. No engine builds or starts anything here."""

from __future__ import annotations

import re
import tomllib

import yaml

from pipeline_tests.deploy.files import DEPLOY, ROOT, image_environment, instructions, read, services


def _copied() -> set[str]:
    """What the Dockerfile copies of the project."""
    return {source for copy in instructions("COPY") if "--from" not in copy for source in copy.split()[:-1]}


def test_all_that_the_image_copies_exists_and_all_that_a_wheel_is_made_of_is_copied() -> None:
    assert [name for name in _copied() if not (ROOT / name).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert _copied() >= {"pyproject.toml", project["project"]["readme"], *wheel["packages"], *wheel["force-include"]}


def test_the_image_installs_as_make_setup_does() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.findall(r"^\t(.*pip install .*)$", makefile.split("$(STAMP): ")[1].split("\n\n")[0], re.MULTILINE)
    run = [re.sub(r" --(no-cache-dir|no-cache|compile-bytecode)\b", "", line) for line in instructions("RUN")]
    installs = [line.replace("/opt/indexport/bin/", "$(BIN)/") for line in run if "pip install" in line]
    assert installs == [line.replace("--editable ", "") for line in recipe]


def test_dagster_is_set_as_everywhere_but_for_the_storage_that_the_comment_there_shows() -> None:
    ours, deployed = read("dagster.yaml"), read("deploy/dagster.yaml")
    shown = (ROOT / "dagster.yaml").read_text(encoding="utf-8").split("# On a cluster")[1].split("# Batches")[0]
    lines = [line.removeprefix("# ") for line in shown.splitlines()[1:]]
    assert deployed == {**ours, **yaml.safe_load("\n".join(lines))}
    assert deployed["storage"] != ours["storage"]


def test_the_workspace_names_the_code_server_of_compose_which_serves_what_the_other_workspace_loads() -> None:
    (module,) = (each["python_module"] for each in read("workspace.yaml")["load_from"])
    (server,) = (each["grpc_server"] for each in read("deploy/workspace.yaml")["load_from"])
    assert server["location_name"] == module["location_name"]
    command = services()[server["host"]]["command"]
    assert command[command.index("--port") + 1] == str(server["port"])
    assert command[command.index("--module-name") + 1] == module["module_name"]


def test_all_of_dagster_shares_the_home_of_the_image_with_its_settings_in_it() -> None:
    (volume,), home = instructions("VOLUME"), image_environment()
    assert home["INDEXPORT_HOME"] == volume
    assert home["INDEXPORT_MODEL_CACHE"].startswith(f"{volume}/")
    settings = [f"./{name}:{home['DAGSTER_HOME']}/{name}:ro" for name in ("dagster.yaml", "workspace.yaml")]
    for name, service in services().items():
        if name != "postgres":
            assert service["volumes"] == [f"indexport:{volume}", *settings], name
            if "--workspace" in service["command"]:
                assert service["command"][-1] == f"{home['DAGSTER_HOME']}/workspace.yaml", name


def test_secrets_come_from_a_file_that_is_not_committed() -> None:
    assert ".env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    compose = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"PASSWORD: (.*)", compose)) == {"${POSTGRES_PASSWORD:?is to be set in deploy/.env}"}
    assert not re.search(r"//[^/@\s]+:[^/@\s]+@", compose), "a password in an address"
