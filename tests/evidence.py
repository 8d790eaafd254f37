# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Joins what tests/evidence measured with what the source says: evidence.py MEASURED DIRECTORY

MEASURED has the results of the tests, the coverage, and what programs printed. Writes DIRECTORY/evidence.json and .md.
"""

import collections
import json
import pathlib
import re
import subprocess
import sys
import tomllib

MEASURED, OUT = map(pathlib.Path, sys.argv[1:])
HOSTILE = ("vhost_user", "virtqueue", "spi")  # the rooms that bytes of front-ends and drivers reach
SOURCES = sorted(pathlib.Path("src").rglob("*.rs"))
errors = []  # the sources do not have what belongs into the evidence
red = []  # a test failed, or was not run; something is not covered


def read(path):
    path = pathlib.Path(path)
    return path.read_text(encoding="utf-8") if path.exists() else ""


def code(path):
    """A source's lines without tests."""
    if path.name == "tests.rs" or path.parent.name == "seccomp":
        return []
    return re.split(r"\n#\[cfg\(test\)\]\n(?:#\[[^\]]*\]\n)?[a-z() ]*mod ", read(path))[0].splitlines()


def results():
    """Of each test its result: of the shipped program where it was run, else of that with counters."""
    found = {}
    for run in ("counted", "shipped"):
        # Programs of the tests write there, too.
        events = map(json.loads, re.findall(r'\{ "type".*', read(MEASURED / f"{run}.json")))
        ended = [event for event in events if event.get("event") in ("ok", "failed")]
        tests = [event for event in ended if event["type"] == "test"]
        suites = [event for event in ended if event["type"] == "suite"]
        if ended and len(suites) != 2 or len(tests) != sum(suite["passed"] + suite["failed"] for suite in suites):
            red.append(f"{run}: some tests have no result")
        for test in tests:
            *modules, name = test["name"].split("::")
            found[name] = found[f"tests/integration/{'/'.join(modules)}.rs"] = test["event"]
            if test["event"] == "failed":
                red.append(f"{run}: {test['name']} failed: {test.get('stdout')}")
    for line in read(MEASURED / "programs.txt").splitlines():
        program, status = line.split()
        found[program] = "ok" if status == "0" else f"exit code {status}"
        if status != "0":
            red.append(f"{program} failed")
    return found


def requirements(result):
    """The rows of all tables that say what shows them."""
    for path in ("tests/RULES.md", "src/threats.rs", "dist/INTEGRATION.md", "README.md"):
        heading, columns = "", None
        for line in read(path).splitlines():
            line = re.sub("^//! ?", "", line)
            cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else None
            if line.startswith("#"):
                heading = line.lstrip("# ")
            if not cells:
                columns = None
            elif columns is None:
                columns = cells
            elif columns[-1] == "shown by" and not line.startswith("|---"):
                shown = {test: result.get(test, "not run here") for test in re.findall("`([^`]*)`", cells[-1])}
                yield {"document": path, "section": heading} | dict(zip(columns[:-1], cells)) | {"shown by": shown}


def covered(name):
    """Counts of each line, and of both sides of each branch, of all copies of a function together."""
    lines, branches = {}, collections.defaultdict(lambda: [0, 0])
    for line in read(MEASURED / f"{name}.cov.lcov").splitlines():
        kind, _, value = line.partition(":")
        if kind == "SF":
            path = value
        elif kind == "DA":
            number, count = map(int, value.split(",")[:2])
            lines[path, number] = max(count, lines.get((path, number), 0))
    for function in json.loads(read(MEASURED / f"{name}.cov.text"))["data"][0]["functions"]:
        for *place, true, false, file, _, _ in function["branches"]:
            sides = branches[function["filenames"][file], *place]
            sides[0] += true
            sides[1] += false
    return lines, branches


def enclosing(lines, number):
    """The name of the function that a line is in."""
    indent = len(lines[number - 1]) - len(lines[number - 1].lstrip())
    for line in reversed(lines[:number]):
        here = re.match(r"( *)(?:[a-z()]+ |extern \"C\" )*fn ([\w$]+)", line)
        if here and len(here[1]) <= indent:
            return "fn " + here[2]
    return ""


