"""Which worker a forwarder gives a task to, and how one task gets a worker for itself."""

import threading

from brinery.spec import EndpointSpec, EndpointStatus
from brinery_platform.forwarder.slots import MAX_SLOTS, Slots, Ticket
from brinery_platform.routes import EndpointRoute, WorkerRoute


def route(*ids, concurrency=2):
    return EndpointRoute(
        id="end_1",
        owner="ann",
        status=EndpointStatus.READY,
        reason="",
        version=1,
        spec=EndpointSpec(name="a", bundle_id="bun_1", concurrency=concurrency),
        workers=tuple(WorkerRoute(id=name, url=f"http://{name}", control_url="") for name in ids),
    )


def slots_of(*ids, concurrency=2):
    slots = Slots()
    slots.update(route(*ids, concurrency=concurrency))
    return slots


def test_the_worker_with_the_fewest_in_flight_is_picked_until_all_slots_are_taken():
    slots = slots_of("a", "b")
    picked = [slots.acquire(0).worker.id for _ in range(4)]
    assert sorted(picked[:2]) == sorted(picked[2:]) == ["a", "b"]
    assert slots.acquire(0) is None
    assert (slots.in_flight, slots.size) == (4, 4)


def test_a_waiter_gets_the_slot_that_is_given_back_or_appears():
    slots = Slots()
    found = []
    waiter = threading.Thread(target=lambda: found.append(slots.acquire(10)))
    waiter.start()
    slots.update(route("a", concurrency=1))
    waiter.join()
    waiter = threading.Thread(target=lambda: found.append(slots.acquire(10)))
    waiter.start()
    slots.release(found[0])
    waiter.join()
    assert [slot.worker.id for slot in found] == ["a", "a"]


def never():
    return False


def test_a_slot_of_a_busy_worker_is_changed_for_one_of_another():
    slots = slots_of("a", "b")
    busy = slots.acquire(0)
    other = slots.exchange(busy, 0, rest_seconds=60, unless=never)
    assert {busy.worker.id, other.worker.id} == {"a", "b"}
    assert slots.acquire(0).worker == other.worker
    assert slots.acquire(0) is None, "the busy one rests"
    assert slots.in_flight == 2


def test_the_slot_of_the_only_worker_is_kept_until_it_has_rested_and_nobody_else_gets_it():
    slots = slots_of("a", concurrency=1)
    slot = slots.acquire(0)
    found = []
    waiter = threading.Thread(target=lambda: found.append(slots.acquire(30)))
    waiter.start()
    assert slots.exchange(slot, 0, rest_seconds=0.1, unless=never) is None, "it rests still"
    again = slots.exchange(slot, 10, rest_seconds=0.1, unless=never)
    assert (again.worker, slots.in_flight, found) == (slot.worker, 1, [])
    slots.release(again)
    waiter.join()
    assert found[0].worker == slot.worker


def test_an_exchange_ends_when_it_is_told_to():
    slots = slots_of("a")
    slot = slots.acquire(0)
    over = threading.Event()
    timer = threading.Timer(0.1, lambda: (over.set(), slots.wake()))
    timer.start()
    assert slots.exchange(slot, 60, rest_seconds=60, unless=over.is_set) is None
    timer.join()
    assert slots.in_flight == 1, "it is still to be given back"


def test_a_whole_worker_is_changed_for_a_whole_worker_only():
    slots = slots_of("a", "b")
    whole = slots.acquire(0, Ticket())
    beside = slots.acquire(0)
    assert slots.exchange(whole, 0, rest_seconds=0.1, unless=never) is None
    slots.release(beside)
    other = slots.exchange(whole, 0, rest_seconds=60, unless=never)
    assert (other.whole, slots.in_flight) == (True, 2)
    assert other.worker != whole.worker


def test_who_holds_a_slot_of_a_worker_that_is_being_emptied_may_keep_it():
    slots = slots_of("a")
    slot = slots.acquire(0)
    assert slots.acquire(0, Ticket()) is None
    assert slots.exchange(slot, 10, rest_seconds=0.05, unless=never).worker == slot.worker


def test_slots_are_bounded_below_and_above():
    slots = Slots()
    assert slots.size == 1
    slots.update(route("a", "b", concurrency=200))
    assert slots.size == MAX_SLOTS
    slots.update(None)
    assert slots.acquire(0) is None


def test_few_messages_are_taken_beyond_the_slots_and_one_while_there_is_no_worker():
    assert Slots().prefetch == 1
    assert slots_of("a", concurrency=1).prefetch == 2
    assert slots_of("a", concurrency=8).prefetch == 10
    assert slots_of("a", concurrency=200).prefetch == MAX_SLOTS


def test_the_only_slot_of_a_worker_is_the_whole_worker():
    assert slots_of("a", concurrency=1).acquire(0).whole
    assert not slots_of("a", concurrency=2).acquire(0).whole


def test_one_task_gets_a_whole_worker_and_nobody_else_a_slot_of_it():
    slots = slots_of("a", "b")
    whole = slots.acquire(0, Ticket())
    assert (whole.whole, whole.size, slots.in_flight) == (True, 2, 2)
    rest = [slots.acquire(0) for _ in range(2)]
    assert {slot.worker.id for slot in rest} == {"a", "b"} - {whole.worker.id}
    assert slots.acquire(0) is None
    slots.release(whole)
    assert slots.acquire(0).worker == whole.worker
    assert slots.in_flight == 3


def test_a_worker_is_emptied_for_the_task_that_wants_it_whole():
    slots = slots_of("a")
    first, second = slots.acquire(0), slots.acquire(0)
    ticket = Ticket()
    assert slots.acquire(0, ticket) is None
    slots.release(first)
    assert slots.acquire(0) is None, "it is being emptied for somebody"
    assert slots.acquire(0, Ticket()) is None, "of two who want it, one comes first"
    slots.release(second)
    assert slots.acquire(0) is None
    assert slots.acquire(0, ticket).whole


def test_who_gives_up_waiting_for_a_whole_worker_leaves_it_to_the_others():
    slots = slots_of("a")
    slots.acquire(0)
    ticket = Ticket()
    assert slots.acquire(0, ticket) is None
    assert slots.acquire(0) is None
    slots.abandon(ticket)
    assert slots.acquire(0) is not None


def test_a_worker_that_leaves_the_table_while_it_is_emptied_is_replaced_by_another():
    slots = slots_of("a")
    slots.acquire(0)
    ticket = Ticket()
    assert slots.acquire(0, ticket) is None
    slots.update(route("b"))
    assert slots.acquire(0, ticket).worker.id == "b"


def test_company_is_who_runs_beside_us_or_broke_off_just_now():
    slots = slots_of("a")
    first, second = slots.acquire(0), slots.acquire(0)
    assert slots.company(first) == 1
    slots.release(second)
    assert slots.company(first) == 0
    slots.release(slots.acquire(0), broken=True)
    assert slots.company(first) == 1, "whoever looks second does not think that it was alone"
