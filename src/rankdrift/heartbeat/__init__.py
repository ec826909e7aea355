"""Notices that a rank has died, hangs or has fallen silent, says which was the first, ends all others.

Collectives cannot do that: where a rank is stopped or a link is down without a reset, the others wait in them
for minutes. So every rank starts a small process, its *guard*, which needs no torch and no interpreter lock
of the rank. The guard beside rank 0 is the *referee* as well. Guards tell it over TCP, outside of all
collectives, how their ranks are; the referee gives one *verdict*, by which every guard ends its rank.

    rank.py      in the rank: a counter in shared memory, what it says last, its end by a verdict
    guard.py     the process beside it
    referee.py   where all guards report to
    verdict.py   who was first, from what was reported: a function of it alone
    lines.py     messages over a socket
    place.py     which rank of which job this is, where the referee listens, and the limits
"""
