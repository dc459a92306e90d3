"""A slice of the fuzz of products, and that it notices what is wrong."""

import numpy as np
import pytest

from tests.fuzz import products


def test_a_few_programs():
    assert products.main(["--cases", "100", "--first", "7"]) == 0


@pytest.mark.parametrize("name", ["y", "dx", "dvalues"])
def test_a_wrong_product_is_noticed(name, capsys, monkeypatch):
    number = next(
        i
        for i in range(100)
        if products.draw(0, i).dtype != "int8" and min(products.draw(0, i).kept, 9) == 9
    )
    compiled = products.compiled

    def one_off(program):
        def run(*operands):
            found = dict(zip(("y", "dx", "dvalues"), compiled(program)(*operands), strict=True))
            wrong = np.array(found[name])
            wrong.reshape(-1)[-1] += 9
            return tuple((found | {name: wrong}).values())

        return run

    monkeypatch.setattr(products, "compiled", one_off)
    assert products.main(["--cases", "1", "--first", str(number)]) == 1
    printed = capsys.readouterr().out
    assert f"AssertionError: {name}[" in printed
    assert f"python -m tests.fuzz.products --cases 1 --seed 0 --first {number}" in printed
