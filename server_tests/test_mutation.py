"""The mutation run: what is a mutant, and that one is caught if and only if it is a fault."""

import pytest

from mutation.__main__ import CONTRACT, KNOWN, SERVER, Known, Reached, Results, lock, record, verdict_of
from mutation.copy_under_test import Broken, Copy
from mutation.line_map import MODULES
from mutation.mutants import ROOT, mutants

CAUGHT = "backup_server.py | check_signature | if abs(request.arrival.at // 1000 - created) > skew: | "
CAUGHT += "abs(request.arrival.at // 1000 - created) > skew → (abs(request.arrival.at // 1000 - created) >= skew)"
EQUIVALENT = (
    'backup_server.py |  | YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML without libyaml: '
)
EQUIVALENT += "0.15 s instead of 0.02 | \"CSafeLoader\" → 'CSafeLoaderx'"
ALL = {mutant.key: mutant for module in MODULES for mutant in mutants(module)}


def test_a_key_names_one_mutant():
    assert len(ALL) == sum(len(mutants(module)) for module in MODULES)


def test_keys_survive_a_change_of_other_lines():
    module = "server/limits.py"
    source = (ROOT / module).read_bytes()
    moved = mutants(module, b"# a comment\n\n" + source.replace(b"\n\n\nclass", b"\n\n\n# another\n\n\nclass"))
    assert [mutant.key for mutant in moved] == [mutant.key for mutant in mutants(module)]


@pytest.mark.parametrize("module", MODULES)
def test_mutants_are_python_and_differ_from_the_server(module):
    source = (ROOT / module).read_bytes()
    for mutant in mutants(module)[::20]:
        changed = mutant.apply(source)
        assert changed != source
        compile(changed, module, "exec")


def test_what_is_known_is_about_mutants_that_exist():
    known = Known(KNOWN)
    assert [entry for entry in known.entries() if not any(known.matches(entry, each) for each in ALL.values())] == []
    assert all(entry["reason"] for entry in known.entries())
    for store in ("file", "postgres"):
        assert [file for file in known.server_tests(store) if not (ROOT / file).exists()] == []


def test_a_result_that_was_cut_off_is_judged_again(tmp_path):
    first, second = list(ALL.values())[:2]
    results = Results(tmp_path / "results")
    for mutant in (first, second):
        results.add(mutant, CONTRACT, verdict="caught", by="a test")
    file = tmp_path / "results"
    file.write_text(file.read_text()[:-9])  # as if the power had failed
    results = Results(file)
    assert verdict_of(first, Known(KNOWN), results) == "by contract"
    assert results.get(second, CONTRACT) is None


def test_which_lines_a_test_reaches_in_any_process(tmp_path):
    """One of these tests calls the server's code itself, and the other one starts a server. They run at once."""
    tests = [
        "server_tests/test_parts.py::test_a_keyword_that_nobody_checks_is_refused[schema1-contentEncoding]",
        "server_tests/test_server.py::test_a_refused_setting_ends_the_process",
    ]
    reached = Reached(tmp_path)
    with Copy() as copy:
        record(reached, copy, tests, SERVER)
    of_itself, of_a_server = (reached.lines[test] for test in tests)
    assert of_itself["server/json_schema.py"]
    assert of_a_server["backup_server.py"]


def test_two_runs_do_not_share_a_folder(tmp_path):
    """The second one would take the map away from the first."""
    with lock(tmp_path), pytest.raises(Broken, match="another run uses"):
        lock(tmp_path)
    lock(tmp_path).close()


def test_a_mutant_that_hangs_is_caught_by_the_test_that_hangs():
    file = "server_tests/test_that_hangs.py"
    with Copy() as copy:
        (copy.root / file).write_text("import time\ndef test_1():\n    pass\ndef test_2():\n    time.sleep(600)\n")
        test, how = copy.first_failure([f"{file}::test_1", f"{file}::test_2"], 10)
    assert test == f"{file}::test_2"
    assert "no end after 10 s" in how


def test_a_fault_is_caught_and_an_equivalent_is_not():
    named = "contract_tests/test_signature.py::test_created_"
    with Copy() as copy:
        tests = [test for test in copy.load() if test.startswith(named)]
        assert tests
        for key, is_caught in ((None, False), (CAUGHT, True), (EQUIVALENT, False), (None, False)):
            copy.put([ALL[key]] if key else [])
            failure = copy.run(tests, lambda test: 300)
            assert (failure is not None) == is_caught, failure
