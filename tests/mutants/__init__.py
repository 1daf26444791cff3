"""Planted bugs: a guard is taken out of a copy of the package, and somebody must notice.

    catalogue   the bugs, as patches of one place each, and who notices them
    copies      a copy of the tree with one bug in it, and what happens there
    hunt        runs in the copy: the explorer over the scenarios
    sample      random small changes of three modules, against the tests of those modules

A guarantee whose guard can be taken out unnoticed is not tested, however many tests there
are. `python -m tests.mutants` (`make mutants`) plants all and prints who found which.
"""