def explanations():
    """What tests/uncovered.txt says: for a file and a function or a piece of a line, why."""
    found, why = {}, ""
    for line in read("tests/uncovered.txt").splitlines():
        if line.startswith("src/"):
            path, text = line.split(": ", 1)
            found[path, text] = why
            if text not in read(path):
                errors.append(f"tests/uncovered.txt: {path} has no '{text}'")
        elif not line.startswith("#"):
            why = line or why
    return found


def coverage():
    """A row for each room; what is not covered; and the places of which tests/uncovered.txt need not speak any more."""
    root = str(pathlib.Path.cwd()) + "/"
    rooms = collections.defaultdict(lambda: [0, 0, 0, 0])
    missing, why, needed = [], explanations(), set()

    def note(path, number, text, side):
        lines = read(path).splitlines()
        line, function = lines[number - 1].strip(), enclosing(lines, number)
        reasons = [key for key in why if key[0] == path and (key[1] == function or key[1] in line)]
        needed.update(reasons)
        if not reasons:
            red.append(f"{path}:{number}: {side}, and not explained: {text or line}")
        missing.append({"place": f"{path}:{number}", "what": side, "code": text or line, "why": " ".join(why[key] for key in reasons)})

    def room(path):
        return rooms[path.removeprefix("src/").split("/")[0]]

    lines, branches = covered("shipped")
    all_lines, all_branches = covered("all")
    for (path, number), count in sorted(lines.items()):
        path, count = path.removeprefix(root), all_lines.get((path, number), count)
        room(path)[0] += 1
        room(path)[1] += count > 0
        if not count:
            note(path, number, "", "never run")
    for key in sorted(branches):
        path, first, begin, last, end = key
        if not path.startswith(root + "src/"):
            continue
        path = path.removeprefix(root)
        text = read(path).splitlines()[first - 1][begin - 1 : end - 1 if last == first else None]
        for side, count in zip(("never true", "never false"), all_branches[key]):
            room(path)[2] += 1
            room(path)[3] += count > 0
            if not count and all_lines.get((root + path, first)):
                note(path, first, text, side)
    total = [sum(column) for column in zip(*rooms.values())]
    table = [
        {
            "room": name,
            "hostile bytes": "yes" if name in HOSTILE else "",
            "lines": f"{run} of {count}",
            "branches": f"{taken} of {sides}",
            "lines %": f"{100 * run / count:.1f}",
            "branches %": f"{100 * taken / sides:.1f}" if sides else "",
        }
        for name, (count, run, sides, taken) in [*sorted(rooms.items()), ("all", total)]
    ]
    return table, missing, [f"{path}: {text}" for path, text in why.keys() - needed]


def unsafe_blocks():
    for path in SOURCES:
        lines = code(path)
        for number, line in enumerate(lines):
            if not re.search(r"^[^/]*unsafe( impl|\(| \{)", line) or "unsafe_" in line:
                continue
            why = []
            for before in reversed(lines[:number]):
                why.insert(0, before.strip().removeprefix("// "))
                if "SAFETY: " in before or not re.match(" *(//|#)", before) and len(why) > 3:
                    break
            module = rf'UNSAFETY: ([^"]*)"\s*\)\]\s*(?:pub )?mod {path.stem};'
            why = re.search("SAFETY: (.*)", " ".join(why)) or re.search(module, read("src/lib.rs") + read("src/main.rs"))
            if not why:
                errors.append(f"{path}:{number + 1}: unsafe without a reason")
            yield {"place": f"{path}:{number + 1}", "code": line.strip(), "why": why and why[1]}


def system_calls():
    text, group, target = read("src/confine/seccomp.rs"), "", ""
    rules, startup = re.search(r"^rules! \{\n(.*?)^\}", text, re.M | re.S)[1], re.search("STARTUP: .*?= &\\[(.*?)^\\]", text, re.M | re.S)[1]
    entry = r'\[\s*"(\w+)",\s*"([\w:]+)",\s*"(.*?)",\s*"(\w+)",?\s*\]'
    elsewhere = {(call, by): why for call, by, *why in re.findall(entry, read("src/confine/seccomp/traces.rs"))}
    rule = r'// (.*)|#\[cfg\((.*)\)\]|SYS_(\w+)\s+\[(.*?)\]\s+"(.*?)";'
    for comment, cfg, call, tests, by in re.findall(rule, rules):
        if call:
            unseen, shown = elsewhere.get((call, by), ("", ""))
            yield {"call": call, "arguments": tests, "by": by, "for": group, "target": target, "unseen by strace": unseen, "shown by": shown}
        group, target = comment or group, cfg
    group = ""
    for comment, cfg, calls in re.findall(r'// (.*)|#\[cfg\((.*)\)\]|"([\w ]+)"', startup):
        for call in calls.split():
            yield {"call": call, "arguments": "", "by": "start", "for": group, "target": target, "unseen by strace": "", "shown by": ""}
        group, target = comment or group, cfg


