"""What `make test-types` checks every annotation of jaxsparse by, whenever a function is called."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

# With the tower, a whole number is a float, as type checkers have it.
_CHECKER = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable) -> Callable:
    """A function that refuses what its annotations do not allow.

    What has no meaning when a method is made, Self and protocols, is left to type checkers.
    """
    try:
        return _CHECKER(function)
    except BeartypeDecorHintException:
        return function
