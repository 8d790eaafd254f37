# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Holds the crates of the program to dist/deny.toml, as `cargo deny check licenses bans sources` does.

    deny.py POLICY METADATA...      METADATA: of `cargo metadata`, one file for each target of the policy

What would be a warning there, an exception that nothing needs, is an error here. A licence that stands in a file only
counts as none.
"""

import json
import re
import sys
import tomllib


def crates(metadata):
    """Those the program is made of, with what their build needs: not what only tests need."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    found, left = set(), [metadata["resolve"]["root"]]
    while left:
        crate = left.pop()
        if crate not in found:
            found.add(crate)
            left += [
                dep["pkg"]
                for dep in nodes[crate]["deps"]
                if any(kind["kind"] != "dev" for kind in dep["dep_kinds"])
            ]
    return [package for package in metadata["packages"] if package["id"] in found]


def licences_taken(expression, allowed):
    """The allowed licences that satisfy an SPDX expression, or None."""
    words = re.findall(r"[()]|[^\s()/]+|/", expression or "")
    if not words or "WITH" in words:
        return None
    formula = " ".join(
        {"AND": "and", "OR": "or", "/": "or"}.get(word, word if word in "()" else str(word in allowed)) for word in words
    )
    return allowed.intersection(words) if eval(formula) else None


def check(policy, metadata):
    packages = {package["id"]: package for file in metadata for package in crates(file)}.values()
    allowed, used, errors = set(policy["licenses"]["allow"]), set(), []
    versions = {}
    for package in packages:
        name = f"{package['name']}@{package['version']}"
        taken = licences_taken(package["license"], allowed)
        if taken is None:
            errors.append(f"{name}: licence {package['license']} is not allowed")
        used |= taken or set()
        if package["source"] not in (None, "registry+https://github.com/rust-lang/crates.io-index"):
            errors.append(f"{name}: comes from {package['source']}")
        for dependency in package["dependencies"]:
            if dependency["req"] == "*" and dependency["kind"] != "dev":
                errors.append(f"{name}: takes any version of {dependency['name']}")
        versions.setdefault(package["name"], []).append(name)
    skipped = {entry["crate"] for entry in policy["bans"].get("skip", [])}
    for names in versions.values():
        left = [name for name in names if name not in skipped]
        if len(left) > 1:
            errors.append(f"several versions: {' '.join(left)}")
    several = {name for names in versions.values() if len(names) > 1 for name in names}
    errors += [f"nothing has the licence {licence}" for licence in allowed - used]
    errors += [f"no other version of {name} is there" for name in skipped - several]
    return errors, len(packages)


def main():
    with open(sys.argv[1], "rb") as file:
        policy = tomllib.load(file)
    metadata = []
    for path in sys.argv[2:]:
        with open(path, encoding="utf-8") as file:
            metadata.append(json.load(file))
    errors, count = check(policy, metadata)
    if errors:
        sys.exit("\n".join(errors))
    print(f"{count} crates keep to {sys.argv[1].rsplit('/', 1)[-1]}")


main()