def crates():
    why = re.search(r"Of the latter,(.*?)\n//!\n|Of the latter,(.*?)\n\n", read("src/lib.rs"), re.S)
    clauses = re.split("[;.:]", re.sub(r"\n//! ?", " ", why[1] or why[2]))
    for part in json.loads(read(OUT / "sbom.json"))["components"]:
        reason = next((clause.strip() for clause in clauses if f"`{part['name']}`" in clause), part.get("description", ""))
        yield {
            "crate": part["name"],
            "version": part["version"],
            "licence": part["licenses"][0]["expression"],
            "SHA-256": part.get("hashes", [{"content": "that of the compiler"}])[0]["content"],
            "linked": part["scope"] == "required",
            "why": reason or ("comes with those" if part["scope"] == "required" else "runs when the program is built"),
        }


def build():
    def said(*command):
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    yield {"what": "source", "value": said("git", "describe", "--always", "--dirty", "--abbrev=40")}
    for line in said("rustc", "-vV").splitlines():
        yield dict(zip(("what", "value"), line.split(": ") if ": " in line else ("compiler", line)))
    yield {"what": "linker", "value": said("cc", "-Wl,--version").splitlines()[0]}
    for key, value in tomllib.loads(read("Cargo.toml"))["profile"]["release"].items():
        yield {"what": f"profile.release.{key}", "value": value}
    bom = json.loads(read(OUT / "sbom.json"))["metadata"]["component"]
    yield {"what": "SHA-256 of the program", "value": bom["hashes"][0]["content"]}
    yield {"what": "reproducible", "value": read(MEASURED / "reproducible.txt").strip() or "not run here"}


def campaigns():
    for line in re.findall("^(?:SOAK|soak|at the|warmed).*", read(MEASURED / "soak.txt"), re.M):
        yield {"what": "soak", "figure": line}
    names = re.findall(r"^     Running `.*/(\w+) -artifact", read(MEASURED / "fuzz.txt"), re.M)
    seeds = re.findall("^INFO: Seed: (.*)", read(MEASURED / "fuzz.txt"), re.M)
    runs = re.findall(r"^stat::number_of_executed_units: *(.*)", read(MEASURED / "fuzz.txt"), re.M)
    for name, seed, count in zip(names, seeds, runs):
        yield {"what": f"fuzzing {name}", "figure": f"seed {seed}, {count} inputs"}


def table(rows):
    columns = list(dict.fromkeys(key for row in rows for key in row))
    yield from (f"| {' | '.join(columns)} |", "|---" * len(columns) + "|")
    for row in rows:
        cells = (row.get(column, "") for column in columns)
        cells = (", ".join(f"{key}: {value}" for key, value in cell.items()) if isinstance(cell, dict) else str(cell) for cell in cells)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def main():
    by_room, missing, covered_now = coverage()
    evidence = {
        "requirements": list(requirements(results())),
        "coverage": by_room,
        "not covered": missing,
        "unsafe": list(unsafe_blocks()),
        "system calls": list(system_calls()),
        "crates": list(crates()),
        "build": list(build()),
        "campaigns": list(campaigns()) or [{"what": "soak, fuzzing", "figure": "not run here"}],
    }
    for name, rows in evidence.items():
        if not rows:
            errors.append(f"nothing was found about: {name}")
    (OUT / "evidence.json").write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")
    sections = (f"# {name[0].upper() + name[1:]}\n\n" + "\n".join(table(rows)) + "\n" for name, rows in evidence.items())
    (OUT / "evidence.md").write_text("\n".join(sections), encoding="utf-8")
    print(*(f"evidence: {name}: {len(rows)}" for name, rows in evidence.items()), sep="\n")
    print(*table(by_room), sep="\n")
    print(*(f"evidence: covered this time, though tests/uncovered.txt explains it: {place}" for place in sorted(covered_now)), sep="\n")
    print(*errors, *red, sep="\n", file=sys.stderr)
    sys.exit(1 if errors else 3 if red else 0)


main()
