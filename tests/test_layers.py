"""Standing before a call: it nests in any order, and whoever was there before is there afterwards."""

import gc
import weakref
from functools import partial

import pytest
from mlx import nn

from mflux_teacache_plugin.host.layers import stand_before


class Thing:
    def name(self, end=""):
        return f"thing{end}"

    def __call__(self, x):
        return x + 1

    @staticmethod
    def build(x):
        return [x]


def adds(word):
    return lambda inner, *args, **kwargs: f"{word}({inner(*args, **kwargs)})"


@pytest.fixture
def thing():
    return Thing()


def test_the_newest_is_asked_first_and_each_may_leave_when_it_likes(thing):
    first, second = (stand_before(thing, "name", adds(word)) for word in ("first", "second"))
    assert thing.name("!") == "second(first(thing!))"
    assert isinstance(thing, Thing) and type(thing).__name__ == "Thing"
    first()
    assert thing.name() == "second(thing)"
    first()  # a second time is no error
    second()
    assert thing.name() == "thing"
    assert type(thing) is Thing and vars(thing) == {}


def test_several_methods_of_one_object(thing):
    undo = [
        stand_before(thing, "name", adds("n")),
        stand_before(thing, "__call__", lambda inner, x: 10 * inner(x)),
        stand_before(thing, "build", lambda inner, x: inner(x) * 2),
    ]
    assert (thing.name(), thing(1), thing.build(5)) == ("n(thing)", 20, [5, 5])
    undo[0]()
    assert (thing.name(), thing(1), thing.build(5)) == ("thing", 20, [5, 5])
    undo[2]()
    undo[1]()
    assert (thing(1), thing.build(5)) == (2, [5])
    assert type(thing) is Thing and vars(thing) == {}


def test_an_attribute_of_the_object_is_put_back(thing):
    def their_own(end=""):
        return f"theirs{end}"

    thing.name = their_own
    first, second = (stand_before(thing, "name", adds(word)) for word in ("first", "second"))
    assert thing.name("?") == "second(first(theirs?))"
    first()
    second()
    assert vars(thing) == {"name": their_own} and type(thing) is Thing


def test_somebody_who_came_later_and_stays_keeps_working(thing):
    undo = stand_before(thing, "name", adds("ours"))
    theirs = type("Theirs", (type(thing),), {"name": lambda self: f"theirs({super(theirs, self).name()})"})
    thing.__class__ = theirs
    assert thing.name() == "theirs(ours(thing))"
    undo()
    assert type(thing) is theirs and thing.name() == "theirs(thing)"
    again = stand_before(thing, "name", adds("again"))
    assert thing.name() == "again(theirs(thing))"
    again()
    assert type(thing) is theirs and thing.name() == "theirs(thing)"


def test_somebody_who_wrapped_the_attribute_later_keeps_working(thing):
    thing.name = lambda: "theirs"
    undo = stand_before(thing, "name", adds("ours"))
    place = thing.name
    thing.name = lambda: f"later({place()})"
    undo()
    assert thing.name() == "later(theirs)"


def test_a_static_method_on_the_class():
    class Own(Thing):
        pass

    stock = vars(Thing)["build"]
    first, second = (stand_before(Own, "build", lambda inner, x, n=n: [*inner(x), n]) for n in (1, 2))
    assert Thing.build(0) == [0, 1, 2]
    first()
    assert Own.build(0) == [0, 2]
    second()
    assert vars(Thing)["build"] is stock and "build" not in vars(Own)


def test_a_method_that_is_not_there_is_an_error(thing):
    with pytest.raises(AttributeError):
        stand_before(thing, "no_such", adds("x"))
    assert type(thing) is Thing and vars(thing) == {}


def test_nothing_keeps_the_object_alive():
    thing = Thing()
    gone = weakref.ref(thing)
    undo = stand_before(thing, "name", adds("x"))
    gc.disable()
    try:
        del thing
        assert gone() is None
    finally:
        gc.enable()
    undo()


def test_a_module_keeps_its_parameters():
    layer = nn.Linear(2, 2)
    before = dict(layer.parameters())
    undo = stand_before(layer, "__call__", lambda inner, x: inner(x))
    assert list(layer.parameters()) == list(before) and isinstance(layer, nn.Linear)
    undo()
    assert type(layer) is nn.Linear


def test_a_layer_may_be_a_partial_or_a_bound_method(thing):
    class Seen:
        calls = 0

        def layer(self, inner, *args):
            self.calls += 1
            return inner(*args)

    seen = Seen()
    undo = [stand_before(thing, "name", seen.layer), stand_before(thing, "name", partial(seen.layer))]
    thing.name()
    for each in undo:
        each()
    thing.name()
    assert seen.calls == 2 and type(thing) is Thing
