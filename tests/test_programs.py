"""Random programs in many orders; the history of each run is checked."""

from itertools import islice

import pytest

from .programs import check_programs, programs


@pytest.mark.parametrize("seed", range(4))
def test_every_answer_of_a_random_program_fits_a_legal_order(seed: int) -> None:
    assert check_programs(seed, 1_000) >= 1_000


def test_a_number_gives_the_same_program() -> None:
    one, other = (list(islice(programs(3, 20), 20)) for _ in range(2))
    assert [each.scripts for each in one] == [each.scripts for each in other]
    assert len({str(each.scripts) for each in one}) == 20
