"""Every code cell of the seed documents, each a test; the cells of a document run in order in one session."""

from __future__ import annotations

import builtins
import importlib
from collections.abc import Iterator

import pytest
from seed_harness import catalogue, documents, plan, session
from seed_harness.digests import DIGESTS
from seed_harness.plan import Part
from seed_harness.session import Sessions

_WHY_SKIPPED = documents.why_unavailable()
_PLANS: dict[str, list[Part]] = {} if _WHY_SKIPPED else {name: plan.parts(name) for name in documents.NAMES}


def _exception(name: str) -> type[BaseException]:
    found = getattr(session, name, None) or getattr(builtins, name)
    assert isinstance(found, type) and issubclass(found, BaseException)
    return found


def _marks(part: Part) -> list[pytest.MarkDecorator]:
    missing = part.rule.missing
    if missing is None:
        return []
    raises = tuple(_exception(name) for name in missing.raises)
    return [pytest.mark.xfail(strict=True, raises=raises, reason=f"not there yet: {missing.what}")]


def _cells() -> Iterator[object]:
    if _WHY_SKIPPED:
        yield pytest.param(None, marks=pytest.mark.skip(reason=_WHY_SKIPPED), id="none")
    for parts in _PLANS.values():
        for part in parts:
            yield pytest.param(part, marks=_marks(part), id=part.name)


@pytest.mark.seeds
@pytest.mark.slow
@pytest.mark.parametrize("part", list(_cells()))
def test_cell(part: Part, sessions: Sessions) -> None:
    importlib.import_module("framework")
    sessions.enter(part.document, _PLANS[part.document]).run(part)


@pytest.mark.skipif(_WHY_SKIPPED is not None, reason=_WHY_SKIPPED or "")
@pytest.mark.parametrize("document", documents.NAMES)
def test_document_is_the_one_the_catalogue_knows(document: str) -> None:
    changed = plan.changed(document)
    assert not changed, f"cells changed: {changed}; look at their rules, then update digests.py"


@pytest.mark.skipif(_WHY_SKIPPED is not None, reason=_WHY_SKIPPED or "")
def test_every_rule_has_its_cell() -> None:
    names = {part.name for parts in _PLANS.values() for part in parts}
    assert [name for name in catalogue.rule_names() if name not in names] == []
    assert sorted(DIGESTS) == sorted(documents.NAMES)
