import inspect

import bayesvision as bv


def public_classes():
    return [value for name in dir(bv) if inspect.isclass(value := getattr(bv, name, None))]


def test_every_public_class_shows_how_it_is_used():
    assert len(public_classes()) > 10
    for value in public_classes():
        assert ">>> " in (value.__doc__ or ""), value.__name__
