"""Lists the cells, prints their digests, shows one cell's code as it runs, or runs an isolated one."""

from __future__ import annotations

import argparse
import textwrap

from seed_harness import documents, isolated, plan


def _list() -> None:
    for document in documents.NAMES:
        for part in plan.parts(document):
            first = next((line for line in part.code.splitlines() if line.strip()), "")
            note = f"  [lacks {part.rule.missing.what}]" if part.rule.missing else ""
            print(f"{part.name:8} {len(part.code.splitlines()):3} lines  {first[:60]}{note}")


def _digests() -> None:
    """Prints the body of digests.py for the documents as they are now."""
    for document in documents.NAMES:
        digests = " ".join(cell.digest for cell in documents.cells(document))
        print(f'    "{document}": """')
        print(textwrap.indent(textwrap.fill(digests, 90), "        "))
        print('    """,')


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m seed_harness", description=__doc__)
    parser.add_argument("command", nargs="?", default="list", choices=["list", "digests", "show", "isolated"])
    parser.add_argument("cell", nargs="?", default="", help="name of a cell, such as 000-07")
    arguments = parser.parse_args()
    why = documents.why_unavailable()
    if why is not None:
        parser.exit(2, why + "\n")
    if arguments.command == "list":
        _list()
    elif arguments.command == "digests":
        _digests()
    elif arguments.command == "show":
        document = plan.parts(arguments.cell[:3])
        print(*(part.code for part in document if part.name == arguments.cell), sep="\n")
    else:
        isolated.run(arguments.cell)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
