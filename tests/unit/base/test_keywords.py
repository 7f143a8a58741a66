"""The keywords that type checkers know are the options that exist."""

from __future__ import annotations

import pytest

from framework._base import keywords, options


@pytest.mark.parametrize(
    ("typed", "checked"),
    [
        (keywords.TaskKeywords, options.TaskOptions),
        (keywords.ActorKeywords, options.ActorOptions),
        (keywords.MethodKeywords, options.MethodOptions),
    ],
)
def test_keywords_are_the_options(typed: type, checked: type[options._Options]) -> None:
    assert set(typed.__annotations__) == {*checked._checks, *checked._aliases}


def test_remote_takes_those_of_tasks_and_actors() -> None:
    both = {*keywords.TaskKeywords.__annotations__, *keywords.ActorKeywords.__annotations__}
    assert set(keywords.RemoteKeywords.__annotations__) == both
