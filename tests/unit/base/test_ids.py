from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework._base import ids

CLASSES = [
    ids.JobID,
    ids.ActorID,
    ids.TaskID,
    ids.ObjectID,
    ids.NodeID,
    ids.WorkerID,
    ids.PlacementGroupID,
]
jobs = st.integers(0, 2**32 - 1)
uniques = st.integers(0, ids.UNIQUE_MASK)
indices = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("cls", CLASSES)
@given(data=st.data())
def test_every_representation_leads_back(cls: type[ids.BaseID], data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=cls.SIZE, max_size=cls.SIZE))
    one = cls(raw)
    assert cls.from_binary(one.binary()) == cls.from_hex(one.hex()) == pickle.loads(pickle.dumps(one)) == one
    assert hash(cls(raw)) == hash(one)
    assert bytes(one) == raw
    assert one.hex() in repr(one)
    assert cls.size() == len(raw)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_wrong_length_or_type_is_refused(cls: type[ids.BaseID]) -> None:
    for wrong in (b"", b"x" * (cls.SIZE - 1), b"x" * (cls.SIZE + 1), "x" * cls.SIZE, None):
        with pytest.raises(ValueError, match=f"exactly {cls.SIZE} bytes"):
            cls(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        cls.from_hex("not hexadecimal")


@pytest.mark.parametrize("cls", CLASSES)
def test_nil_is_all_ones(cls: type[ids.BaseID]) -> None:
    assert cls.nil().is_nil()
    assert not cls(b"\x00" * cls.SIZE).is_nil()


def test_ids_of_different_kinds_are_never_equal() -> None:
    raw = b"\x07" * 28
    assert ids.NodeID(raw) != ids.WorkerID(raw)
    assert len({ids.NodeID(raw), ids.WorkerID(raw), ids.ObjectID(raw)}) == 3


@given(job=jobs, unique=uniques, index=indices)
def test_the_parts_of_a_plain_task(job: int, unique: int, index: int) -> None:
    job_id = ids.job_id_bytes(job)
    task = ids.task_id_bytes(unique, ids.task_scope(job_id))
    obj = ids.object_id_bytes(task, index)
    assert (len(job_id), len(task), len(obj)) == (ids.JOB_ID_SIZE, ids.TASK_ID_SIZE, ids.OBJECT_ID_SIZE)
    assert ids.task_unique(task) == ids.task_unique(obj) == unique
    assert ids.object_index(obj) == ids.ObjectID(obj).index() == index
    assert ids.ObjectID(obj).task_id() == ids.TaskID(task)
    assert ids.ObjectID(obj).job_id() == ids.TaskID(task).job_id() == ids.JobID.from_int(job)
    assert ids.JobID(job_id).int() == job
    assert task[ids.TASK_UNIQUE_SIZE :].startswith(ids.NO_ACTOR_PREFIX)


@given(job=jobs, unique=uniques, actor=st.binary(min_size=12, max_size=12))
def test_the_parts_of_an_actor_task(job: int, unique: int, actor: bytes) -> None:
    actor_id = actor + ids.job_id_bytes(job)
    task = ids.TaskID(ids.task_id_bytes(unique, ids.task_scope(ids.job_id_bytes(job), actor_id)))
    assert task.actor_id() == ids.ActorID(actor_id)
    assert task.job_id() == task.actor_id().job_id() == ids.JobID.from_int(job)


def test_the_layout_is_that_of_ray() -> None:
    obj = ids.object_id_bytes(ids.task_id_bytes(1, ids.task_scope(ids.job_id_bytes(1))), 1)
    assert obj.hex() == "0100000000000000" + "ff" * 12 + "01000000" + "01000000"
